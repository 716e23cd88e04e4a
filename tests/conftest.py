"""Loaded by every pytest process: importing the package `tests` puts the import shim in place."""
