"""`python -m telehandler`, and what the installed command `telehandler` runs."""

import signal

# While it imports, Ctrl-C ends it as it ends any program, without a traceback. Ignored, it stays so.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from telehandler.cli import main as main

if __name__ == "__main__":
    main()
