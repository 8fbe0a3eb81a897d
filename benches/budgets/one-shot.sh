#!/bin/sh
# One turn of the loop that one would write with mosquitto_sub and mosquitto_pub, at the best delivery guarantee that they
# can give: a persistent session, and QoS 1 in both directions. The request is only a directory, so that nothing has to be
# parsed. mosquitto_sub acknowledges before the step begins: a job whose shell dies is lost, which no option changes.
dir=$(mosquitto_sub -h 127.0.0.1 -p "$PORT" -i "$WORKER_ID" -c -q 1 -C 1 -t "$MQTT_TOPIC_ROOT/pending")
cd "$dir" || exit
sh -c true > job.log 2>&1
code=$?
document="{\"status\":\"success\",\"exitCode\":$code}"
echo "$document" > .job.status.json.tmp
mv .job.status.json.tmp job.status.json
mosquitto_pub -h 127.0.0.1 -p "$PORT" -q 1 -t "$MQTT_TOPIC_ROOT/results/a" -m "$document"
