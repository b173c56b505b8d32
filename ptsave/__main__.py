"""`python -m ptsave`."""

from ptsave.cli import main

if __name__ == "__main__":
    main()
