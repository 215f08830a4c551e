"""The command line of telehandler."""

import sys

COMMAND = [sys.executable, "-m", "telehandler"]
