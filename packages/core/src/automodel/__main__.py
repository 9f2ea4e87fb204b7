"""`python -m automodel`: the command, as torchrun starts it."""

import sys

from automodel.cli.main import main

sys.exit(main())
