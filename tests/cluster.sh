#!/usr/bin/env bash
# Workers on a broker that is a cluster of three nodes, whose nodes are killed (SIGKILL) in turn:
#
#   tests/cluster.sh nats        JetStream, three replicas
#   tests/cluster.sh rabbitmq    quorum queues
#
# One worker with a queue of its own and a pool of three members take 100 jobs each, while these nodes die, each for some seconds: the one that a
# worker is connected to, the one that leads the stream (the queue) of the requests, and each of the three once more. Every job runs once, its
# result comes, and no claim is left.
#
# Needs nats-server or rabbitmq-server, curl, mosquitto_pub and mosquitto_sub. JOB_WORKER: the binary. JOBS: how many for each queue. Takes about a minute.
set -euo pipefail
worker=${JOB_WORKER:?the path of the binary}
broker=${1:?nats or rabbitmq}
jobs=${JOBS:-100}
. "$(dirname "$0")/support/broker.sh"

# One port on all three addresses, for the workers; further ones by number.
port=$(free_port) cluster_port=$(free_port) monitor_port=$(free_port)
url=mqtt://127.0.0.1:$port,127.0.0.2:$port,127.0.0.3:$port

# Publishes by whichever node acknowledges: what that makes twice has the same key.
pub() {
  local n
  until for n in 1 2 3; do timeout 5 mosquitto_pub -h "127.0.0.$n" -p "$port" -V 311 -q 1 "$@" 2> /dev/null && break; done; do sleep 0.2; done
}

# shellcheck source=/dev/null
. "$(dirname "$0")/support/$broker-cluster.sh"

node_is_well() { timeout 5 mosquitto_pub -h "127.0.0.$1" -p "$port" -V 311 -q 1 -t jobs/well -m 1; }
is_up() {
  until node_is_well "$1" 2> /dev/null; do
    [ "$SECONDS" -lt 120 ] || { echo "left out: a cluster of $broker: it does not start here"; exit 0; }
    sleep 0.2
  done
}
kill_node() { # N WHY
  echo "node $1 dies: $2"
  end_node "$1"
  sleep 3 # for so long it is away
  start_node "$1"
  await 120 "node $1 to be back" node_is_well "$1"
}
connected_to() { ss -Htnp state established "dst 127.0.0.$1" | grep -q "\"$(basename "$worker")\""; }
connected_node() { local n; for n in 1 2 3; do if connected_to "$n"; then echo "$n"; return; fi; done; return 1; }

for n in 1 2 3; do
  start_node "$n"
  [ "$broker" = nats ] || is_up "$n" # a node of RabbitMQ joins those that are up already
done
for n in 1 2 3; do is_up "$n"; done
for n in 1 2 3; do # each hears what the others hear; the session is kept while its node is away
  mosquitto_sub -h "127.0.0.$n" -p "$port" -V 311 -i "listener-$n" -c -q 1 -v -t '+/results/+' >> "$dir/heard.log" 2> "$dir/listener-$n.log" & pids+=($!)
done
listeners() { pub -t "jobs/results/ready" -m 1 && [ "$(grep -c "results/ready" "$dir/heard.log")" -ge 3 ]; }
await 30 "the listeners" listeners

start() { # NAME [SETTING...]
  local name=$1
  shift
  env -u JOB_WORKER MQTT_PROTOCOL_VERSION=4 MQTT_URL="$url" WORKER_ID="$name" "$@" "$worker" supervise 2> "$dir/$name.log" & members+=($!) pids+=($!)
}
start own MQTT_TOPIC_ROOT=own
for name in a b c; do start "$name" JOB_POOL=pool JOB_ROOT="$dir"; done
for root in own jobs; do # nobody keeps what is published before the queue exists; the key makes one job of all
  first() { submit "first-$root" true "$root"; sleep 0.5; one_result "first-$root"; }
  await 60 "the queue of $root" first
done

(for ((n = 1; n <= jobs; n++)); do
  submit "own-$n" "sleep 0.$((n % 4))" own
  submit "jobs-$n" "sleep 0.$((n % 8))" jobs
done) & submitter=$!
pids+=("$submitter")

await 30 "a worker's connection" connected_node > "$dir/connected"
kill_node "$(tail -n 1 "$dir/connected")" "a worker is connected to it"
await 60 "a leader" leader > "$dir/leader"
kill_node "$(tail -n 1 "$dir/leader")" "it leads the requests"
for n in 1 2 3; do kill_node "$n" "its turn"; done
wait "$submitter"
for root in own jobs; do
  for ((n = 1; n <= jobs; n++)); do
    await 120 "the result of $root-$n" one_result "$root-$n"
    ran "$root-$n" 1
  done
done
await 30 "no claim to be left" no_claim
kill -TERM "${members[@]}"
for pid in "${members[@]}"; do ends_well "$pid"; done
echo "ok: $((2 * jobs)) jobs on a cluster ($broker) whose nodes die: each ran once, none was lost"
