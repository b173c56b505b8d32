"""What each command does with its flags, by one process or by all ranks, and what it shows of it."""
