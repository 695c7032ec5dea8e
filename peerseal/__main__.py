"""``python -m peerseal``."""

import sys

from peerseal.cli import main

sys.exit(main())
