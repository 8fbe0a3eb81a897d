# Three nodes of NATS with JetStream, on 127.0.0.1 to 127.0.0.3. Sourced by tests/cluster.sh.

nodes=()
start_node() { # N
  cat > "$dir/node-$1.conf" << CONF
server_name: n$1
listen: "127.0.0.$1:$(free_port)"
http: "127.0.0.$1:$monitor_port"
jetstream { store_dir: "$dir/node-$1.jetstream" }
cluster { name: job_worker_test, listen: "127.0.0.$1:$cluster_port"
          routes: ["nats://127.0.0.1:$cluster_port", "nats://127.0.0.2:$cluster_port", "nats://127.0.0.3:$cluster_port"] }
mqtt { listen: "127.0.0.$1:$port", ack_wait: "1s", stream_replicas: 3, consumer_replicas: 3 }
CONF
  nats-server -c "$dir/node-$1.conf" -l "$dir/node-$1.log" & nodes[$1]=$!
  pids+=($!)
}
end_node() {
  disown "${nodes[$1]}"
  kill -9 "${nodes[$1]}"
}
leader() { # of the stream in which all requests and results are, by whichever node knows it
  local n
  for n in 1 2 3; do
    curl -sf "http://127.0.0.$n:$monitor_port/jsz?accounts=true&streams=true" || continue
  done | awk -F'"' '$4 ~ /^\$MQTT/ { stream = $4 } $2 == "leader" && stream == "$MQTT_msgs" { print substr($4, 2); found = 1; exit } END { exit !found }'
}
