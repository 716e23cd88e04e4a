"""What can be asked of a language model. One file per question; none has a head of its own."""
