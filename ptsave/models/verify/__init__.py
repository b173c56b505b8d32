"""The checks that need a model, and whose fault a failure is."""
