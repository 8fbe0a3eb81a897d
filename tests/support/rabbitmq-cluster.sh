# Three nodes of RabbitMQ with quorum queues for MQTT, on 127.0.0.1 to 127.0.0.3. Sourced by tests/cluster.sh.

export ERL_EPMD_PORT=$monitor_port
rabbit() { # N COMMAND...
  local n=$1
  shift
  HOME=$dir RABBITMQ_NODENAME=job-worker-$$-$n@localhost RABBITMQ_DIST_PORT=$((cluster_port + n)) RABBITMQ_CONFIG_FILE=$dir/node-$n \
    RABBITMQ_ENABLED_PLUGINS_FILE=$dir/plugins RABBITMQ_MNESIA_BASE=$dir/node-$n.mnesia RABBITMQ_LOG_BASE=$dir/node-$n.server \
    RABBITMQ_PID_FILE=$dir/node-$n.pid "$@"
}
echo '[rabbitmq_mqtt].' > "$dir/plugins"
echo "job-worker-$$" > "$dir/.erlang.cookie"
chmod 400 "$dir/.erlang.cookie"
start_node() { # N
  cat > "$dir/node-$1.conf" << CONF
listeners.tcp.1 = 127.0.0.$1:$((cluster_port - 1))
mqtt.listeners.tcp.1 = 127.0.0.$1:$port
mqtt.allow_anonymous = true
mqtt.durable_queue_type = quorum
cluster_name = job-worker-$$
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = job-worker-$$-1@localhost
cluster_formation.classic_config.nodes.2 = job-worker-$$-2@localhost
cluster_formation.classic_config.nodes.3 = job-worker-$$-3@localhost
cluster_partition_handling = pause_minority
CONF
  rabbit "$1" /usr/lib/rabbitmq/bin/rabbitmq-server > "$dir/node-$1.log" 2>&1 & pids+=($!)
}
end_node() { kill -9 "$(cat "$dir/node-$1.pid")"; }
leader() { # of the own worker's queue
  rabbit 1 /usr/lib/rabbitmq/bin/rabbitmqctl -q list_queues name leader |
    sed -n "s/^mqtt-subscription-ownqos1.*job-worker-$$-\([123]\)@.*/\1/p" | grep .
}
end_nodes() {
  local status=$? n
  for n in 1 2 3; do end_node "$n" 2> /dev/null || true; done
  (exit "$status")
  finish
}
trap end_nodes EXIT
epmd -address 127.0.0.1 2> "$dir/epmd.log" & pids+=($!) # else the first node starts one that outlives it
