"""PEFT Atlas core: adapters, training, records. Importing it loads nothing heavy."""

from core import compat

compat.install()
