"""Saving, loading and verifying models under torch.distributed."""
