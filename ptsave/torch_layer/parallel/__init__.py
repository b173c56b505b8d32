"""The same commands under torchrun, on torch.distributed: every rank holds and reads its own part."""
