"""Which tests can notice a mutant of a file: the fastest first, since the first that fails is enough."""

from support.checkout import ROOT

_SECURITY = "tests/security"
_HELPER = [
    f"{_SECURITY}/test_sandbox_probe.py",
    f"{_SECURITY}/test_send_queue.py",
    "tests/helper/test_jobs.py",
    f"{_SECURITY}/test_helper_protocol.py",
    f"{_SECURITY}/test_start_request.py",
    f"{_SECURITY}/test_inherited_state.py",
    f"{_SECURITY}/test_policy_bounds.py",
    f"{_SECURITY}/test_helper_process.py",
    f"{_SECURITY}/test_helper_handover.py",
    f"{_SECURITY}/test_job_isolation.py",
    f"{_SECURITY}/test_profiles.py",
    f"{_SECURITY}/test_sandbox_escape.py",
    f"{_SECURITY}/test_syscall_faults.py",
]
# What installs in /usr/local is left out: that is the machine's.
_INSTALLS = f"--deselect={_SECURITY}/test_trusted_files.py::test_s11_a_users_environment_does_not_reach_root"
# Those that do not fail each system call in its turn.
_FAULTS = [
    f"{_SECURITY}/test_syscall_faults.py::test_s18_a_step_of_the_confinement_that_fails_ends_the_start",
    f"{_SECURITY}/test_syscall_faults.py::test_s17_groups_gid_and_uid_go_in_that_order_and_are_read_back",
    f"{_SECURITY}/test_syscall_faults.py::test_s16_every_process_is_born_in_the_jobs_cgroup",
    f"{_SECURITY}/test_syscall_faults.py::test_s35_each_fork_ends_in_exec_or_exit",
]
# Those of a job's end that wait for no grace.
_JOB_ENDS = [
    "tests/helper/test_message_bounds.py",
    "tests/helper/test_jobs.py",
    "--deselect=tests/helper/test_jobs.py::test_a_timeout_asks_first_and_kills_after_the_grace",
]
SUITES = {
    "helper/wire.py": ["tests/helper/test_wire_format.py", "tests/helper/test_wire.py"],
    "helper/policy.py": [
        "tests/helper/test_policy_values.py",
        "tests/helper/test_policy.py",
        f"{_SECURITY}/test_trusted_files.py::test_s11_cached_bytecode_is_code",
        f"{_SECURITY}/test_trusted_files.py::test_s11_a_policy_that_is_not_roots_alone_does_not_start",
    ],
    "helper/seccomp.py": [
        f"{_SECURITY}/test_syscall_filter.py",
        f"{_SECURITY}/test_seccomp_filter.py",
        f"{_SECURITY}/test_sandbox_probe.py",
    ],
    "helper/__main__.py": [
        f"{_SECURITY}/test_log_lines.py",
        f"{_SECURITY}/test_inherited_state.py",
        f"{_SECURITY}/test_helper_process.py",
        f"{_SECURITY}/test_helper_callers.py",
        f"{_SECURITY}/test_trusted_files.py",
        _INSTALLS,
        "tests/helper/test_jobs.py",
    ],
    "helper/confine.py": [
        f"{_SECURITY}/test_job_attributes.py",
        "tests/helper/test_confine.py",
        f"{_SECURITY}/test_sandbox_probe.py",
        f"{_SECURITY}/test_machine_pools.py",
        f"{_SECURITY}/test_job_isolation.py",
        f"{_SECURITY}/test_sandbox_escape.py",
        *_FAULTS,
    ],
    "helper/uids.py": [
        f"{_SECURITY}/test_uids.py",
        f"--deselect={_SECURITY}/test_uids.py::test_s45_locals_and_a_server_share_no_uid",
        f"{_SECURITY}/test_job_uids.py",
    ],
    "helper/syscalls.py": [
        "tests/helper/test_syscalls.py",
        f"{_SECURITY}/test_job_attributes.py",
        f"{_SECURITY}/test_sandbox_probe.py",
        f"{_SECURITY}/test_profiles.py",
        f"{_SECURITY}/test_inherited_state.py",
        *_JOB_ENDS,
        f"{_SECURITY}/test_back_doors.py",
        f"{_SECURITY}/test_names.py",
        f"{_SECURITY}/test_job_isolation.py",
        f"{_SECURITY}/test_sandbox_escape.py",
        f"{_SECURITY}/test_helper_process.py",
        *_FAULTS,
    ],
    "helper/view.py": [
        f"{_SECURITY}/test_sandbox_probe.py",
        f"{_SECURITY}/test_profiles.py",
        f"{_SECURITY}/test_back_doors.py",
        f"{_SECURITY}/test_names.py",
        f"{_SECURITY}/test_machine_pools.py",
        f"{_SECURITY}/test_sandbox_escape.py",
        f"{_SECURITY}/test_inherited_state.py",
        f"{_SECURITY}/test_read_only_view.py",
        *_FAULTS,
    ],
    "helper/spawn.py": [
        f"{_SECURITY}/test_sandbox_probe.py",
        "tests/helper/test_merged_streams.py",
        *_JOB_ENDS,
        f"{_SECURITY}/test_start_request.py",
        f"{_SECURITY}/test_inherited_state.py",
        f"{_SECURITY}/test_helper_process.py",
        f"{_SECURITY}/test_job_isolation.py",
        f"{_SECURITY}/test_sandbox_escape.py",
        *_FAULTS,
    ],
    "telehandler/api/auth.py": ["tests/api/test_auth.py"],
    "telehandler/api/tls.py": [
        "tests/api/test_tls.py",
        f"{_SECURITY}/test_server_log.py",
        f"{_SECURITY}/test_certificates.py::test_s36_tls_1_2_is_refused",
        f"{_SECURITY}/test_certificates.py::test_s36_no_certificate",
    ],
    "telehandler/api/service.py": [
        "tests/api/test_service.py",
        "tests/api/test_call_timeout.py",
        f"{_SECURITY}/test_tls_version.py",
        f"{_SECURITY}/test_certificates.py",
        f"{_SECURITY}/test_api_hardening.py",
    ],
    "telehandler/api/validation.py": ["tests/api/test_validation.py"],
}
for _path in sorted((ROOT / "helper").glob("[!_]*.py")):  # those that are not told apart yet
    SUITES.setdefault(f"helper/{_path.name}", _HELPER)
