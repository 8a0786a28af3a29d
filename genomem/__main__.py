"""`python -m genomem`, which torchrun needs."""

import sys

from genomem.cli import main

sys.exit(main())
