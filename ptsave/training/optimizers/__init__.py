"""An optimizer's state by the names of its parameters."""
