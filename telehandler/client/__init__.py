"""The client library: a connection to one server as one user, its retries, its settings, the benchmark.

Runs in the user's own process; `cli` imports it. It imports `certs.pem`, `common` and `pb`. It must never import
`api`, `jobs`, `output`, `supervisor` or `cli`, and never prints.
"""
