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
SUITES = {
    "helper/wire.py": ["tests/helper/test_wire_format.py", "tests/helper/test_wire.py"],
    "helper/policy.py": [
        "tests/helper/test_policy_values.py",
        "tests/helper/test_policy.py",
        f"{_SECURITY}/test_trusted_files.py::test_s11_cached_bytecode_is_code",
        f"{_SECURITY}/test_trusted_files.py::test_s11_a_policy_that_is_not_roots_alone_does_not_start",
    ],
    "helper/link.py": [
        "tests/helper/test_link.py",
        f"{_SECURITY}/test_send_queue.py",
        f"{_SECURITY}/test_helper_protocol.py::test_s1_malformed_datagrams_end_all",
        f"{_SECURITY}/test_helper_protocol.py::test_s2_whatever_is_over_a_bound_ends_all",
        f"{_SECURITY}/test_helper_end.py::test_s41_the_other_end_among_what_it_has_not_read_does_not_keep_it",
        f"{_SECURITY}/test_helper_end.py::test_s41_a_deaf_helper_ends_at_once_when_told",
    ],
    "helper/seccomp.py": [
        f"{_SECURITY}/test_syscall_filter.py",
        f"{_SECURITY}/test_seccomp_filter.py",
        f"{_SECURITY}/test_sandbox_probe.py",
    ],
    "helper/__main__.py": [
        "tests/helper/test_jobs.py::test_exit_codes_and_signals_are_attested",
        "tests/helper/test_startup.py",
        f"{_SECURITY}/test_log_lines.py",
        f"{_SECURITY}/test_helper_callers.py",
        f"{_SECURITY}/test_helper_caller_state.py",
        f"{_SECURITY}/test_inherited_state.py",
        f"{_SECURITY}/test_helper_process.py",
        f"{_SECURITY}/test_helper_end.py::test_s41_no_fd_can_be_sent_where_the_kernel_can_refuse",
        "tests/helper/test_jobs.py::test_its_end_is_the_end_of_all_jobs",
        f"{_SECURITY}/test_helper_protocol.py::test_s1_malformed_datagrams_end_all",
        f"{_SECURITY}/test_trusted_files.py",
        _INSTALLS,
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
