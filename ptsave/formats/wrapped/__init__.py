"""Checkpoints in archives and compressed files, opened as files."""
