"""`python -m layernorm`: the same as the command `layernorm`."""

import sys

from layernorm.cli import main

if __name__ == "__main__":
    sys.exit(main())
