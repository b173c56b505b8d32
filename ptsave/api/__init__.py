"""Python's verbs: what the commands do, by the same code. Only `models` imports torch when it is imported."""
