"""What can be asked of a protein. One file per question; a head belongs to the adapter and is saved with it."""
