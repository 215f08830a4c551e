#!/bin/bash
# `make run`: the whole main job on this machine, with real processes and nothing left behind.
# A server with its root helper, a job streamed and compared, a second one watched and stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

telehandler=$PWD/.venv/bin/telehandler
installed=/usr/local/lib/telehandler
helper_policy=
server=
port=
work=$(mktemp -d "${TMPDIR:-/tmp}/telehandler-run.XXXXXX")
# The server gives up root, and its new user must reach its state directory in here.
chmod 711 "$work"

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'make run: %s\n' "$*" >&2
    if [ -s "$work/server.log" ]; then
        echo 'the server said:' >&2
        sed 's/^/    /' "$work/server.log" >&2
    fi
    exit 1
}

stop_server() {
    [ -n "$server" ] || return 0
    kill -TERM "$server" 2>/dev/null || true
    local status=0
    wait "$server" || status=$?
    server=
    return "$status"
}

clean_up() {
    local status=$?
    trap - EXIT INT TERM
    stop_server || true
    rm -rf "$work" || true
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_server() {
    local options=(--listen 127.0.0.1:0 --cert ssl/server.pem --key ssl/server-key.pem --state-dir "$work/state")
    [ -z "$helper_policy" ] || options+=(--helper-policy "$helper_policy")
    : >"$work/server.log"
    "$telehandler" server "${options[@]}" 2>"$work/server.log" &
    server=$!
    local waited=0
    until port=$(sed -n 's/^telehandler: listening on .*:\([0-9]*\)$/\1/p' "$work/server.log") && [ -n "$port" ]; do
        kill -0 "$server" 2>/dev/null || fail 'the server did not start'
        waited=$((waited + 1))
        [ "$waited" -lt 300 ] || fail 'the server does not listen after 30 seconds'
        sleep 0.1
    done
}

client() {
    local verb=$1
    shift
    "$telehandler" client "$verb" --server "localhost:$port" --jidfile "$work/job_id" "$@"
}

if [ "$(id -u)" = 0 ]; then
    owner=$(stat -c %U .)
    [ "$owner" = root ] || fail "root runs only what is root's, and this checkout is $owner's: run it as $owner"
    limitless=$PWD/contrib/policy-no-limits.toml
else
    command -v sudo >/dev/null || fail 'neither root nor sudo: the helper needs one of them'
    say "Installing the helper for sudo, owned by root, in $installed (make uninstall removes it)"
    sudo -v || fail 'this user may not use sudo'
    make --no-print-directory --silent install-helper
    limitless=$installed/policy-no-limits.toml
fi

say 'Starting the server, its api without privileges and its helper as root'
start_server
refusal=
client run -- true 2>"$work/refusal" || refusal=$(<"$work/refusal")
case $refusal in
    '') ;;
    *controller*)
        printf '%s\n' "$refusal"
        say 'LIMITS ARE NOT ENFORCED ON THIS MACHINE: cgroup v2 lacks controllers here. Starting again without them'
        stop_server || fail 'the server did not end well'
        helper_policy=$limitless
        start_server
        client run -- true || fail 'a first job did not run'
        ;;
    *) fail "a first job did not run: $refusal" ;;
esac
ps -o user:12,pid,args -p "$server" | cut -c1-110
echo "listening on localhost:$port"

# shellcheck disable=SC2016 # the job's shell is to expand it
count='i=0; while [ $i -lt 500 ]; do i=$((i + 1)); echo $i; done'
say "client run -- sh -c '$count'"
client run -- sh -c "$count" >"$work/output" || fail "the job failed with exit code $?"
seq 1 500 | cmp - "$work/output" || fail 'the output differs from the numbers 1 to 500'
echo "1 to 500 arrived, $(wc -c <"$work/output") bytes, each the same"

say "client run --detach -- sh -c 'echo up; sleep 1000', a watcher on it, and client stop"
client run --detach -- sh -c 'echo up; sleep 1000' >/dev/null
client watch >"$work/watched" 2>/dev/null &
watcher=$!
waited=0
until [ -s "$work/watched" ]; do
    waited=$((waited + 1))
    [ "$waited" -lt 300 ] || fail 'the watcher saw nothing within 30 seconds'
    sleep 0.1
done
client stop || fail 'stop failed'
wait "$watcher" || true
[ "$(<"$work/watched")" = up ] || fail 'the watcher saw something else than "up"'
client status | tee "$work/status"
grep -qi stopped "$work/status" || fail 'the job is not stopped'

say 'Ending the server'
stop_server || fail "the server ended with status $?"
echo 'Done: a job streamed and compared, a job watched and stopped, nothing left running.'
[ -z "$helper_policy" ] || echo 'Without limits for cpu, memory, io and processes: see above.'
