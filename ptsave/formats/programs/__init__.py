"""Files that hold a program: TorchScript and torch.export."""
