"""Signatures of tensors, whatever the format that holds them: keys, statements, envelopes."""
