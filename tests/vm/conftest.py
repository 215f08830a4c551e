"""The folder guest/ is for the virtual machine alone: test_guest.py runs it there and has its results."""

import os

collect_ignore = [] if os.environ.get("TELEHANDLER_GUEST") else ["guest"]
