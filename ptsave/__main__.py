"""`python -m ptsave` and the script `ptsave`: leaves quietly when told to, from the first import on."""

from __future__ import annotations

import gc
import os
import sys

if __name__ == "__main__" and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # nobody has named what lies in the current folder, and code is imported by name

from typing import NoReturn

from ptsave import stopping


def main() -> NoReturn:
    """Import the command line and run it."""
    stopping.install()
    gc.set_threshold(100_000)  # imports make objects and no garbage
    try:
        from ptsave.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        stopping.leave(stopping.exit_code())


if __name__ == "__main__":
    main()
