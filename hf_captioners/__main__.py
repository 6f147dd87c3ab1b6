"""The command line as a module, for `accelerate launch -m hf_captioners train …`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
