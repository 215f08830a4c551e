import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_COMPLETED: _ClassVar[JobState]
    JOB_STATE_STOPPED: _ClassVar[JobState]

class JobReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_REASON_UNSPECIFIED: _ClassVar[JobReason]
    JOB_REASON_EXITED: _ClassVar[JobReason]
    JOB_REASON_SIGNALED: _ClassVar[JobReason]
    JOB_REASON_OOM: _ClassVar[JobReason]
    JOB_REASON_STOPPED: _ClassVar[JobReason]
    JOB_REASON_LOST: _ClassVar[JobReason]
    JOB_REASON_TIMEOUT: _ClassVar[JobReason]
    JOB_REASON_PIDS: _ClassVar[JobReason]
    JOB_REASON_OUTPUT_LOST: _ClassVar[JobReason]

class RestartPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESTART_POLICY_UNSPECIFIED: _ClassVar[RestartPolicy]
    RESTART_POLICY_NO: _ClassVar[RestartPolicy]
    RESTART_POLICY_ON_FAILURE: _ClassVar[RestartPolicy]

class LogPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_POLICY_UNSPECIFIED: _ClassVar[LogPolicy]
    LOG_POLICY_BLOCK: _ClassVar[LogPolicy]
    LOG_POLICY_DROP_OLDEST: _ClassVar[LogPolicy]
    LOG_POLICY_KILL: _ClassVar[LogPolicy]

class OutputStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_STREAM_UNSPECIFIED: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDOUT: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDERR: _ClassVar[OutputStream]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_COMPLETED: JobState
JOB_STATE_STOPPED: JobState
JOB_REASON_UNSPECIFIED: JobReason
JOB_REASON_EXITED: JobReason
JOB_REASON_SIGNALED: JobReason
JOB_REASON_OOM: JobReason
JOB_REASON_STOPPED: JobReason
JOB_REASON_LOST: JobReason
JOB_REASON_TIMEOUT: JobReason
JOB_REASON_PIDS: JobReason
JOB_REASON_OUTPUT_LOST: JobReason
RESTART_POLICY_UNSPECIFIED: RestartPolicy
RESTART_POLICY_NO: RestartPolicy
RESTART_POLICY_ON_FAILURE: RestartPolicy
LOG_POLICY_UNSPECIFIED: LogPolicy
LOG_POLICY_BLOCK: LogPolicy
LOG_POLICY_DROP_OLDEST: LogPolicy
LOG_POLICY_KILL: LogPolicy
OUTPUT_STREAM_UNSPECIFIED: OutputStream
OUTPUT_STREAM_STDOUT: OutputStream
OUTPUT_STREAM_STDERR: OutputStream

class Limits(_message.Message):
    __slots__ = ("cpu_millis", "memory_bytes", "memory_high_bytes", "pids", "read_bps", "write_bps", "read_iops", "write_iops", "file_bytes", "open_files", "timeout_ms", "tmp_bytes", "shm_bytes")
    CPU_MILLIS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_HIGH_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    READ_BPS_FIELD_NUMBER: _ClassVar[int]
    WRITE_BPS_FIELD_NUMBER: _ClassVar[int]
    READ_IOPS_FIELD_NUMBER: _ClassVar[int]
    WRITE_IOPS_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    TMP_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHM_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpu_millis: int
    memory_bytes: int
    memory_high_bytes: int
    pids: int
    read_bps: int
    write_bps: int
    read_iops: int
    write_iops: int
    file_bytes: int
    open_files: int
    timeout_ms: int
    tmp_bytes: int
    shm_bytes: int
    def __init__(self, cpu_millis: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_high_bytes: _Optional[int] = ..., pids: _Optional[int] = ..., read_bps: _Optional[int] = ..., write_bps: _Optional[int] = ..., read_iops: _Optional[int] = ..., write_iops: _Optional[int] = ..., file_bytes: _Optional[int] = ..., open_files: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., tmp_bytes: _Optional[int] = ..., shm_bytes: _Optional[int] = ...) -> None: ...

class StartJobRequest(_message.Message):
    __slots__ = ("parent", "command", "args", "argv", "env", "working_directory", "limits", "profile", "validate_only", "log_max_bytes", "log_policy", "request_id", "merge_stderr", "stdin", "terminal", "terminal_size", "exec_in_job", "given_name", "labels", "remove_after", "restart_policy", "max_restarts", "stop_signal", "stop_grace")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PARENT_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    LOG_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_POLICY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MERGE_STDERR_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    EXEC_IN_JOB_FIELD_NUMBER: _ClassVar[int]
    GIVEN_NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REMOVE_AFTER_FIELD_NUMBER: _ClassVar[int]
    RESTART_POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    STOP_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    STOP_GRACE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    command: str
    args: _containers.RepeatedScalarFieldContainer[str]
    argv: _containers.RepeatedScalarFieldContainer[bytes]
    env: _containers.ScalarMap[str, bytes]
    working_directory: str
    limits: Limits
    profile: str
    validate_only: bool
    log_max_bytes: int
    log_policy: LogPolicy
    request_id: str
    merge_stderr: bool
    stdin: bool
    terminal: bool
    terminal_size: TerminalSize
    exec_in_job: str
    given_name: str
    labels: _containers.ScalarMap[str, str]
    remove_after: _duration_pb2.Duration
    restart_policy: RestartPolicy
    max_restarts: int
    stop_signal: int
    stop_grace: _duration_pb2.Duration
    def __init__(self, parent: _Optional[str] = ..., command: _Optional[str] = ..., args: _Optional[_Iterable[str]] = ..., argv: _Optional[_Iterable[bytes]] = ..., env: _Optional[_Mapping[str, bytes]] = ..., working_directory: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., profile: _Optional[str] = ..., validate_only: _Optional[bool] = ..., log_max_bytes: _Optional[int] = ..., log_policy: _Optional[_Union[LogPolicy, str]] = ..., request_id: _Optional[str] = ..., merge_stderr: _Optional[bool] = ..., stdin: _Optional[bool] = ..., terminal: _Optional[bool] = ..., terminal_size: _Optional[_Union[TerminalSize, _Mapping]] = ..., exec_in_job: _Optional[str] = ..., given_name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., remove_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., restart_policy: _Optional[_Union[RestartPolicy, str]] = ..., max_restarts: _Optional[int] = ..., stop_signal: _Optional[int] = ..., stop_grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TerminalSize(_message.Message):
    __slots__ = ("rows", "columns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ...) -> None: ...

class JobResponse(_message.Message):
    __slots__ = ("name", "uid", "state", "sandbox", "unenforced_limits")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    UNENFORCED_LIMITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    state: JobState
    sandbox: _containers.RepeatedScalarFieldContainer[bytes]
    unenforced_limits: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., sandbox: _Optional[_Iterable[bytes]] = ..., unenforced_limits: _Optional[_Iterable[str]] = ...) -> None: ...

class StopJobRequest(_message.Message):
    __slots__ = ("name", "signal", "grace")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    name: str
    signal: int
    grace: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., signal: _Optional[int] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetJobStatusRequest(_message.Message):
    __slots__ = ("name", "wait", "wait_next_run")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    WAIT_NEXT_RUN_FIELD_NUMBER: _ClassVar[int]
    name: str
    wait: bool
    wait_next_run: bool
    def __init__(self, name: _Optional[str] = ..., wait: _Optional[bool] = ..., wait_next_run: _Optional[bool] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "states", "uuid_prefix", "exec_in_job", "reference", "name_contains", "labels")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    UUID_PREFIX_FIELD_NUMBER: _ClassVar[int]
    EXEC_IN_JOB_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NAME_CONTAINS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[JobState]
    uuid_prefix: str
    exec_in_job: str
    reference: str
    name_contains: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[JobState, str]]] = ..., uuid_prefix: _Optional[str] = ..., exec_in_job: _Optional[str] = ..., reference: _Optional[str] = ..., name_contains: _Optional[_Iterable[str]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobStatus]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobStatus, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("name", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class SignalJobRequest(_message.Message):
    __slots__ = ("name", "signal")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    signal: int
    def __init__(self, name: _Optional[str] = ..., signal: _Optional[int] = ...) -> None: ...

class JobStatus(_message.Message):
    __slots__ = ("name", "state", "start_time", "end_time", "exit_code", "owner", "argv", "reason", "signal", "stdout_bytes", "stderr_bytes", "job_uid", "cpu_usec", "memory_peak_bytes", "stdout_sha256", "stderr_sha256", "dropped_bytes", "stdin", "terminal", "exec_in_job", "given_name", "labels", "remove_after", "restart_policy", "max_restarts", "stop_signal", "stop_grace", "restart_of", "restarts", "next_run", "restart_time")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    STDOUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STDERR_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    CPU_USEC_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STDOUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    STDERR_SHA256_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_FIELD_NUMBER: _ClassVar[int]
    EXEC_IN_JOB_FIELD_NUMBER: _ClassVar[int]
    GIVEN_NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REMOVE_AFTER_FIELD_NUMBER: _ClassVar[int]
    RESTART_POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    STOP_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    STOP_GRACE_FIELD_NUMBER: _ClassVar[int]
    RESTART_OF_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_RUN_FIELD_NUMBER: _ClassVar[int]
    RESTART_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: JobState
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    exit_code: int
    owner: str
    argv: _containers.RepeatedScalarFieldContainer[bytes]
    reason: JobReason
    signal: int
    stdout_bytes: int
    stderr_bytes: int
    job_uid: int
    cpu_usec: int
    memory_peak_bytes: int
    stdout_sha256: bytes
    stderr_sha256: bytes
    dropped_bytes: int
    stdin: bool
    terminal: bool
    exec_in_job: str
    given_name: str
    labels: _containers.ScalarMap[str, str]
    remove_after: _duration_pb2.Duration
    restart_policy: RestartPolicy
    max_restarts: int
    stop_signal: int
    stop_grace: _duration_pb2.Duration
    restart_of: str
    restarts: int
    next_run: str
    restart_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., exit_code: _Optional[int] = ..., owner: _Optional[str] = ..., argv: _Optional[_Iterable[bytes]] = ..., reason: _Optional[_Union[JobReason, str]] = ..., signal: _Optional[int] = ..., stdout_bytes: _Optional[int] = ..., stderr_bytes: _Optional[int] = ..., job_uid: _Optional[int] = ..., cpu_usec: _Optional[int] = ..., memory_peak_bytes: _Optional[int] = ..., stdout_sha256: _Optional[bytes] = ..., stderr_sha256: _Optional[bytes] = ..., dropped_bytes: _Optional[int] = ..., stdin: _Optional[bool] = ..., terminal: _Optional[bool] = ..., exec_in_job: _Optional[str] = ..., given_name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., remove_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., restart_policy: _Optional[_Union[RestartPolicy, str]] = ..., max_restarts: _Optional[int] = ..., stop_signal: _Optional[int] = ..., stop_grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., restart_of: _Optional[str] = ..., restarts: _Optional[int] = ..., next_run: _Optional[str] = ..., restart_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchJobOutputRequest(_message.Message):
    __slots__ = ("name", "offset", "no_follow", "tail_lines", "since", "until", "stream", "accept_zstd", "exact_times")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NO_FOLLOW_FIELD_NUMBER: _ClassVar[int]
    TAIL_LINES_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_ZSTD_FIELD_NUMBER: _ClassVar[int]
    EXACT_TIMES_FIELD_NUMBER: _ClassVar[int]
    name: str
    offset: int
    no_follow: bool
    tail_lines: int
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    stream: OutputStream
    accept_zstd: bool
    exact_times: bool
    def __init__(self, name: _Optional[str] = ..., offset: _Optional[int] = ..., no_follow: _Optional[bool] = ..., tail_lines: _Optional[int] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stream: _Optional[_Union[OutputStream, str]] = ..., accept_zstd: _Optional[bool] = ..., exact_times: _Optional[bool] = ...) -> None: ...

class JobOutput(_message.Message):
    __slots__ = ("data", "stream", "offset", "time", "zstd", "length", "gap_bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ZSTD_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    GAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    stream: OutputStream
    offset: int
    time: _timestamp_pb2.Timestamp
    zstd: bytes
    length: int
    gap_bytes: int
    def __init__(self, data: _Optional[bytes] = ..., stream: _Optional[_Union[OutputStream, str]] = ..., offset: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., zstd: _Optional[bytes] = ..., length: _Optional[int] = ..., gap_bytes: _Optional[int] = ...) -> None: ...

class WriteStdinRequest(_message.Message):
    __slots__ = ("name", "writer", "resume", "offset", "data", "end", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    writer: bytes
    resume: bool
    offset: int
    data: bytes
    end: bool
    size: TerminalSize
    def __init__(self, name: _Optional[str] = ..., writer: _Optional[bytes] = ..., resume: _Optional[bool] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., end: _Optional[bool] = ..., size: _Optional[_Union[TerminalSize, _Mapping]] = ...) -> None: ...

class WriteStdinResponse(_message.Message):
    __slots__ = ("offset", "ended", "unknown_bytes")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    ended: bool
    unknown_bytes: int
    def __init__(self, offset: _Optional[int] = ..., ended: _Optional[bool] = ..., unknown_bytes: _Optional[int] = ...) -> None: ...
