"""`python -m esogen` is `esogen`."""

import sys

from esogen.cli import main

if __name__ == "__main__":
    sys.exit(main())
