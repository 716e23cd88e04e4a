"""The import shim must be in place in every process of a test run, the controller of parallel workers included."""

import core  # noqa: F401
