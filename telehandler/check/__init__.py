"""`telehandler check`: what this machine and installation can and cannot do, found by trying.

Runs in the process of the command line, which alone imports it. It imports `local` and whatever it looks at, and must
never import `api` or `cli`. probe.py runs inside a job, alone.
"""
