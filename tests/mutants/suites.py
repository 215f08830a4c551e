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
    f"{_SECURITY}/test_syscall_faults.py::test_a_step_that_fails_before_the_fds_are_in_their_places_is_told_too",
    f"{_SECURITY}/test_syscall_faults.py::test_s16_every_process_is_born_in_the_jobs_cgroup",
    f"{_SECURITY}/test_syscall_faults.py::test_s35_each_fork_ends_in_exec_or_exit",
]
_JOBS = "tests/helper/test_jobs.py"
# A job's life: what is not of the helper alone, and waits for no grace.
_LIFE = [
    f"{_JOBS}::test_exit_codes_and_signals_are_attested",
    f"{_JOBS}::test_working_directories_that_are_refused",
    f"{_JOBS}::test_sigterm_reaches_the_main_process_and_sigint_its_group",
    f"{_JOBS}::test_kill_ends_a_tree_with_sessions_and_daemons",
    f"{_JOBS}::test_a_killed_helper_takes_its_jobs_along_and_the_next_one_sweeps",
    "tests/helper/test_message_bounds.py::test_sigstop_stops_the_job_and_not_its_init",
    *(f"tests/helper/test_message_bounds.py::test_every_signal_arrives[{number}]" for number in (2, 17, 32, 33, 64)),
]
_INHERITED = [
    f"{_SECURITY}/test_inherited_state.py::test_s22_the_umask_is_022_whatever_the_starters",
    f"{_SECURITY}/test_inherited_state.py::test_s22_signals_are_default_whatever_the_starters",
    f"{_SECURITY}/test_inherited_state.py::test_s24_no_mount_travels_to_a_host_whose_mounts_are_shared",
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
        f"{_SECURITY}/test_machine_pools.py::test_s44_processes_are_bounded_without_a_controller_too",
        f"{_SECURITY}/test_job_isolation.py::test_s27_the_keyring_is_the_jobs_own_and_empty",
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
        *_INHERITED,
        *_LIFE,
        f"{_SECURITY}/test_profiles.py::test_s24_binds_hold_for_what_is_mounted_below",
        f"{_SECURITY}/test_profiles.py::test_s24_a_symbolic_link_in_a_path_of_the_policy_is_refused",
        f"{_SECURITY}/test_back_doors.py",
        f"{_SECURITY}/test_job_isolation.py::test_s27_the_keyring_is_the_jobs_own_and_empty",
        *_FAULTS,
    ],
    "helper/view.py": [
        f"{_SECURITY}/test_sandbox_probe.py",
        f"{_SECURITY}/test_profiles.py",
        f"{_SECURITY}/test_back_doors.py",
        f"{_SECURITY}/test_names.py",
        f"{_SECURITY}/test_machine_pools.py::test_s44_terminals_are_bounded",
        f"{_SECURITY}/test_read_only_view.py",
        *_INHERITED,
        f"{_SECURITY}/test_syscall_faults.py::test_s24_nothing_that_is_in_the_way_is_left_there",
    ],
    "helper/spawn.py": [
        f"{_SECURITY}/test_sandbox_probe.py",
        "tests/helper/test_merged_streams.py",
        f"{_SECURITY}/test_job_attributes.py",
        "tests/helper/test_spawn.py",
        f"{_SECURITY}/test_profiles.py::test_profiles_are_chosen_by_name_and_the_first_is_the_default",
        *_LIFE,
        f"{_SECURITY}/test_start_request.py::test_s15_cwd_is_resolved_as_the_job",
        f"{_SECURITY}/test_start_request.py::test_s15_no_fd_is_a_way_out",
        f"{_SECURITY}/test_start_request.py::test_s20_argv_and_env_reach_exec_as_they_are",
        f"{_SECURITY}/test_helper_process.py",
        *_INHERITED,
        *_FAULTS[2:],
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
