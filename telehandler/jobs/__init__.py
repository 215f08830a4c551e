"""The life of a job: start, record, adoption, stop, end, restarts, removal; and the link to the root helper.

Runs in the api process, and in the process of `telehandler local`. `api`, `local` and `check` import it. It imports
`output` and `common`, and of `helper` the wire alone; it must never import grpc or what prints.
"""
