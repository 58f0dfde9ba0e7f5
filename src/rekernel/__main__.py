"""``python3 -m rekernel``."""

import sys

from rekernel.cli import main

sys.exit(main())
