"""Files and folders on a disk, open for reading."""
