#!/bin/sh
# Job Worker as seen by a user with a shell: mosquitto_pub, mosquitto_sub and a directory. Nothing else is needed.
#
#   tests/smoke.sh                                       the debug build, on a Mosquitto of its own
#   JOB_WORKER=/usr/bin/job-worker tests/smoke.sh        another worker
#   MQTT_HOST=broker MQTT_PORT=1883 tests/smoke.sh       a broker that is running already
#
# A worker in a container gets its configuration by name and sees the shared drive at the same path:
#
#   export SMOKE_DRIVE=/tmp/smoke; mkdir -p $SMOKE_DRIVE
#   JOB_WORKER="docker run --rm --network host -v $SMOKE_DRIVE:$SMOKE_DRIVE \
#     -e MQTT_URL -e MQTT_TOPIC_ROOT -e WORKER_ID IMAGE" tests/smoke.sh
#
# Prints one line a check and stops with status 1 at the first that fails.
set -eu

JOB_WORKER=${JOB_WORKER:-$(dirname "$0")/../target/debug/job-worker}
PATH=$PATH:/usr/sbin:/usr/local/sbin
SECONDS_TO_WAIT=30

host=${MQTT_HOST:-127.0.0.1}
port=${MQTT_PORT:-}
scratch=$(mktemp -d)
drive=${SMOKE_DRIVE:-$scratch/drive}
mkdir -p "$drive"
broker=
worker=

# Topics and client ids of our own: a broker that is in use is left as it was.
export MQTT_TOPIC_ROOT="smoke-$$"
export WORKER_ID="smoke-worker-$$"
listener="smoke-controller-$$"

pub() { mosquitto_pub -h "$host" -p "$port" "$@"; }
sub() { mosquitto_sub -h "$host" -p "$port" "$@"; }

clean_up() {
    status=$?
    trap - EXIT
    [ -z "$worker" ] || kill "$worker" 2>/dev/null || true
    [ -z "$worker" ] || wait "$worker" 2>/dev/null || true
    if [ -n "$port" ]; then
        # A clean session with the same id ends the one that the broker keeps.
        sub -i "$listener" -t "$MQTT_TOPIC_ROOT/none" -E 2>/dev/null || true
        sub -i "$WORKER_ID" -t "$MQTT_TOPIC_ROOT/none" -E 2>/dev/null || true
        pub -t "$MQTT_TOPIC_ROOT/workers/$WORKER_ID" -r -n 2>/dev/null || true
    fi
    [ -z "$broker" ] || kill "$broker" 2>/dev/null || true
    [ -z "$broker" ] || wait "$broker" 2>/dev/null || true
    rm -rf "$scratch"
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    printf 'FAILED %s\n' "$1"
    [ ! -s "$scratch/worker.log" ] || sed 's/^/    worker: /' "$scratch/worker.log"
    exit 1
}

check() { # what, expected, found
    [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"
    printf 'ok     %s\n' "$1"
}

check_has() { # what, needle, text
    case $3 in
        *"$2"*) printf 'ok     %s\n' "$1" ;;
        *) fail "$1: '$2' is not in: $3" ;;
    esac
}

on_one_line() { tr '\n' ' ' | sed 's/ $//'; }

start_broker() {
    for attempt in 1 2 3 4 5 6 7 8 9; do
        port=$((10000 + ($$ * 7 + attempt * 1009) % 20000))
        printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >"$scratch/mosquitto.conf"
        mosquitto -c "$scratch/mosquitto.conf" >"$scratch/mosquitto.log" 2>&1 &
        broker=$!
        # It exits at once where the port is taken, and else answers in a moment.
        while kill -0 "$broker" 2>/dev/null; do
            if grep -q ' running' "$scratch/mosquitto.log" && sub -t none -E 2>/dev/null; then
                return
            fi
            sleep 0.05
        done
    done
    broker=
    fail "no Mosquitto: $(cat "$scratch/mosquitto.log")"
}

# The broker keeps for us what arrives on the results from here on, whether we are listening or not.
subscribe() { sub -c -i "$listener" -q 1 -t "$MQTT_TOPIC_ROOT/results/#" -t "$MQTT_TOPIC_ROOT/rejected" -E; }

# Takes the given number of answers into $answer, one a line, in their order.
take_answers() {
    answer=$(sub -c -i "$listener" -q 1 -t "$MQTT_TOPIC_ROOT/results/#" -t "$MQTT_TOPIC_ROOT/rejected" \
        -C "$1" -W "$SECONDS_TO_WAIT" -F '%t %p') || fail "no answer within $SECONDS_TO_WAIT s"
}

request() { pub -q 1 -t "$MQTT_TOPIC_ROOT/pending" -m "$1"; }

start_worker() {
    # Several words are a command with arguments.
    # shellcheck disable=SC2086
    $JOB_WORKER >"$scratch/worker.log" 2>&1 &
    worker=$!
}

await_idle() {
    tries=0
    until sub -t "$MQTT_TOPIC_ROOT/workers/$WORKER_ID" -C 1 -W 1 2>/dev/null | grep -q '"idle"'; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || fail "the worker is not idle"
        kill -0 "$worker" 2>/dev/null || fail "the worker has ended"
        sleep 0.05
    done
}

await_exit() {
    tries=0
    while kill -0 "$worker" 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || fail "$1: the worker does not exit"
        sleep 0.05
    done
    status=0
    wait "$worker" || status=$?
    worker=
    check "$1: the worker exits with 0" 0 "$status"
}

make_job() { # name, job.json
    mkdir -p "$drive/$1"
    printf '%s\n' "$2" >"$drive/$1/job.json"
}

[ -n "$port" ] || { [ -n "${MQTT_HOST:-}" ] && port=1883; } || start_broker
export MQTT_URL="mqtt://$host:$port"
subscribe

# --- a good job -------------------------------------------------------------------------------------------------
make_job good '{ "steps": ["echo out", "echo err >&2"] }'
start_worker
await_idle
request '{ "id": "good", "workDir": "'"$drive/good"'" }'
take_answers 1
check_has "a good job: its result arrives" "$MQTT_TOPIC_ROOT/results/good " "$answer"
check_has "a good job: it succeeded" '"success"' "$answer"
check "a good job: the result is the status file" "$answer" "$MQTT_TOPIC_ROOT/results/good $(cat "$drive/good/job.status.json")"
check "a good job: the log starts with the id" "Job ID: good" "$(sed -n 1p "$drive/good/job.log")"
check "a good job: the log has the output" "out err" "$(grep -x -e out -e err "$drive/good/job.log" | on_one_line)"
await_exit "a good job"

# --- a failing job ----------------------------------------------------------------------------------------------
make_job failing '{ "steps": ["exit 7", "touch ran"] }'
start_worker
await_idle
request '{ "id": "failing", "workDir": "'"$drive/failing"'" }'
take_answers 1
answer=$(printf '%s' "$answer" | tr -d ' ')
check_has "a failing job: it failed" '"status":"failed"' "$answer"
check_has "a failing job: with the exit code of its step" '"exitCode":7' "$answer"
check "a failing job: no further step ran" no "$([ -e "$drive/failing/ran" ] && echo yes || echo no)"
await_exit "a failing job"

# --- bad requests, and the worker lives on ------------------------------------------------------------------------
make_job after '{ "steps": ["true"] }'
start_worker
await_idle
request 'this is no request'
take_answers 1
check_has "a bad request: answered on rejected" "$MQTT_TOPIC_ROOT/rejected " "$answer"
check_has "a bad request: with what was sent" 'this is no request' "$answer"
request '{ "id": "nowhere", "workDir": "'"$drive"'/after", "steps": "true" }'
take_answers 1
check_has "a bad request with an id: answered by its id" "$MQTT_TOPIC_ROOT/results/nowhere " "$answer"
check_has "a bad request with an id: rejected" '"rejected"' "$answer"
request '{ "id": "after", "workDir": "'"$drive/after"'" }'
take_answers 1
check_has "a good job after bad ones: it succeeded" '"success"' "$answer"
await_exit "a good job after bad ones"

# --- two jobs queued while no worker is there -----------------------------------------------------------------------
for id in first second; do
    make_job "$id" '{ "steps": ["echo $JOB_ID >> ../order"] }'
    request '{ "id": "'"$id"'", "workDir": "'"$drive/$id"'" }'
done
for id in first second; do
    start_worker
    await_exit "a queued pair, $id"
done
take_answers 2
check "a queued pair: both results, in order" "first second" "$(printf '%s\n' "$answer" | sed -e 's/ .*//' -e 's/.*\///' | on_one_line)"
check "a queued pair: each ran once, in order" "first second" "$(on_one_line <"$drive/order")"

echo 'all is well'
