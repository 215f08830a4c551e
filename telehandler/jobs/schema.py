"""The schema of the records' database, and its history."""

# What brings a database from one version to the next; never changed once released. The first makes an empty one.
MIGRATIONS = (
    (
        """CREATE TABLE job (
            uuid TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            state INTEGER NOT NULL,
            record TEXT NOT NULL
        ) STRICT""",
    ),
    (
        "ALTER TABLE job ADD COLUMN start_ns INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN end_ns INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN output_bytes INTEGER NOT NULL DEFAULT 0",
        """UPDATE job SET
            start_ns = json_extract(record, '$.start_ns'),
            end_ns = json_extract(record, '$.end_ns'),
            output_bytes = json_extract(record, '$.stdout_bytes') + json_extract(record, '$.stderr_bytes')""",
        "CREATE INDEX job_by_start ON job (start_ns, uuid, state)",
        "CREATE INDEX job_by_owner ON job (owner, start_ns, uuid, state)",
        "CREATE INDEX job_by_end ON job (end_ns, uuid, output_bytes) WHERE state <> 1",
        "CREATE INDEX job_running ON job (uuid) WHERE state = 1",
    ),
    (
        "ALTER TABLE job ADD COLUMN request_id TEXT NOT NULL DEFAULT ''",
        "CREATE UNIQUE INDEX job_by_request ON job (owner, request_id) WHERE request_id <> ''",
        # Starts with a request id that the helper has been asked for and that are not known to have succeeded.
        """CREATE TABLE start (
            uuid TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            request_id TEXT NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (owner, request_id)
        ) STRICT""",
        "CREATE TRIGGER started AFTER INSERT ON job BEGIN DELETE FROM start WHERE uuid = NEW.uuid; END",
    ),
    (
        "ALTER TABLE job ADD COLUMN given_name TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE job ADD COLUMN labels TEXT NOT NULL DEFAULT ''",  # a JSON object
        "ALTER TABLE job ADD COLUMN removed_after INTEGER NOT NULL DEFAULT 0",  # whether it goes by itself
        "CREATE INDEX job_by_name ON job (owner, given_name, start_ns, uuid) WHERE given_name <> ''",
        # With what a list selects by, so that it reads no row that it does not show.
        "CREATE INDEX job_named ON job (start_ns, uuid, owner, state, given_name, labels) WHERE given_name <> ''",
        "CREATE INDEX job_labelled ON job (start_ns, uuid, owner, state, given_name, labels) WHERE labels <> ''",
        "CREATE INDEX job_removed ON job (uuid) WHERE removed_after = 1",
        "ALTER TABLE job ADD COLUMN exec_in TEXT NOT NULL DEFAULT ''",  # UUID of the job that it is a command in
        "CREATE INDEX job_by_exec_in ON job (exec_in, start_ns, uuid) WHERE exec_in <> ''",
        # Jobs that are started again when they fail, until they are no more.
        """CREATE TABLE restart (
            uuid TEXT PRIMARY KEY,
            newest TEXT NOT NULL,
            request TEXT NOT NULL
        ) STRICT""",
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)
