"""Language models: where their roles are."""
