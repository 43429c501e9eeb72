"""`python -m espalier` and `torchrun -m espalier`."""

import sys

from espalier.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
