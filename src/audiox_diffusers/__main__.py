"""`python -m audiox_diffusers`: the `audiox` command."""

import sys

from .cli import main

sys.exit(main())
