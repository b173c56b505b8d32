"""Tensors into a module, and a module's tensors as a checkpoint."""
