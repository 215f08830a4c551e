"""How much one client, and all of them, may ask of the api (S39). Imports nothing."""

MAX_REQUEST_BYTES = 1 << 20
MAX_METADATA_BYTES = 16 * 1024  # a call's headers
HANDSHAKE_TIMEOUT_S = 10  # from accept to the first HTTP/2 frame
MAX_CONNECTIONS = 1000  # with those in their handshake; one over is closed at once
MAX_STREAMS = 1024  # of one connection
MAX_CALLS_PER_USER = 512  # under way at once, over all the user's connections: watches, and stops in their grace
MAX_TAIL_LINES = 1_000_000
