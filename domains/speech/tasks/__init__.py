"""What can be asked of a speech model. One file per question; a head belongs to the adapter and is saved with it."""
