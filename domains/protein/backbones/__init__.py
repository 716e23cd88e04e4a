"""Protein language models. One file per library family; a file says where the roles are and how weights are read."""
