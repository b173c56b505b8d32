"""The state of a training, and back."""
