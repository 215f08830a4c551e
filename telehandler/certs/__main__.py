"""`python -m telehandler.certs DIRECTORY`: what `make certs` runs."""

import sys

from telehandler.common import process_state

process_state.establish()  # before anything else

from telehandler.certs.authority import main  # noqa: E402

sys.exit(main())
