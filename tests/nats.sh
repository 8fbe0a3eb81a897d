#!/usr/bin/env bash
# The worker on NATS (nats-server with JetStream), whose MQTT is 3.1.1 only and which redelivers on the live connection
# after 30 s without an acknowledgement:
#
#   1. without configuration the worker falls back to 3.1.1, says so, and runs a job end to end;
#   2. a job of 40 s runs once, though its request is delivered twice while it runs;
#   3. a result that was never acknowledged is answered from the file when the request comes again: a redelivery has the
#      DUP flag and the packet identifier that it had before;
#   4. three members of a pool share one queue: no short job waits for a long one, each runs once, and the job of a member that
#      is killed is another's next attempt.
#
# Needs nats-server, mosquitto_pub and mosquitto_sub. JOB_WORKER: the binary. Takes about two minutes.
set -euo pipefail
worker=${JOB_WORKER:?the path of the binary}
. "$(dirname "$0")/support/broker.sh"

# --- the broker, on free ports
start_nats() { # NAME [SETTING]: sets `port`
  port=$(free_port)
  cat > "$dir/$1.conf" <<CONF
server_name: job_worker_test
listen: "127.0.0.1:$(free_port)"
jetstream { store_dir: "$dir/$1.jetstream" }
mqtt { listen: "127.0.0.1:$port"
       ${2-} }
CONF
  nats-server -c "$dir/$1.conf" -D -V -l "$dir/$1.log" & pids+=($!)
  await 30 "nats-server" pub -t jobs/ready -m 1
}
start_worker() { # NAME
  env -u MQTT_PROTOCOL_VERSION MQTT_URL="mqtt://127.0.0.1:$port" RUST_LOG=debug "$worker" 2> "$dir/$1.log" &
  pid=$!
  pids+=("$pid")
}
waits() { grep -q "waiting for a job" "$dir/$1.log"; }
ran_once() { ran "$1" 1; }

start_nats nats
listen

# --- 1
start_worker first
await 30 "an idle worker" waits first
submit short true
await 30 "the result" one_result short
ends_well "$pid"
ran_once short
grep -q "the broker has no MQTT 5: speaking 3.1.1" "$dir/first.log" || fail "no notice of the fallback"
echo "ok: falls back to 3.1.1 with a notice, and runs a job end to end"

# --- 2
start_worker second
await 30 "an idle worker" waits second
submit long "sleep 40"
await 90 "the result" one_result long
ends_well "$pid"
ran_once long
grep -q '"node-worker-01" - ->> .PUBLISH jobs/pending dup=true' "$dir/nats.log" || fail "NATS has redelivered nothing"
[ "$(results long)" = 1 ] || fail "$(results long) results of one job"
start_worker third
await 30 "an idle worker" waits third
sleep 1
kill -0 "$pid" || fail "something was left in the queue"
kill -TERM "$pid"
ends_well "$pid"
echo "ok: a job of 40 s runs once although NATS redelivers its request after 30 s"

# --- 3: the worker is killed between the result on disk and its acknowledgement: it is frozen in its step's last moment
start_worker fourth
await 30 "an idle worker" waits fourth
submit killed 'while [ -e gate ] || [ ! -e open ]; do sleep 0.02; done'
await 30 "the step" test -e "$dir/killed/runs"
nats=${pids[0]}
kill -STOP "$nats"
touch "$dir/killed/open"
await 30 "the result on disk" grep -q '"status":"success"' "$dir/killed/job.status.json"
kill -9 "$pid"
wait "$pid" 2>/dev/null || true
kill -CONT "$nats"
start_worker fifth
await 90 "the stored result" grep -q "killed: over already" "$dir/fifth.log"
await 30 "the result" one_result killed
ends_well "$pid"
ran_once killed
echo "ok: a redelivery after a crash has its key, and gets the stored result"

# --- 4: NATS delivers the next request to a head that is leaving, and again after ack_wait
start_nats quick 'ack_wait: "1s"'
listen
pool
echo "ok: three members share a queue, and take over what one has died of"
echo "all is well"
