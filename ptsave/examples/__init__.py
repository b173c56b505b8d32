"""Small models that the ready configs name."""

from ptsave.examples.conv_net import ConvNet
from ptsave.examples.simple_net import SimpleNet, train_simple_net
from ptsave.examples.tiny_transformer import Block, TinyTransformer

__all__ = ["Block", "ConvNet", "SimpleNet", "TinyTransformer", "train_simple_net"]
