# What the scripts for other brokers share. Sourced; `worker` is the binary.

dir=$(mktemp -d)
pids=()
members=()

end_all() {
  local pid
  for pid in "${pids[@]}"; do
    disown "$pid" 2>/dev/null || true # the shell would report its end
    pkill -9 -P "$pid" 2>/dev/null || true # the worker of a supervisor
    kill -9 "$pid" 2>/dev/null || true
  done
}
finish() {
  local status=$?
  end_all
  if [ "$status" -ne 0 ]; then tail -n 20 "$dir"/*.log >&2 || true; fi
  rm -rf "$dir"
}
trap finish EXIT

fail() { echo "FAILED $*" >&2; exit 1; } # stdout may be a file
await() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" 2>/dev/null; do
    [ "$SECONDS" -lt "$end" ] || fail "waited in vain for $what"
    sleep 0.05
  done
}

# Below those that the kernel takes for outgoing connections, so that it stays free while its server is down.
free_port() {
  perl -MIO::Socket::INET -e 'do { $port = 10000 + int rand 20000 } until IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1", LocalPort => $port); print $port'
}
pub() { mosquitto_pub -h 127.0.0.1 -p "$port" -V 311 -q 1 "$@"; }
listen() { # hears the results in heard.log
  mosquitto_sub -h 127.0.0.1 -p "$port" -V 311 -i listener -q 1 -v -t 'jobs/results/+' >> "$dir/heard.log" & pids+=($!)
  await 30 "the listener" listens
}
listens() { pub -t "jobs/results/ready-$port" -m 1 && grep -q "ready-$port" "$dir/heard.log"; }

submit() { # ID STEP [ROOT]; the id is the key, too: over 3.1.1 nothing else tells a redelivery from a fresh request
  mkdir -p "$dir/$1"
  printf '{"steps": ["echo $PPID > worker; echo $JOB_ATTEMPT >> runs; %s"]}' "$2" > "$dir/$1/job.json"
  pub -t "${3-jobs}/pending" -m "{\"id\": \"$1\", \"workDir\": \"$dir/$1\", \"key\": \"$1\"}"
}
results() { grep -c "^[a-z]*/results/$1 .*\"status\":\"success\"" "$dir/heard.log"; }
one_result() { [ "$(results "$1")" -ge 1 ]; }
ran() { # ID ATTEMPT...
  local id=$1 runs
  shift
  runs=$(tr '\n' ' ' < "$dir/$id/runs")
  [ "$runs" = "$* " ] || fail "$id ran as $runs"
}
ends_well() { wait "$1" || fail "the worker ended with $?"; }

# Three members of a pool share one queue: no short job waits for a long one, each runs once, and the job of a member that is
# killed is another's next attempt.
pool() { # what the members are told beside the broker: NAME=VALUE...
  local name n pid
  for name in a b c; do
    env -u JOB_WORKER "$@" MQTT_URL="mqtt://127.0.0.1:$port" WORKER_ID=$name JOB_POOL=pool JOB_ROOT="$dir" \
      "$worker" supervise 2> "$dir/$name.log" &
    pids+=("$!")
    members+=("$!")
  done
  await 30 "the long job" slow_runs
  for n in 1 2 3 4 5 6 7 8; do submit "quick-$n" true; done
  for n in 1 2 3 4 5 6 7 8; do
    await 30 "quick-$n beside the long job" one_result "quick-$n"
    ran "quick-$n" 1
  done
  # the worker is the parent of its step's shell
  kill -9 "$(cat "$dir/slow/worker")"
  await 30 "the next attempt" grep -q 2 "$dir/slow/runs"
  touch "$dir/slow/open"
  await 30 "the result of the long job" one_result slow
  ran slow 1 2
  await 30 "no claim to be left" no_claim
  kill -TERM "${members[@]}"
  for pid in "${members[@]}"; do ends_well "$pid"; done
}
slow_runs() { # before the first head is subscribed, the broker keeps no request; the key makes one job of all
  [ -e "$dir/slow/runs" ] || submit slow 'while [ ! -e open ]; do sleep 0.05; done'
  sleep 0.5
  [ -e "$dir/slow/runs" ]
}
no_claim() { [ -z "$(find "$dir/.job-worker/pool" -name '[cn]-*')" ]; }
