"""Exported programs, run in their own runtimes on the inputs that their records describe."""
