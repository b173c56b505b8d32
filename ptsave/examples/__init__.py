"""Small models that the ready configs name."""

from ptsave.examples.simple_net import SimpleNet, train_simple_net

__all__ = ["SimpleNet", "train_simple_net"]
