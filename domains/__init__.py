"""The fields. Each folder supplies backbones, data, tasks and metrics; none imports another."""

import core  # noqa: F401  the import shim must be in place before any library is imported
