"""ptsave keeps PyTorch models: save, load, inspect, convert, verify."""

__version__ = "0.1.0"
