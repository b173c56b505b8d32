"""A folder of checkpoints that a training writes and resumes from."""
