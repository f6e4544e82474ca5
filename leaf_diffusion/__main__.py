"""`python -m leaf_diffusion` is `leaf-diffusion`."""

import sys

from leaf_diffusion.cli.main import main

sys.exit(main())
