"""What is asked of an image: one class, or a class for every pixel."""
