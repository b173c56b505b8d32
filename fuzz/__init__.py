"""Fuzzing of the readers, with atheris and with hypothesis; see `scripts/fuzz --help`."""
