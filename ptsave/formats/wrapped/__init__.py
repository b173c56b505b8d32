"""Checkpoints that lie in an archive, or are compressed: what is inside, as a file like any other."""
