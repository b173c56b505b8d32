"""`python -m ptsave` and the script `ptsave`: leaves quietly when told to, from the first import on."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # the current folder: nobody has named what lies there, and code is imported by name

from typing import NoReturn

from ptsave import stopping


def main() -> NoReturn:
    """Import the command line and run it."""
    stopping.install()
    try:
        from ptsave.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(stopping.exit_code())


if __name__ == "__main__":
    main()
