"""What not every platform has: one named function each, with its plain fallback beside it.

    disk        bytes of files: read, written, made durable, locked, shared; what a file has beside its bytes
    naming      what a file may be called, and how it is renamed
    processes   this process and others: cores, memory, forks, who lives

The flags are here. They are read when a function is called, so that a test can force each fallback. A
condition on `sys.platform` stands beside a flag where the type checker has to see that the call is not there.
"""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

IS_WINDOWS = sys.platform == "win32"
HAS_POSITIONS = hasattr(os, "pwrite") and hasattr(os, "preadv")
"""False on Windows, where a read or write by position is a seek and a read or write under a lock."""
HAS_DIR_FD = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
"""False on Windows, where a file of a folder is opened by its path."""
HAS_FALLOCATE = hasattr(os, "posix_fallocate")
HAS_FLOCK = not IS_WINDOWS
HAS_FOLDER_SYNC = not IS_WINDOWS
FULL_SYNC: int | None = None if sys.platform == "win32" else getattr(fcntl, "F_FULLFSYNC", None)
"""macOS: fsync leaves bytes in the disk's own cache, and this does not. Source: Apple's fsync(2)."""
HAS_LINK = hasattr(os, "link") and not IS_WINDOWS
HAS_AFFINITY = sys.platform == "linux"
HAS_FADVISE = hasattr(os, "posix_fadvise")
HAS_CLONE = sys.platform == "linux"
HAS_OWNERS = not IS_WINDOWS
HAS_ATTRIBUTES = hasattr(os, "listxattr")
HAS_STATVFS = hasattr(os, "statvfs")

O_DIRECTORY: int = getattr(os, "O_DIRECTORY", 0)
O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
O_PLAIN: int = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""For every file: not inherited by a program that this one starts, and its bytes as they are."""
