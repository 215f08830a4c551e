"""Certificates: a small authority for one installation, and the reading of PEM files.

Runs in a process of its own (`make certs`); `client` and `supervisor` import pem.py. It imports `common` alone.
"""
