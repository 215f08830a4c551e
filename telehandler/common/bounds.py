"""How much one client, and all of them, may ask of the api (S39). Imports nothing."""

MAX_REQUEST_BYTES = 1 << 20
# Those of helper/wire.py, which a client does not import: one argument or variable, all of them, and how many of each.
MAX_ARGUMENT_BYTES, MAX_COMMAND_KIB, MAX_ARGUMENTS = 131_071, 200, 16_384
COMMAND_TOO_LONG = (
    f"the command and its environment are too long (E2BIG): {MAX_ARGUMENT_BYTES} bytes for one argument or variable, "
    f"{MAX_COMMAND_KIB} KiB for all of them, {MAX_ARGUMENTS} of each; put what is long into a file"
)
MAX_METADATA_BYTES = 16 * 1024  # a call's headers
HANDSHAKE_TIMEOUT_S = 10  # from accept to the first HTTP/2 frame
MAX_CONNECTIONS = 1000  # with those in their handshake; one over is closed at once
MAX_STREAMS = 1024  # of one connection
MAX_TAIL_LINES = 1_000_000
MAX_STDIN_BYTES = 256 * 1024  # of a job's input, in one message
STDIN_WRITER_BYTES = 16  # of the id by which a writer of input is known
RECEIVE_TIMEOUT_S = 10  # from a call's headers to the end of its request
HANDLING_TIMEOUT_S = 60  # from then to its answer; a stop has its grace besides, a wait for an end no bound

# What one user has of each, over all connections, so that others have the rest (S52).
MAX_CALLS_PER_USER = 512  # under way at once: watches, and stops in their grace
MAX_RECEIVING_PER_USER = 8  # requests that are being received; others wait behind flow control, 64 KiB each at most
MAX_REQUEST_BYTES_PER_USER = 16 << 20  # of the requests of calls under way
MAX_STARTING_PER_USER = 4  # starts that the helper has been asked for
SHARE_OF_JOBS = 0.75  # of those that the policy allows and that others do not have

# Of both sides: who has heard nothing for KEEPALIVE_S asks, and a connection without an answer is dead. So one that is
# half open is noticed within the sum of both, whether calls are under way or not.
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 10, 10
KEEPALIVE = (
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),  # else a minute, whatever the line above says
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # a job may be silent for days
)
LEAST_PING_INTERVAL_S = 5  # a client that asks more often is sent away
# What a client may send of a message that nobody reads yet. It does not grow: requests are small.
RECEIVE_WINDOW = (("grpc.http2.lookahead_bytes", 64 * 1024), ("grpc.http2.bdp_probe", 0))
