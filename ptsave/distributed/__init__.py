"""The same under torch.distributed."""
