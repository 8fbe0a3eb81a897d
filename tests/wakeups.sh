#!/bin/sh
# Shows that a worker sleeps while a step runs without a deadline: it makes no wake-ups but MQTT keep-alive.
#
#   tests/wakeups.sh [BINARY [SECONDS]]     default: target/release/job-worker, else target/debug/job-worker; 12 s
#
# Counts the voluntary context switches of each thread of the worker, idle and then while a step sleeps, and asserts only
# that they are no more than a handful. With a keep-alive of 30 s there is none to expect in 12 s. Needs mosquitto.
set -eu
cd "$(dirname "$0")/.."
binary=${1:-target/release/job-worker}
[ -x "$binary" ] || binary=target/debug/job-worker
seconds=${2:-12}
handful=5
PATH=$PATH:/usr/sbin

dir=$(mktemp -d)
broker='' worker=''
finish() {
    for pid in $worker $broker; do kill "$pid" 2>/dev/null || :; done
    wait
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM

fail() {
    echo "$*" >&2
    cat "$dir/worker.log" >&2 || :
    exit 1
}

# await WHAT COMMAND...: until the command succeeds, for 10 s at most
await() {
    what=$1
    shift
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "waited in vain for $what"
        sleep 0.1
    done
}

# A free port below the range of outgoing connections.
port=$((20000 + $$ % 10000))
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >"$dir/mosquitto.conf"
mosquitto -c "$dir/mosquitto.conf" >"$dir/mosquitto.log" 2>&1 &
broker=$!
await "mosquitto on port $port" grep -q running "$dir/mosquitto.log"

MQTT_URL=mqtt://127.0.0.1:$port MQTT_KEEP_ALIVE=30 "$binary" >"$dir/worker.log" 2>&1 &
worker=$!
await "an idle worker" grep -q "waiting for a job" "$dir/worker.log"

# switches: NAME COUNT of each thread
switches() {
    for task in /proc/"$worker"/task/*; do
        echo "$(cat "$task/comm") $(sed -n 's/^voluntary_ctxt_switches:[[:space:]]*//p' "$task/status")"
    done
}

# measure WHAT SECONDS
measure() {
    sleep 1 # what was just going on has settled
    switches >"$dir/before"
    sleep "$2"
    switches >"$dir/after"
    total=0
    figures=$(paste -d' ' "$dir/before" "$dir/after" | while read -r name before _ after; do echo "$name $((after - before))"; done)
    for count in $(echo "$figures" | awk '{ print $NF }'); do total=$((total + count)); done
    echo "$1, $2 s: $total wake-ups ($(echo "$figures" | paste -sd, | sed 's/,/, /g'))"
    [ "$total" -le $handful ] || fail "that is more than a handful ($handful)"
}

measure "idle" 3
mkdir "$dir/job"
echo '{ "steps": ["touch running; sleep 1000"] }' >"$dir/job/job.json"
mosquitto_pub -p "$port" -q 1 -t jobs/pending -m "{ \"id\": \"sleeper\", \"workDir\": \"$dir/job\" }"
await "the step" test -e "$dir/job/running"
measure "while a step sleeps" "$seconds"
