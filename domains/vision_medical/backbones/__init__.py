"""Image networks of two libraries. A file says where roles are and how weights are read; families are data."""
