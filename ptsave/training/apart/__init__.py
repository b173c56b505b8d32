"""What ranks hold apart: found at a save, written for each rank, given back to each."""
