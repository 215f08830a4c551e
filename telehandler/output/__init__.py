"""A job's bytes on their way: pipe, pump, log, digest, chunks, watchers.

Runs in the api process, and in the process of `telehandler local`. `jobs`, `api`, `local` and `check` import it. It
imports `common` and `pb` alone: it knows bytes and offsets, not jobs, users or calls.
"""
