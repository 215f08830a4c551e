"""What several processes share: errors, bounds, a job's states, fds, capacity, the control channel, privileges.

Everybody may import it. It imports nothing of telehandler, and neither grpc nor protobuf.
"""
