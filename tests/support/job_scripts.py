"""Shell scripts that are jobs of several tests."""

# A job with a subtree: 20 processes, sessions of their own, a pipe held by all. `mark` is the seconds they sleep.
TREE = "for i in $(seq 20); do setsid sleep {mark} & done; echo up; wait"
# SIGUSR2 has it write a line, SIGUSR1 end.
UNTIL_SIGUSR1 = "trap 'echo still' USR2; trap 'echo end; exit 5' USR1; echo up; while :; do sleep 0.05; done"
