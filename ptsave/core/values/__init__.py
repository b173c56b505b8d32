"""The numbers of tensors: read, gathered, compared, digested, drawn."""
