"""The command line: flags to one call of a verb, and its result to the screen."""
