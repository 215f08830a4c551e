"""The api process: serves gRPC, and owns the jobs' records, logs and watchers.

Runs as the unprivileged user of the server, started by the supervisor; never forks. Imports `jobs`, `output`, `common`
and `pb`.
It must never import `supervisor`, `client` or `cli`. Only `python -c` in supervisor/api_process.py enters it.
"""
