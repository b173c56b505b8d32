"""A small convolutional network with batch norm and dropout."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Two convolutions with batch norm, dropout, a linear head.

    Its outputs repeat in eval mode only: in train mode dropout is random, and batch norm looks at the
    batch and updates its running statistics.
    """

    def __init__(
        self, in_channels: int = 3, width: int = 8, num_classes: int = 10, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, num_classes)."""
        out: Tensor = self.head(self.dropout(self.features(image).flatten(1)))
        return out
