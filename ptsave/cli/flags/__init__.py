"""The flags of each command, one file a command: what the command line said → one call.

Imports inside the functions keep `--help` and the torch-free commands quick.
"""
