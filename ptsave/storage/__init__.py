"""Where bytes are: files and windows into them; reading, moving and writing them safely."""
