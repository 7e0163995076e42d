"""`python -m pentad.cli`, for where the `pentad` script is not on the path."""

import sys

from pentad.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
