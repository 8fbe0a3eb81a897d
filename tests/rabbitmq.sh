#!/usr/bin/env bash
# A pool on RabbitMQ (Debian's: MQTT 3.1.1 by a plugin): three members share one queue, no short job waits for a long one, each runs
# once, and the job of a member that is killed is another's next attempt.
#
# Needs rabbitmq-server, mosquitto_pub and mosquitto_sub. JOB_WORKER: the binary. Takes about ten seconds.
set -euo pipefail
worker=${JOB_WORKER:?the path of the binary}
server=/usr/lib/rabbitmq/bin/rabbitmq-server
dir=$(mktemp -d)
pids=()
finish() {
  local status=$?
  for pid in "${pids[@]}"; do
    disown "$pid" 2>/dev/null || true # the shell would report its end
    pkill -9 -P "$pid" 2>/dev/null || true # the worker of a supervisor
    kill -9 "$pid" 2>/dev/null || true
  done
  pkill -9 -f "$RABBITMQ_NODENAME" 2>/dev/null || true
  for _ in {1..20}; do # the node has started it, and it stays while it believes that the node lives
    ERL_EPMD_PORT=$epmd_port epmd -kill > "$dir/epmd.log" 2>&1 || break
    grep -q "not allowed" "$dir/epmd.log" || break
    sleep 0.1
  done
  if [ "$status" -ne 0 ]; then tail -n 20 "$dir"/*.log >&2 || true; fi
  rm -rf "$dir"
}

fail() { echo "FAILED $*"; exit 1; }
await() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" 2>/dev/null; do
    [ "$SECONDS" -lt "$end" ] || fail "waited in vain for $what"
    sleep 0.05
  done
}

# --- the broker, a node of its own on ports that the kernel has free
free_port() { perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport'; }
port=$(free_port)
cat > "$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$(free_port)
mqtt.listeners.tcp.1 = 127.0.0.1:$port
mqtt.allow_anonymous = true
CONF
echo '[rabbitmq_mqtt].' > "$dir/plugins"
export RABBITMQ_NODENAME=job-worker-$$@localhost RABBITMQ_CONFIG_FILE=$dir/rabbitmq RABBITMQ_ENABLED_PLUGINS_FILE=$dir/plugins
export RABBITMQ_MNESIA_BASE=$dir/mnesia RABBITMQ_LOG_BASE=$dir/server RABBITMQ_PID_FILE=$dir/pid
trap finish EXIT
dist_port=$(free_port) epmd_port=$(free_port)
HOME=$dir RABBITMQ_DIST_PORT=$dist_port ERL_EPMD_PORT=$epmd_port "$server" > "$dir/server.log" 2>&1 & pids+=($!)
pub() { mosquitto_pub -h 127.0.0.1 -p "$port" -V 311 -q 1 "$@"; }
until pub -t jobs/ready -m 1 2> /dev/null; do
  [ "$SECONDS" -lt 60 ] || { echo "left out: RabbitMQ: it does not start here"; exit 0; }
  sleep 0.2
done
mosquitto_sub -h 127.0.0.1 -p "$port" -V 311 -i listener -q 1 -v -t 'jobs/results/+' > "$dir/heard.log" & pids+=($!)
listens() { pub -t jobs/results/ready -m 1 && grep -q ready "$dir/heard.log"; }
await 30 "the listener" listens

members=()
for name in a b c; do
  env -u JOB_WORKER MQTT_URL="mqtt://127.0.0.1:$port" MQTT_PROTOCOL_VERSION=4 WORKER_ID=$name JOB_POOL=pool JOB_ROOT="$dir" \
    "$worker" supervise 2> "$dir/$name.log" &
  pids+=("$!")
  members+=("$!")
done

# what is published before the head is subscribed is lost
submit() { # ID STEP
  mkdir -p "$dir/$1"
  printf '{"steps": ["echo $PPID > worker; echo $JOB_ATTEMPT >> runs; %s"]}' "$2" > "$dir/$1/job.json"
  pub -t jobs/pending -m "{\"id\": \"$1\", \"workDir\": \"$dir/$1\", \"key\": \"$1\"}"
}
results() { grep -c "^jobs/results/$1 .*\"status\":\"success\"" "$dir/heard.log"; }
one_result() { [ "$(results "$1")" = 1 ]; }
ran() { [ "$(tr '\n' ' ' < "$dir/$1/runs")" = "$2" ] || fail "$1 ran as $(tr '\n' ' ' < "$dir/$1/runs")"; }

a_head_is_there() { grep -q "queue begins now" "$dir"/{a,b,c}.log; }
await 30 "a head" a_head_is_there
slow() { # until the head has subscribed, nobody keeps it; the key makes one job of many requests
  [ -e "$dir/slow/runs" ] || submit slow 'while [ ! -e open ]; do sleep 0.05; done'
  sleep 0.5
  [ -e "$dir/slow/runs" ]
}
await 30 "the long job" slow
for n in 1 2 3 4 5 6 7 8; do submit "quick-$n" true; done
for n in 1 2 3 4 5 6 7 8; do
  await 30 "quick-$n beside the long job" one_result "quick-$n"
  ran "quick-$n" "1 "
done
kill -9 "$(cat "$dir/slow/worker")"
await 30 "the next attempt" grep -q 2 "$dir/slow/runs"
touch "$dir/slow/open"
await 30 "the result of the long job" one_result slow
ran slow "1 2 "
claims() { ls "$dir/.job-worker/pool" | grep -c '^[cn]-'; }
no_claim() { [ "$(claims)" = 0 ]; }
await 30 "no claim to be left" no_claim
kill -TERM "${members[@]}"
for pid in "${members[@]}"; do wait "$pid" || fail "a member ended with $?"; done
echo "ok: three members share a queue on RabbitMQ, and take over what one has died of"
