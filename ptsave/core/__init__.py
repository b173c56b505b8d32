"""The nouns of ptsave, without files and without torch."""
