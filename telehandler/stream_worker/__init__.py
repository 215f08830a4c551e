"""A stream worker process: ends TLS and sends the output of jobs, for the api and beside it, on the same port.

Runs as the unprivileged user of the server, started by the supervisor; never forks, and has no way to the helper. It
decides nothing: the api says what a client gets. Imports of `api` only what listens; it must never import `jobs`,
`supervisor`, `client` or `cli`. Only `python -c` in supervisor/api_process.py enters it.
"""
