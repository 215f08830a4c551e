"""The server's parent process: starts the root helper and the api, restarts and upgrades them, ends them in order.

Started as root, it gives up root once the helper runs. `cli` enters it through supervisor/server.py; `local` and
`check` use it to start a helper. It must never import grpc, `api`, `jobs` or `output`.
"""
