"""Which part of a checkpoint is what: the model, a training, and the names in them."""
