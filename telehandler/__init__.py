"""telehandler: runs commands in sandboxes of their own and streams their output to any number of watchers."""

__version__ = "0.1.0"
