-- jobs.sqlite3 as a server of schema version 3 wrote it; never to be changed.
PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE job (
            uuid TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            state INTEGER NOT NULL,
            record TEXT NOT NULL
        , start_ns INTEGER NOT NULL DEFAULT 0, end_ns INTEGER NOT NULL DEFAULT 0, output_bytes INTEGER NOT NULL DEFAULT 0, request_id TEXT NOT NULL DEFAULT '') STRICT;
INSERT INTO "job" VALUES('0b9a6f0e-7e58-4f6b-8d8e-0f5a7d1c2b3a','tele-tester',3,'{"uuid": "0b9a6f0e-7e58-4f6b-8d8e-0f5a7d1c2b3a", "owner": "tele-tester", "argv": ["sh", "-c", "printf ''\udcff''"], "state": 3, "reason": 1, "start_ns": 1760000000000000000, "end_ns": 1760000000500000000, "exit_code": 0, "signal": 0, "job_uid": 200001, "stdout_bytes": 500, "stderr_bytes": 7, "cpu_usec": 1234, "memory_peak_bytes": 999424, "stdout_sha256": "", "stderr_sha256": "", "dropped_bytes": 0, "request_id": "", "request_sha256": "", "extra": {}}',1760000000000000000,1760000000500000000,507,'');
INSERT INTO "job" VALUES('5d1f2c3b-4a59-4e68-9f70-8192a3b4c5d6','tele-tester',4,'{"uuid": "5d1f2c3b-4a59-4e68-9f70-8192a3b4c5d6", "owner": "tele-tester", "argv": ["sleep", "1000"], "state": 4, "reason": 4, "start_ns": 1760000001000000000, "end_ns": 1760000009000000000, "exit_code": 143, "signal": 15, "job_uid": 200002, "stdout_bytes": 0, "stderr_bytes": 0, "cpu_usec": 1500, "memory_peak_bytes": 1024000, "stdout_sha256": "", "stderr_sha256": "", "dropped_bytes": 0, "request_id": "4f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10", "request_sha256": "abababababababababababababababababababababababababababababababab", "extra": {}}',1760000001000000000,1760000009000000000,0,'4f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10');
INSERT INTO "job" VALUES('c8d7e6f5-0415-4233-a241-506f7e8d9cab','bubba',1,'{"uuid": "c8d7e6f5-0415-4233-a241-506f7e8d9cab", "owner": "bubba", "argv": ["sleep", "99"], "state": 1, "reason": 0, "start_ns": 1760000002000000000, "end_ns": 0, "exit_code": 0, "signal": 0, "job_uid": 200003, "stdout_bytes": 0, "stderr_bytes": 0, "cpu_usec": 0, "memory_peak_bytes": 0, "stdout_sha256": "", "stderr_sha256": "", "dropped_bytes": 0, "request_id": "5f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10", "request_sha256": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "extra": {}}',1760000002000000000,0,0,'5f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10');
CREATE TABLE start (
            uuid TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            request_id TEXT NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (owner, request_id)
        ) STRICT;
INSERT INTO "start" VALUES('d8d7e6f5-0415-4233-a241-506f7e8d9cab','bubba','6f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10','{"uuid": "d8d7e6f5-0415-4233-a241-506f7e8d9cab", "owner": "bubba", "argv": ["true"], "state": 1, "reason": 0, "start_ns": 1760000003000000000, "end_ns": 0, "exit_code": 0, "signal": 0, "job_uid": 0, "stdout_bytes": 0, "stderr_bytes": 0, "cpu_usec": 0, "memory_peak_bytes": 0, "stdout_sha256": "", "stderr_sha256": "", "dropped_bytes": 0, "request_id": "6f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10", "request_sha256": "efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef", "extra": {}}');
CREATE INDEX job_by_start ON job (start_ns, uuid, state);
CREATE INDEX job_by_owner ON job (owner, start_ns, uuid, state);
CREATE INDEX job_by_end ON job (end_ns, uuid, output_bytes) WHERE state <> 1;
CREATE INDEX job_running ON job (uuid) WHERE state = 1;
CREATE UNIQUE INDEX job_by_request ON job (owner, request_id) WHERE request_id <> '';
CREATE TRIGGER started AFTER INSERT ON job BEGIN DELETE FROM start WHERE uuid = NEW.uuid; END;
COMMIT;
