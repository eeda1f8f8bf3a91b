"""``python -m stimg``: the same as the command ``stimg``."""

import sys

from stimg.cli import main

if __name__ == "__main__":
    sys.exit(main())
