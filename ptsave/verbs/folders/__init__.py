"""Folders that are no checkpoint themselves: a training's run, and plain ones with checkpoints in them."""
