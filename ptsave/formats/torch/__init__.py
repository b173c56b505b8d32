"""What torch.save writes: zip, legacy and tar."""
