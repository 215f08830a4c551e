"""Which tests can notice a mutant of a file: the fastest first, since the first that fails is enough."""

from support.checkout import ROOT

_SECURITY = "tests/security"
_JOBS = "tests/helper/test_jobs.py"
_HELPER = [
    f"{_SECURITY}/test_sandbox_probe.py",
    f"{_SECURITY}/test_send_queue.py",
    _JOBS,
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
        "tests/helper/test_limits.py",
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
    "helper/cgroup.py": [
        "tests/helper/test_cgroup.py",
        f"{_JOBS}::test_exit_codes_and_signals_are_attested",
        f"{_JOBS}::test_a_killed_helper_takes_its_jobs_along_and_the_next_one_sweeps",
        f"{_SECURITY}/test_policy_bounds.py::test_s10_a_missing_controller_is_named_unless_the_policy_allows_it",
        f"{_SECURITY}/test_helpers_together.py::test_s51_a_directory_that_is_swept_before_it_is_locked_is_made_again",
    ],
    "helper/jobs.py": [
        "tests/helper/test_job_states.py",
        f"{_JOBS}::test_exit_codes_and_signals_are_attested",
        f"{_JOBS}::test_a_timeout_asks_first_and_kills_after_the_grace",
        f"{_JOBS}::test_kill_ends_a_tree_with_sessions_and_daemons",
        f"{_SECURITY}/test_send_queue.py::test_s1_a_release_before_exited_was_sent_ends_all",
        f"{_SECURITY}/test_start_deadline.py::test_s50_a_start_that_hangs_is_ended_by_a_deadline",
        f"{_SECURITY}/test_start_deadline.py::test_s50_a_start_that_hangs_can_be_ended",
        f"{_SECURITY}/test_start_request.py::test_s9_a_uid_is_free_only_when_its_job_is_forgotten",
        f"{_SECURITY}/test_helper_handover.py",
    ],
    "helper/monitor.py": [
        "tests/helper/test_job_states.py",
        f"{_SECURITY}/test_helper_protocol.py",
        f"--deselect={_SECURITY}/test_helper_protocol.py::test_s3_fds_that_are_passed_are_discarded_and_nothing_grows",
        f"{_SECURITY}/test_helper_handover.py",
        f"{_SECURITY}/test_send_queue.py",
        f"{_SECURITY}/test_policy_bounds.py::test_s8_the_number_of_jobs_and_the_rate_of_starts_are_the_policys",
        f"{_SECURITY}/test_policy_bounds.py::test_s10_a_missing_controller_is_named_unless_the_policy_allows_it",
        f"{_JOBS}::test_check_tells_what_start_would_do_and_makes_nothing",
        f"{_JOBS}::test_its_end_is_the_end_of_all_jobs",
        f"{_JOBS}::test_working_directories_that_are_refused",
        "tests/helper/test_message_bounds.py::test_sigstop_stops_the_job_and_not_its_init",
        "tests/helper/test_message_bounds.py::test_a_directory_that_is_too_long_is_told",
        "tests/helper/test_message_bounds.py::test_the_longest_directory_is_checked",
        "tests/helper/test_message_bounds.py::test_a_job_with_all_its_signals_pending_costs_the_helper_nothing",
        f"{_SECURITY}/test_start_deadline.py::test_s50_a_start_that_hangs_can_be_ended",
        f"{_SECURITY}/test_start_deadline.py::test_s50_what_runs_is_not_cancelled",
        f"{_SECURITY}/test_helper_end.py::test_s41_it_ends_with_the_process_that_made_its_socket",
        f"{_SECURITY}/test_helper_end.py::test_s41_the_other_end_among_what_it_has_not_read_does_not_keep_it",
    ],
    "helper/seccomp.py": [
        f"{_SECURITY}/test_syscall_filter.py",
        f"{_SECURITY}/test_seccomp_filter.py",
        f"{_SECURITY}/test_sandbox_probe.py",
    ],
    "helper/__main__.py": [
        f"{_JOBS}::test_exit_codes_and_signals_are_attested",
        "tests/helper/test_startup.py",
        f"{_SECURITY}/test_log_lines.py",
        f"{_SECURITY}/test_helper_callers.py",
        f"{_SECURITY}/test_helper_caller_state.py",
        f"{_SECURITY}/test_inherited_state.py",
        f"{_SECURITY}/test_helper_process.py",
        f"{_SECURITY}/test_helper_end.py::test_s41_no_fd_can_be_sent_where_the_kernel_can_refuse",
        f"{_JOBS}::test_its_end_is_the_end_of_all_jobs",
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
        f"{_SECURITY}/test_shares.py::test_s52_a_users_requests_are_bounded_in_bytes",
        f"{_SECURITY}/test_shares.py::test_s52_a_flood_of_lists_leaves_another_user_his_turn",
    ],
    "telehandler/api/validation.py": ["tests/api/test_validation.py"],
}
for _path in sorted((ROOT / "helper").glob("[!_]*.py")):  # those that are not told apart yet
    SUITES.setdefault(f"helper/{_path.name}", _HELPER)
