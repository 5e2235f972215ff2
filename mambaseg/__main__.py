"""``python -m mambaseg``."""

import sys

from mambaseg.cli import main

sys.exit(main())
