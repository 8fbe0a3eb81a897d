#!/usr/bin/env bash
# A pool on RabbitMQ (Debian's: MQTT 3.1.1 by a plugin): `pool` in tests/support/broker.sh.
#
# Needs rabbitmq-server, mosquitto_pub and mosquitto_sub. JOB_WORKER: the binary. Takes about ten seconds.
set -euo pipefail
worker=${JOB_WORKER:?the path of the binary}
. "$(dirname "$0")/support/broker.sh"

# --- the broker: a node of its own, on free ports
port=$(free_port) epmd_port=$(free_port) dist_port=$(free_port)
cat > "$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$(free_port)
mqtt.listeners.tcp.1 = 127.0.0.1:$port
mqtt.allow_anonymous = true
CONF
echo '[rabbitmq_mqtt].' > "$dir/plugins"
export RABBITMQ_NODENAME=job-worker-$$@localhost RABBITMQ_CONFIG_FILE=$dir/rabbitmq RABBITMQ_ENABLED_PLUGINS_FILE=$dir/plugins
export RABBITMQ_MNESIA_BASE=$dir/mnesia RABBITMQ_LOG_BASE=$dir/server RABBITMQ_PID_FILE=$dir/pid
end_node() {
  local status=$?
  kill -9 "$(cat "$RABBITMQ_PID_FILE")" 2>/dev/null || true
  (exit "$status")
  finish
}
trap end_node EXIT
export ERL_EPMD_PORT=$epmd_port
epmd -address 127.0.0.1 2> "$dir/epmd.log" & pids+=($!) # else the node starts one that outlives it
HOME=$dir RABBITMQ_DIST_PORT=$dist_port \
  /usr/lib/rabbitmq/bin/rabbitmq-server > "$dir/server.log" 2>&1 & pids+=($!)
until pub -t jobs/ready -m 1 2> /dev/null; do
  [ "$SECONDS" -lt 60 ] || { echo "left out: RabbitMQ: it does not start here"; exit 0; }
  sleep 0.2
done
listen

pool MQTT_PROTOCOL_VERSION=4
echo "ok: three members share a queue on RabbitMQ, and take over what one has died of"
