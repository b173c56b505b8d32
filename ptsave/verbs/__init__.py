"""What ptsave does to checkpoints without torch."""
