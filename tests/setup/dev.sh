#!/usr/bin/env bash
# The development environment: a coordinator and three nodes on this machine, with one bucket (a directory) and one
# cluster token. Called by make (dev-setup, dev-start, dev-stop, run-coordinator, run-client-N), after the build.
#
#   dev.sh setup         makes $DEV_DIR with bucket and token; what is there stays
#   dev.sh start         starts what does not run yet, in the background; when something does not start, what this call
#                        began is stopped again
#   dev.sh stop          stops all of it, also nodes that were added by hand, and leaves neither process nor mount
#   dev.sh coordinator   the coordinator in the foreground
#   dev.sh client N      node N in the foreground
#
# Of node N: mount $DEV_MOUNT$N, REST on $DEV_PORT + N, other nodes on $DEV_PORT + 10 + N. The coordinator is on $DEV_PORT.
set -euo pipefail
cd "$(dirname "$0")/../.."

DEV_DIR=${DEV_DIR:-dev}
DEV_MOUNT=${DEV_MOUNT:-/tmp/fuse-client}
DEV_PORT=${DEV_PORT:-8080}
DEV_CAPACITY=${DEV_CAPACITY:-2GiB}
# What nodes started here are given beyond that.
UP_FLAGS=${UP_FLAGS:-}
CTL=$PWD/target/release/fastcache-ctl
NODES=3
# Ports of nodes and of what they tell each other must not meet.
NODE_MAX=9
# How long the coordinator may take to start, and to stop, in tenths of a second.
START_MAX=200
STOP_MAX=200

mkdir -p "$DEV_DIR"
DEV_DIR=$(cd "$DEV_DIR" && pwd)
coordinator_dir=$DEV_DIR/coordinator
pid_file=$DEV_DIR/coordinator.pid
log=$DEV_DIR/coordinator.log

fail() {
    echo "dev: $*" >&2
    exit 1
}

node_dir() { echo "$DEV_DIR/client-$1"; }

# Two calls at once would be in each other's way. What is started must not inherit the lock.
take_lock() {
    exec 9>"$DEV_DIR/lock"
    flock 9
}

setup() {
    mkdir -p "$DEV_DIR/cloud" "$coordinator_dir"
    if [ ! -s "$DEV_DIR/token" ]; then
        (umask 077 && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"$DEV_DIR/token.new")
        mv "$DEV_DIR/token.new" "$DEV_DIR/token"
    fi
}

need_setup() {
    if [ ! -x "$CTL" ] || [ ! -s "$DEV_DIR/token" ]; then
        fail "there is no environment in $DEV_DIR yet: make dev-setup"
    fi
}

# ---- the coordinator -----------------------------------------------------------------------------------------------

# Its process id, if it runs: process ids are given again, so it has to be the program with this directory.
coordinator_pid() {
    local pid
    pid=$(cat "$pid_file" 2>/dev/null) || return 1
    [ -n "$pid" ] && tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF -- "$coordinator_dir" || return 1
    echo "$pid"
}

# exec_coordinator [COMMAND]: in place of this process, so that its id is known before it runs.
exec_coordinator() {
    echo "$BASHPID" >"$pid_file"
    exec "$@" "$CTL" coordinator --listen "127.0.0.1:$DEV_PORT" --state-dir "$coordinator_dir" \
        --cloud-provider dir --cloud-dir "$DEV_DIR/cloud"
}

start_coordinator() {
    local pid from waited=0
    touch "$log"
    from=$(stat -c %s "$log")
    # In a session of its own: Ctrl-C on the terminal ends this call, which then stops what it began in order.
    (exec_coordinator setsid) 9>&- </dev/null >>"$log" 2>&1 &
    pid=$!
    until tail -c "+$((from + 1))" "$log" | grep -q 'coordinator runs'; do
        if ! kill -0 "$pid" 2>/dev/null; then
            tail -c "+$((from + 1))" "$log" | tail -n 5 >&2
            echo "dev: the coordinator did not start; its log is $log" >&2
            return 1
        fi
        waited=$((waited + 1))
        if [ "$waited" -gt "$START_MAX" ]; then
            echo "dev: the coordinator is not ready after $((START_MAX / 10)) s; its log is $log" >&2
            return 1
        fi
        sleep 0.1
    done
}

stop_coordinator() {
    local pid waited=0
    if pid=$(coordinator_pid); then
        kill -TERM "$pid" 2>/dev/null || true
        while coordinator_pid >/dev/null; do
            waited=$((waited + 1))
            [ "$waited" -le "$STOP_MAX" ] || kill -KILL "$pid" 2>/dev/null || true
            sleep 0.1
        done
        echo "coordinator: stopped"
    fi
    rm -f "$pid_file"
}

# ---- the nodes -----------------------------------------------------------------------------------------------------

# node_flags N: the array `flags`.
node_flags() {
    # shellcheck disable=SC2206 # several words
    flags=(--dir "$(node_dir "$1")" --mount "$DEV_MOUNT$1" --port "$((DEV_PORT + $1))"
        --coordinator "127.0.0.1:$DEV_PORT" --bind 127.0.0.1
        --listen "127.0.0.1:$((DEV_PORT + 10 + $1))" --cluster-token-file "$DEV_DIR/token"
        --cloud-provider dir --cloud-dir "$DEV_DIR/cloud" --nvme-capacity "$DEV_CAPACITY" $UP_FLAGS)
}

# Whether a supervisor holds the directory.
is_running() {
    local dir
    dir=$(node_dir "$1")
    [ -e "$dir/lock" ] && ! flock -n "$dir/lock" true
}

start_node() {
    local flags
    node_flags "$1"
    mkdir -p "$(node_dir "$1")"
    # In a session of its own, as the coordinator.
    setsid --wait "$CTL" up --detach "${flags[@]}" 9>&- </dev/null >"$DEV_DIR/up-$1.log" 2>&1 || {
        cat "$DEV_DIR/up-$1.log" >&2
        echo "dev: node $1 did not start" >&2
        return 1
    }
}

# In order, or else by force: a stale mount is in everybody's way.
stop_node() {
    local dir said
    dir=$(node_dir "$1")
    [ -e "$dir/node.json" ] || return 0
    if said=$("$CTL" down --dir "$dir" 2>&1) || said=$("$CTL" down --force --dir "$dir" 2>&1); then
        [ "$said" = "nothing runs there" ] || echo "node $1: $said"
    else
        echo "node $1: $said" >&2
        return 1
    fi
}

# stop_nodes N…, all at once: each waits for its uploads.
stop_nodes() {
    local node job status=0 jobs=()
    for node in "$@"; do
        stop_node "$node" &
        jobs+=("$!")
    done
    for job in "${jobs[@]}"; do wait "$job" || status=1; done
    return "$status"
}

# Numbers of the nodes that were ever started here.
known_nodes() {
    local dir
    for dir in "$DEV_DIR"/client-*/; do
        dir=${dir%/}
        [ ! -d "$dir" ] || echo "${dir##*client-}"
    done
}

# Dead mounts whose node's directory is gone. One that lives is another node's, such as that of `make run`.
unmount_stale() {
    local at
    while read -r at; do
        LC_ALL=C timeout 5 stat -f -- "$at" 2>&1 | grep -qE 'not connected|connection abort' || continue
        echo "unmounting $at, which is dead"
        umount -l "$at" || return 1
    done < <(awk -v prefix="$DEV_MOUNT" '$3 ~ /^fuse/ && $1 ~ /fastcache/ && index($2, prefix) == 1 &&
        substr($2, length(prefix) + 1) ~ /^[0-9]+$/ { print $2 }' /proc/mounts)
}

# ---- all of it -----------------------------------------------------------------------------------------------------

began=()
began_coordinator=
interrupted=

undo() {
    echo "dev: stopping what was started" >&2
    stop_nodes "${began[@]}" >&2 || true
    [ -z "$began_coordinator" ] || stop_coordinator >&2
    exit 1
}

start() {
    local node
    need_setup
    trap 'interrupted=1' INT TERM HUP
    if coordinator_pid >/dev/null; then
        echo "coordinator: already running"
    else
        began_coordinator=1
        start_coordinator || undo
        echo "coordinator: REST and gRPC at http://127.0.0.1:$DEV_PORT"
    fi
    for ((node = 1; node <= NODES; node++)); do
        [ -z "$interrupted" ] || undo
        if is_running "$node"; then
            echo "node $node: already running"
            continue
        fi
        began+=("$node")
        start_node "$node" || undo
        echo "node $node: mounted at $DEV_MOUNT$node, REST at http://127.0.0.1:$((DEV_PORT + node))"
    done
    [ -z "$interrupted" ] || undo
    cat <<END

try:
  export PATH=$PWD/target/release:\$PATH
  echo hello > ${DEV_MOUNT}1/hello; cat ${DEV_MOUNT}2/hello ${DEV_MOUNT}3/hello
  fastcache-ctl state ${DEV_MOUNT}1/hello --dir $(node_dir 1)
  fastcache-ctl status --dir $(node_dir 2)
  curl http://127.0.0.1:$DEV_PORT/api/peers
  fastcache-ctl down --dir $(node_dir 3)      # one leaves; make dev-start brings it back
  make run-client-4                           # one more, in the foreground
stop:
  make dev-stop
END
}

stop() {
    local status=0 nodes
    mapfile -t nodes < <(known_nodes)
    stop_nodes "${nodes[@]}" || status=1
    stop_coordinator
    unmount_stale || status=1
    [ "$status" = 0 ] || fail "something of it is left, see above"
    echo "nothing of it runs any more; files and bucket stay in $DEV_DIR"
}

case "${1:-}" in
setup)
    take_lock
    setup
    echo "ready to start in $DEV_DIR: make dev-start"
    ;;
start)
    take_lock
    start
    ;;
stop)
    take_lock
    stop
    ;;
coordinator)
    setup
    ! coordinator_pid >/dev/null || fail "the coordinator of $DEV_DIR runs already (make dev-stop ends it)"
    exec_coordinator
    ;;
client)
    node=${2:-}
    [[ $node =~ ^[1-9][0-9]*$ && $node -le $NODE_MAX ]] || fail "make run-client-N, with N from 1 to $NODE_MAX"
    setup
    node_flags "$node"
    exec "$CTL" up "${flags[@]}"
    ;;
*)
    echo "usage: $0 setup|start|stop|coordinator|client N" >&2
    exit 2
    ;;
esac
