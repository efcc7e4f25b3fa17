"""`python -m pgqueue` is `pgqueue`."""

import sys

from pgqueue.cli import main

if __name__ == "__main__":
    sys.exit(main())
