#!/bin/sh
# A whole controller: runs commands as a job on a worker, follows the log, and exits with the job's exit code.
#
#   submit.sh 'npm ci' 'npm test'                each argument is a step
#   INPUT=./project submit.sh 'make'             what is in the directory is copied to the job first
#
# Ctrl-C cancels the job and waits for its end; a second one leaves at once. A job that is still in the queue is withdrawn: no
# worker runs it, also when nobody waits any more. The job's directory stays: it holds what the job has made. Exits with 75
# where there is no broker.
#
#   JOBS_DIR                                     the shared drive, as the workers see it, too (default: here)
#   MQTT_HOST, MQTT_PORT, MQTT_TOPIC_ROOT        (default: localhost, 1883, jobs)
#
# User name, password and TLS come from the Mosquitto clients' own files, ~/.config/mosquitto_pub and mosquitto_sub.
set -eu
[ $# -gt 0 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 64; }

root=${MQTT_TOPIC_ROOT:-jobs}
pub() { mosquitto_pub ${MQTT_HOST:+-h "$MQTT_HOST"} ${MQTT_PORT:+-p "$MQTT_PORT"} -q 1 "$@"; }
sub() { mosquitto_sub ${MQTT_HOST:+-h "$MQTT_HOST"} ${MQTT_PORT:+-p "$MQTT_PORT"} -q 1 "$@"; }
json() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g; s/	/\\t/g' | awk '{ printf "%s%s", sep, $0; sep = "\\n" }'; }

# The directory: mkdir fails where there is one, so nobody else has it; its name is the id.
drive=$(cd "${JOBS_DIR:-.}" && pwd)
id=$(uname -n)_$(date +%Y%m%d_%H%M%S)_$$
dir=$drive/$id
mkdir "$dir"
[ -z "${INPUT:-}" ] || cp -R "$INPUT/." "$dir"
{
    printf '{ "steps": ['
    comma=
    for step; do printf '%s"%s"' "$comma" "$(json "$step")"; comma=', '; done
    printf '] }\n'
} > "$dir/job.json"

# The broker keeps the result for us from before the request is out: it can neither come too early nor be missed.
listen() { sub -i "submit_$id" -t "$root/results/$id" "$@"; }
listen -c -E || { echo "submit: no broker; nothing is published, the job is in $dir" >&2; exit 75; }
scratch=$(mktemp)
listener=
clean_up() {
    [ -z "$listener" ] || kill "$listener" 2>/dev/null || true
    listen -E 2>/dev/null || true # without -c: the broker forgets us
    rm -f "$scratch"
}
trap clean_up EXIT
cancels=0
# The file is for a job that is still in the queue, the message for one that runs; the file first, or a worker could take the
# job between the two.
cancel() {
    cancels=$((cancels + 1))
    if ! touch "$dir/job.cancel"; then
        echo "submit: the job cannot be withdrawn; it will run if a worker takes it" >&2
    elif [ $cancels -lt 2 ]; then
        echo "submit: cancelled; waiting for the worker that has the job, or takes it, to say so (Ctrl-C again: leave)" >&2
    else
        echo "submit: left; the job will not be started any more, and one that runs is asked to stop" >&2
    fi
    [ $cancels -lt 2 ] || exit 130
}
trap cancel INT TERM

pub -t "$root/pending" -m "{ \"id\": \"$id\", \"workDir\": \"$(json "$dir")\" }"
echo "submit: job $id in $dir" >&2

# An open file remembers how far it has been read, so each `cat` shows what is new.
log=
follow() {
    if [ -z "$log" ] && [ -r "$dir/job.log" ]; then log=$dir/job.log; exec 3< "$log"; fi
    [ -z "$log" ] || cat <&3 || true
}
until [ -s "$scratch" ]; do
    if [ -z "$listener" ] || ! kill -0 "$listener" 2>/dev/null; then # Ctrl-C ends it, too
        listen -c -C 1 > "$scratch" & listener=$!
    fi
    follow
    # again and again, since a cancel counts only while a worker has the job; beside us, since bash takes a Ctrl-C that its
    # command deals with for dealt with
    [ $cancels -eq 0 ] || pub -t "$root/cancel/$id" -n &
    sleep 1 || true
done
wait "$listener" || true
(: < "$dir/job.log") 2>/dev/null || true # opening it makes a network drive look for what is new
follow

result=$(cat "$scratch")
echo "submit: $result" >&2
code=${result#*'"exitCode":'}
exit "${code%%[!0-9]*}"
