"""Benchmarks of the server, beside a limit that was measured in the same run. `make bench`; docs/performance.md."""
