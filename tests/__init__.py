"""The import shim must be in place in every process of a test run: workers, their controller, spawned ranks."""

import core  # noqa: F401
