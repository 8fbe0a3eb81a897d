#!/bin/sh
# A whole controller: runs commands as a job on a worker, follows the log, and exits with the job's exit code.
#
#   submit.sh [OPTION...] STEP...                each STEP is one shell command line
#
#   INPUT=. submit.sh 'npm ci' 'npm test'        what is in the directory is copied to the job first
#   submit.sh --timeout 600 --env CC=clang 'make'
#   submit.sh --json 'date' | jq .durationMs
#
# Options:
#   --json       print the result on stdout as the worker has published it; the log goes to stderr
#   --id ID      the job's id, and the name of its directory (default: made of host, time and process)
#   --timeout SECONDS, --max-attempts N, --env NAME=VALUE (as often as needed)
#                for the job.json: limit of the whole job, how often it may be begun, variables of the steps
#   --help       this text
#   -h -p -u -P -V --cafile --capath --cert --key --ciphers --tls-version --tls-use-os-certs --insecure
#                as the Mosquitto clients have them. They read ~/.config/mosquitto_pub and mosquitto_sub, too: a password
#                is better there than behind -P, where everybody on this host sees it
#
# Environment:
#   JOBS_DIR                                     the shared drive (default: here)
#   WORKERS_DIR                                  the same drive, where the workers have it under another path
#   MQTT_HOST, MQTT_PORT, MQTT_TOPIC_ROOT        (default: localhost, 1883, jobs)
#
# Ctrl-C withdraws a job that is still in the queue: no worker will run it. It cancels a job that runs, and waits for its end;
# a second one leaves at once. The job's directory stays: it holds what the job has made.
#
# Exit status:
#   0 to 255     the job's exit code, but for 64 and 75: a job that ends with one of these makes it 1, and stderr says so
#   130          cancelled or withdrawn
#   64           usage
#   75           nothing was run, or the script cannot know: no broker, no worker has ever been there, the drive takes nothing, the
#                worker has rejected the job, ... stderr says which. A start that has failed leaves no directory
#                behind; that of a rejected job stays
set -eu

say() { printf 'submit: %s\n' "$*" >&2 || true; } # also where nobody reads it any more

# However this ends, it is by `leave`: no other status is taken for the job's. Until the request is out, nothing is left behind.
code=75 scratch='' listener='' looker='' heard_of='' new=''
leave() { code=$1; exit "$1"; }
fail() { say "$1"; leave 75; }
usage() { say "$1 (submit.sh --help)"; leave 64; }
clean_up() {
    trap '' HUP INT TERM
    for process in $listener $looker; do kill "$process" 2>/dev/null || true; done
    [ -z "$heard_of" ] || listen -E -W 5 >/dev/null 2>&1 || true # without -c: the broker forgets us
    [ -z "$new" ] || rm -rf "$new"
    [ -z "$scratch" ] || rm -rf "$scratch"
    exit "$code"
}
trap clean_up EXIT
trap 'leave 130' HUP INT TERM
json() { # as the inside of a string of JSON
    printf '%s' "$1" | LC_ALL=C awk '
        BEGIN { for (i = 1; i < 32; i++) code[sprintf("%c", i)] = sprintf("\\u%04x", i); code["\""] = "\\\""; code["\\"] = "\\\\" }
        { printf "%s", sep; sep = "\\n"; n = length($0)
          for (i = 1; i <= n; i++) { c = substr($0, i, 1); printf "%s", c in code ? code[c] : c } }'
}
number() { printf '%s\n' "$1" | LC_ALL=C awk '{ print $0 + 0 }'; } # JSON has no .5 and no 007
quoted() { printf " '%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; } # for eval

raw='' id=$(uname -n)_$(date +%Y%m%d_%H%M%S)_$$ options='' limits='' env=''
while [ $# -gt 0 ]; do
    case $1 in
    --help) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"; leave 0 ;;
    --json) raw=yes ;;
    --insecure | --tls-use-os-certs) options="$options $1" ;;
    --id | --timeout | --max-attempts | --env | \
    -h | -p | -u | -P | -V | --cafile | --capath | --cert | --key | --ciphers | --tls-version)
        [ $# -gt 1 ] || usage "$1 needs a value"
        case $1=$2 in
        --id=*) id=$2 ;;
        -h=*) MQTT_HOST=$2 ;;
        -p=*) MQTT_PORT=$2 ;;
        --timeout=*[!0-9.]* | --timeout=*.*.* | --timeout=. | --timeout=) usage "--timeout takes seconds: '$2'" ;;
        --timeout=*) limits="$limits, \"timeoutSeconds\": $(number "$2")" ;;
        --max-attempts=*[!0-9]* | --max-attempts=) usage "--max-attempts takes a number: '$2'" ;;
        --max-attempts=*) limits="$limits, \"maxAttempts\": $(number "$2")" ;;
        --env=[!=]*=*) env="$env, \"$(json "${2%%=*}")\": \"$(json "${2#*=}")\"" ;;
        --env=*) usage "--env takes NAME=VALUE: '$2'" ;;
        *) options="$options $1$(quoted "$2")" ;;
        esac
        shift ;;
    --) shift; break ;;
    -*) usage "unknown option $1" ;;
    *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || usage "no step is given"
case $id in '' | *[/+#[:cntrl:]]*) usage "an id has none of / + # and no control characters: '$id'" ;; esac
[ ${#id} -le 128 ] || usage "an id has at most 128 characters"

root=${MQTT_TOPIC_ROOT:-jobs}
host="${MQTT_HOST:+-h$(quoted "$MQTT_HOST")}${MQTT_PORT:+ -p$(quoted "$MQTT_PORT")}"
pub() { eval "mosquitto_pub -q 1 $version $host $options \"\$@\""; }
sub() { eval "$replace mosquitto_sub -q 1 $host $options \"\$@\""; }
version='' replace=''
# The broker keeps the result for us from before the request is out: it can neither come too early nor be missed.
listen() { sub -i "submit_$id" -t "$root/results/$id" "$@"; }

for program in mosquitto_pub mosquitto_sub awk; do
    command -v $program >/dev/null || fail "$program is missing; nothing is published"
done
drive=$(cd "${JOBS_DIR:-.}" && pwd) || fail "JOBS_DIR=${JOBS_DIR:-.} cannot be entered; nothing is published"
dir=$drive/$id
scratch=$(mktemp -d) || fail "there is no room for our own files; nothing is published"
pause=0.2
sleep 0.01 2>/dev/null || pause=1

# The directory: mkdir fails where there is one, so nobody else has it.
[ ! -e "$dir" ] || usage "$dir is there already"
mkdir "$dir" || fail "the job's directory $dir cannot be made (JOBS_DIR is the drive); nothing is published"
new=$dir
if [ -n "${INPUT:-}" ]; then
    input=$(cd "$INPUT" && pwd -P) || fail "INPUT=$INPUT cannot be entered; nothing is published"
    inside=$(cd "$drive" && pwd -P)
    case $inside in "$input"/*/*) fail "JOBS_DIR lies deep in INPUT, which would be copied into itself; nothing is published" ;; esac
    for entry in "$input"/* "$input"/.[!.]* "$input"/..?*; do
        # neither the drive nor, where INPUT is the drive, the jobs that are there
        [ "$entry" != "$inside" ] || continue
        if [ "$inside" = "$input" ] && { [ "$entry" = "$inside/$id" ] || [ -f "$entry/job.json" ]; }; then continue; fi
        [ -e "$entry" ] || [ -L "$entry" ] || continue # a pattern that found nothing
        cp -RP "$entry" "$dir" || fail "INPUT cannot be copied; nothing is published"
    done
    rm -f "$dir/job.cancel" "$dir/job.status.json" "$dir/job.log" # of another job
fi
{
    printf '{ "steps": ['
    comma=
    for step; do printf '%s"%s"' "$comma" "$(json "$step")"; comma=', '; done
    printf ']%s, "env": { %s } }\n' "$limits" "${env#, }"
} > "$dir/job.json" || fail "job.json cannot be written; nothing is published"
listen -c -E -W 10 ||
    fail "no broker at ${MQTT_HOST:-localhost}${MQTT_PORT:+:$MQTT_PORT} (-h, -p) lets us listen for the result; nothing is published"
heard_of=yes

# Ctrl-C from now on. The file is for a job that is still in the queue, the message for one that runs; the file first, or a
# worker could take the job between the two.
cancelled='' withdrawn=
cancel() {
    [ -z "$cancelled" ] || { say "left without waiting for the end of job $id"; leave 130; }
    cancelled=yes
    if (: > "$dir/job.cancel") 2>/dev/null; then withdrawn=yes; else say "job.cancel cannot be written"; fi
    say "cancelled; waiting for what the worker says, if one has the job (Ctrl-C again: leave)"
}
trap cancel HUP INT TERM

# The `key` makes it harmless that a request comes twice. Only MQTT 5 says that nobody is subscribed (16), or who may not.
request="{ \"id\": \"$(json "$id")\", \"key\": \"$(json "$id")\", \"workDir\": \"$(json "${WORKERS_DIR:-$drive}/$id")\" }"
new=
version='-V 5'
answer=$(pub -d -t "$root/pending" -m "$request" 2>/dev/null) || {
    version=
    answer=$(pub -d -t "$root/pending" -m "$request")
} || {
    : > "$dir/job.cancel" || say "job.cancel cannot be written"
    fail "the broker has not confirmed the request; where it has it all the same, $dir/job.cancel keeps the job from running"
}
case $answer in
*'PUBACK (Mid: 1, RC:16)'*)
    new=$dir
    fail "no worker has ever been on this broker for $root/pending, so nobody would keep the request; nothing is published" ;;
*'PUBACK (Mid: 1, RC:1'[2-9][0-9]\)*)
    new=$dir
    fail "the broker denies what we publish on $root/pending; nothing is published" ;;
esac
set +e # Ctrl-C ends the commands below, too
say "job $id in $dir"

# A field of a document. A quote in a string has a backslash before it, so this finds no field within another's text.
field() { # document, name
    case $1 in *"\"$2\":"*) ;; *) return 0 ;; esac
    value=${1#*"\"$2\":"}
    printf '%s\n' "$value" | sed -e 's/^"\([^"\\]*\(\\.[^"\\]*\)*\)".*/\1/; t text' -e 's/[^0-9].*//; b' \
        -e ':text' -e 's/\\\(["\\]\)/\1/g'
}
journal() { cat "$dir/job.status.json" 2>/dev/null || true; }

# Says what the job waits for, where that is news.
look() {
    trap - EXIT HUP INT TERM
    status=0
    sub -t "$root/workers/+" --retained-only -W 1 > "$scratch/workers" 2>/dev/null || status=$?
    busy=$(grep '"state":"busy"' "$scratch/workers" || true)
    idle=$(grep '"state":"idle"' "$scratch/workers" || true)
    ours=$(printf '%s\n' "$busy" | grep -F "\"job\":\"$(json "$id")\"" || true)
    if [ $status -ne 27 ] && [ $status -ne 0 ]; then # the end of -W, and of what is retained
        text="the broker does not answer; waiting until it is back"
    elif [ -n "$ours" ]; then
        reason=$(field "$ours" waitingFor)
        text=${reason:+worker $(field "$ours" worker) has the job, and waits for $reason}
    elif [ -n "$idle" ]; then
        text="in the queue; worker $(field "$idle" worker) is idle and has not taken it"
    elif [ -n "$busy" ]; then
        text="in the queue; worker $(field "$busy" worker) is busy with job $(field "$busy" job)"
        [ "$(printf '%s\n' "$busy" | wc -l)" -eq 1 ] || text="$text, and so are the others with theirs"
    else
        text="no worker is there; the broker keeps the job until one comes"
    fi
    [ "$text" = "$(cat "$scratch/told" 2>/dev/null)" ] || [ -z "$text" ] || say "$text"
    printf '%s' "$text" > "$scratch/told"
}

# An open file remembers how far it has been read, so each `cat` shows what is new.
log=
follow() {
    if [ -z "$log" ] && [ -r "$dir/job.log" ]; then log=$dir/job.log; exec 3< "$log"; fi
    if [ -z "$log" ]; then return; elif [ -n "$raw" ]; then cat <&3 >&2; else cat <&3; fi
}

# A cancel counts only while a worker has the job, so it is sent again and again; beside us, since bash takes a Ctrl-C that its
# command deals with for dealt with.
canceller='' since=
cancel_or_withdraw() {
    if [ -z "$canceller" ] || ! kill -0 "$canceller" 2>/dev/null; then
        pub -t "$root/cancel/$id" -n 2>/dev/null & canceller=$!
    fi
    since=${since:-$now}
    [ -n "$withdrawn" ] && [ "$now" -gt $((since + 1)) ] || return
    case $state in '' | interrupted)
        say "withdrawn: job $id is still in the queue, and will not be run; a worker that takes it finds $dir/job.cancel"
        leave 130 ;;
    esac
}

# Whether this is a final document: anybody may publish on the topic of the results.
is_result() {
    case $(field "$1" status) in success | failed) ;; *) return 1 ;; esac
    case $(field "$1" exitCode) in '' | *[!0-9]* | ????*) return 1 ;; *) [ "$(field "$1" exitCode)" -le 255 ] ;; esac
}

result='' last='' next_look=$(($(date +%s) + 2)) final=
: > "$scratch/result"
while [ -z "$result" ]; do
    if [ -z "$listener" ] || ! kill -0 "$listener" 2>/dev/null; then # Ctrl-C ends it, too
        if [ -s "$scratch/result" ]; then
            result=$(cat "$scratch/result")
            is_result "$result" && continue
            say "what came as the result is none, and is passed over: $(printf '%.60s' "$result" | tr -d '[:cntrl:]')"
            result=
            : > "$scratch/result"
        fi
        (replace='exec'; listen -c -C 1 >> "$scratch/result" 2>/dev/null) & listener=$!
    fi
    follow
    now=$(date +%s) || continue
    if [ "$now" != "$last" ]; then
        document=$(journal) state='' last=$now
        [ "$(field "$document" key)" != "$id" ] || state=$(field "$document" status)
        case $state in success | failed) final=${final:-$now} ;; esac
        if [ -n "$cancelled" ]; then
            cancel_or_withdraw
        elif [ "$now" -ge "$next_look" ] && [ "$state" != running ] && [ -z "$final" ]; then
            next_look=$((now + 5))
            look & looker=$!
        fi
        # The drive has the result, too: for a broker that does not come back, or has forgotten us.
        [ -z "$final" ] || [ "$now" -le $((final + 5)) ] || result=$document
    fi
    [ -n "$result" ] || sleep $pause
done
trap : HUP INT TERM # to stop a long log
(: < "$dir/job.log") 2>/dev/null || true # opening it makes a network drive look for what is new
follow
trap '' HUP INT TERM

[ -z "$raw" ] || printf '%s\n' "$result"
job_code=$(field "$result" exitCode) error=$(field "$result" error) warning=$(field "$result" warning)
took=$(field "$result" durationMs)
[ -z "$took" ] || took=" in $((took / 1000)).$((took % 1000 / 100)) s"
say "job $id: $(field "$result" status)$took, exit code $job_code${error:+: $error}"
[ -z "$warning" ] || say "warning: $warning"
steps=
case $result in *'"steps":['*) steps=${result#*'"steps":['} ;; esac
case $(field "$result" reason):$steps in
*:*'"status":"success"'* | *:*'"status":"failed"'*) ;; # a step has run
rejected:* | internal:*) say "nothing was run"; leave 75 ;;
esac
case $job_code in
64 | 75) say "exiting with 1 instead of $job_code, which would mean that submit.sh itself has failed"; leave 1 ;;
*) leave "$job_code" ;;
esac
