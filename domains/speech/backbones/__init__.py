"""Speech models. One file per family; a file says where the roles are and how weights are read."""
