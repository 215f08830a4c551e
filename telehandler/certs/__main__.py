"""`python -m telehandler.certs DIRECTORY`: what `make certs` runs."""

import sys

from telehandler.certs.authority import main

sys.exit(main())
