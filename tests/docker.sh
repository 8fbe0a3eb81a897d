#!/usr/bin/env bash
# The image and the compose file on a real Docker engine: one job per container life, a killed container, a killed broker,
# `docker stop` in mid-job, and the pauses between short jobs under `restart: always` and under `supervise`.
#
#   tests/docker.sh
#
# The engine: docker-engine.sh (in TOOLS_DIR: ../shared/tools) where present, one of its own in a private network, without a
# registry, its base images made here; else the engine that DOCKER_HOST or the default socket leads to.
#
# The Dockerfile's stage `build` compiles in an image from a registry and is not run here: .ci/image gives the other stages a static
# binary that is built beforehand (.ci/release), or JOB_WORKER_STATIC. TIME_LIMIT (240) seconds are spent at most.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export TOOLS_DIR=${TOOLS_DIR:-$root/../shared/tools}
PATH=$PATH:/usr/sbin
limit=${TIME_LIMIT:-240}
short_jobs=${SHORT_JOBS:-9}

# The limit holds for whatever is waited for; the end of this very process cleans up.
if [ -z "${DOCKER_TEST_BOUNDED:-}" ]; then
    DOCKER_TEST_BOUNDED=1 exec timeout -k 30 "$limit" "$0" "$@"
fi

engine=$TOOLS_DIR/docker-engine.sh
scratch=$(mktemp -d)
. tests/support/check.sh
project=job-worker-test-$$
engine_is_ours='' composed='' finished=''
say() { printf -- '--- [%3d s] %s\n' "$SECONDS" "$*"; }
skip() { echo "left out: Docker: $*"; exit 0; }

clean_up() {
    status=$?
    trap - EXIT TERM INT
    [ $status -ne 143 ] || echo "docker.sh: stopped after $SECONDS s (TIME_LIMIT=$limit)"
    [ $status -eq 0 ] || [ -n "$finished" ] || echo "docker.sh: not finished; $passed passed, $failed failed until here"
    # shellcheck disable=SC2046
    docker rm -f $(docker ps -aq --filter "label=$project" 2>/dev/null) >/dev/null 2>&1 || true
    [ ! -e "$scratch/readme" ] || readme docker compose down -v -t 1 >/dev/null 2>&1 || true
    [ -z "$composed" ] || compose down -v --remove-orphans -t 1 >/dev/null 2>&1 || true
    docker rmi -f "$project" "$project:binary" "$project:apk" "$project:ffmpeg" >/dev/null 2>&1 || true
    if [ -n "$engine_is_ours" ]; then
        "$engine" down || true
        # cfg holds the plugins that it has downloaded: kept for the next time
        rm -rf "$E_DIR/data" "$E_DIR/exec"
    fi
    rm -rf "$scratch"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 143' TERM INT


# --- an engine ----------------------------------------------------------------------------------------------------------
if [ -x "$engine" ]; then
    [ "$(id -u)" = 0 ] || skip "$engine needs root"
    export E_DIR=${E_DIR:-/tmp/job-worker-engine-test} E_PRIVATE_NET=1
    mkdir -p "$E_DIR"
    exec 9>"$E_DIR/lock"
    flock -n 9 || skip "another run of this test uses $E_DIR"
    say "engine in $E_DIR"
    engine_is_ours=yes
    "$engine" down # left by a run that was killed
    if ! "$engine" up >"$scratch/exports" 2>"$scratch/engine.log" 9>&-; then
        tail -n 20 "$scratch/engine.log"
        skip "no engine could be started here"
    fi
    # shellcheck disable=SC1091
    . "$scratch/exports"
else
    command -v docker >/dev/null || skip "no $engine and no docker"
    docker info >/dev/null 2>&1 || skip "no $engine, and docker reaches no engine"
    docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 || skip "docker has no compose or no buildx"
fi

# --- a static binary ----------------------------------------------------------------------------------------------------
if [ -z "${JOB_WORKER_STATIC:-}" ]; then
    case $(uname -m) in
        x86_64) target=x86_64-unknown-linux-musl ;;
        aarch64) target=aarch64-unknown-linux-musl ;;
        *) skip "no static binary for $(uname -m) is known here; set JOB_WORKER_STATIC" ;;
    esac
    say "static binary for $target"
    if ! KINDS=ordinary .ci/release "$scratch/built" $target >"$scratch/release.log" 2>&1; then
        tail -n 20 "$scratch/release.log"
        skip "no static binary could be built; set JOB_WORKER_STATIC"
    fi
    JOB_WORKER_STATIC=$(echo "$scratch"/built/job-worker-*-$target)
fi
# where .ci/image looks for it
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
install -D -m 755 "$JOB_WORKER_STATIC" "$scratch/dist/job-worker-$version-$(uname -m)-unknown-linux-musl"

# --- images -------------------------------------------------------------------------------------------------------------
# The broker of compose.yaml without a registry: this machine's own Mosquitto with the libraries that it needs.
mosquitto_image() {
    local dir=$scratch/mosquitto program
    mkdir -p "$dir"/{bin,tmp,etc,usr/sbin,usr/bin,mosquitto/config,mosquitto/data}
    cp /bin/busybox "$dir/bin/"
    for program in sh cat grep kill true; do ln -s busybox "$dir/bin/$program"; done
    for program in mosquitto mosquitto_pub mosquitto_sub mosquitto_rr; do
        program=$(command -v $program)
        cp "$program" "$dir/usr/bin/"
        ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
            mkdir -p "$dir${library%/*}"
            cp -Ln "$library" "$dir$library"
        done
    done
    printf 'root:x:0:0:root:/:/bin/sh\nmosquitto:x:1883:1883::/:/bin/sh\n' >"$dir/etc/passwd"
    printf 'root:x:0:\nmosquitto:x:1883:\n' >"$dir/etc/group"
    echo '127.0.0.1 localhost' >"$dir/etc/hosts"
    chmod 1777 "$dir/tmp" && chown -R 1883:1883 "$dir/mosquitto"
    tar -C "$dir" -c . | docker import --change 'CMD ["/usr/bin/mosquitto", "-c", "/mosquitto/config/mosquitto.conf"]' \
        --change 'ENV PATH=/usr/bin:/bin' - eclipse-mosquitto:2
}

if [ -n "$engine_is_ours" ]; then
    for program in mosquitto mosquitto_pub mosquitto_sub mosquitto_rr; do
        command -v $program >/dev/null || skip "$program is missing (apt-get install mosquitto mosquitto-clients)"
    done
    check "an image of Mosquitto is made of this machine's own" mosquitto_image
fi

build() { .ci/image "$scratch/dist" --load "$@"; }
only_file() { # image: the files that are not Docker's own
    local id
    id=$(docker create --label "$project" "$1")
    docker export "$id" | tar -t | grep -v -e '/$' -e '^dev/' -e '^etc/' -e '^\.dockerenv$'
    docker rm "$id" >/dev/null
}
run() { timeout 60 docker run --rm --label "$project" --network none -v "$scratch/data:/data" "$@"; }
inspect() { docker image inspect -f "$1" "$project"; }

say "images"
mkdir -m 777 "$scratch/data"
# Without them every further failure would be theirs.
check "the stage binary is built" build --target binary -t "$project:binary"
check "the runnable image is built" build -t "$project"
[ $failed -eq 0 ] || exit 1
check "the stage binary holds one file" is job-worker "$(only_file "$project:binary")"
check "the stage binary has the size of that file" is "$(stat -c %s "$JOB_WORKER_STATIC")" \
    "$(docker image inspect -f '{{.Size}}' "$project:binary")"
check "the stage binary runs" timeout 60 docker run --rm --label "$project" "$project:binary" --version
check "the image's version is the program's" is "job-worker $(inspect '{{index .Config.Labels "org.opencontainers.image.version"}}')" \
    "$(run "$project" --version | sed 's/ (.*//')"
check "the working directory is /data" is /data "$(inspect '{{.Config.WorkingDir}}')"
check "the user is not root" is 1000:1000 "$(inspect '{{.Config.User}}')"
check "a new volume is that user's" timeout 60 docker run --rm --label "$project" --network none -v "$project-new:/data" --entrypoint sh \
    "$project" -c 'touch /data/file && [ "$HOME" = /tmp ]'
docker volume rm "$project-new" >/dev/null 2>&1 || true
check "the entry point is a program, not a shell" is '["/usr/local/bin/job-worker"]' "$(inspect '{{json .Config.Entrypoint}}')"

# examples/docker: without a registry, `apk` is a stand-in, and nothing has a network
base=$project options=''
if [ -n "$engine_is_ours" ]; then
    base=$project:apk options='--network none'
    mkdir "$scratch/apk"
    printf '#!/bin/sh\nfor tool; do :; done\nprintf "#!/bin/sh\\necho $tool runs\\n" >"/bin/$tool"; chmod 755 "/bin/$tool"\n' >"$scratch/apk/apk"
    printf 'FROM %s\nCOPY --chmod=755 apk /bin/apk\n' "$project" | docker build -q -t "$base" -f - "$scratch/apk" >/dev/null
fi
sed "s/^FROM job-worker$/FROM $base/" examples/docker/Dockerfile >"$scratch/Dockerfile.ffmpeg"
# shellcheck disable=SC2086
check "the example of an image with tools of its own is built" docker build $options -t "$project:ffmpeg" -f "$scratch/Dockerfile.ffmpeg" examples/docker
mkdir -m 777 "$scratch/data/ffmpeg"
echo '{ "steps": ["ffmpeg -version", "id -u"] }' >"$scratch/data/ffmpeg/job.json"
check "a step has that tool, and is not root" grep -x 1000 <(run "$project:ffmpeg" run ffmpeg)

# As PID 1 the worker itself must find and reap what daemonises.
mkdir -m 777 "$scratch/data/alone"
cat >"$scratch/data/alone/job.json" <<'END'
{ "steps": ["id -u; echo parent $PPID", "setsid sh -c 'sleep 600 & sleep 600' & exit 0", "exit 3"] }
END
status=0
run --user 12345:12345 "$project" run alone >"$scratch/alone.log" 2>&1 || status=$?
check "run DIR as another user and as PID 1: the job's exit code" is 3 $status
check "run DIR as another user and as PID 1: who it was" is "12345 parent 1" \
    "$(grep -x -e 12345 -e 'parent .*' "$scratch/data/alone/job.log" | tr '\n' ' ' | sed 's/ $//')"

# --- compose ------------------------------------------------------------------------------------------------------------
# What differs from compose.yaml: names and folders of this run, and the network that the engine has.
network='' host=mosquitto ports='ports: !override []'
[ -z "$engine_is_ours" ] || { network='network_mode: host'; host=localhost; }
cat >"$scratch/override.yaml" <<END
services:
  mosquitto:
    $ports
    $network
  worker:
    image: $project
    command: \${WORKER_COMMAND:-}
    environment: { MQTT_URL: mqtt://$host, RUST_LOG: debug }
    $network
    volumes: ["$scratch/data:/data"]
  controller:
    image: eclipse-mosquitto:2
    command: mosquitto_sub -h $host -c -i controller -q 1 -t jobs/results/# -F %t
    restart: always
    depends_on: { mosquitto: { condition: service_healthy } }
    $network
END
compose() {
    docker compose --progress quiet -p "$project" --project-directory "$root" -f compose.yaml -f "$scratch/override.yaml" "$@"
}
in_broker() { compose exec -T mosquitto "$@"; }
request() { # id, further fields
    in_broker mosquitto_pub -q 1 -t "${topics:-jobs}/pending" -m "{ \"id\": \"$1\", \"workDir\": \"$1\"${2:-} }"
}
job() { # id, step...
    mkdir -p -m 777 "$scratch/data/$1"
    local id=$1 steps=
    shift
    for step in "$@"; do steps+="${steps:+, }\"$step\""; done
    echo "{ \"steps\": [$steps] }" >"$scratch/data/$id/job.json"
}
status_is() { grep -q "\"status\": *\"$2\"" "$scratch/data/$1/job.status.json" 2>/dev/null; }
field() { sed -n "s/.*\"$2\": *\"\{0,1\}\([^\",]*\).*/\1/p" "$scratch/data/$1/job.status.json" | head -n 1; }
# The ids of results in the order of their first arrival. At QoS 1 the broker may well deliver one twice.
results() { docker logs "$project-controller-1" | sed -n 's|^jobs/results/||p' | awk '!seen[$0]++'; }
have_arrived() { [ "$(results | grep -cx -- "$(printf '%s\n' "$@")")" = $# ]; }
arrived() { # id...: waits for the results of all of them
    until_true have_arrived "$@"
    results | grep -x -- "$(printf '%s\n' "$@")" | tr '\n' ' ' | sed 's/ $//'
}
worker_state() { docker inspect -f "{{.State.$1}}" "$project-worker-1"; }

# --- README.md ----------------------------------------------------------------------------------------------------------
say "what README.md says of Docker, as it stands there"
# What differs from compose.yaml is said in the environment.
mkdir "$scratch/readme"
cp -R compose.yaml examples "$scratch/readme/"
cat >"$scratch/readme/override.yaml" <<END
services:
  mosquitto:
    $ports
    $network
  worker:
    image: $project
    environment: { MQTT_URL: mqtt://$host }
    $network
END
readme() { # command...
    (cd "$scratch/readme" && COMPOSE_PROJECT_NAME=$project-readme COMPOSE_FILE=compose.yaml:override.yaml timeout 100 "$@")
}
# With Node-RED where there is one, in the engine's network; what npx fetches is here already.
node_red=${NODE_RED_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/job-worker}/node-red-4/node_modules/node-red/red.js
mkdir "$scratch/bin"
printf '#!/bin/sh\nshift 2\nexec node "%s" "$@"\n' "$node_red" >"$scratch/bin/npx"
chmod +x "$scratch/bin/npx"
blocks() {
    tests/readme.sh Docker
    [ -n "$with_node_red" ] || return 0
    tests/readme.sh "From Node-RED"
    echo 'until cat data/nodered_*/job.log | grep -x building; do sleep 0.1; done; kill $!'
}
with_node_red=''
if [ -z "$engine_is_ours" ]; then
    echo "left out: Docker: README.md with Node-RED (the engine is not ours)"
elif ! command -v curl >/dev/null || ! node tests/node-red/controller.mjs --available >/dev/null 2>&1; then
    echo "left out: Docker: README.md with Node-RED (there is no node, npm, curl or registry)"
else
    with_node_red=yes
fi
blocks >"$scratch/blocks"
enter=''
[ -z "$engine_is_ours" ] || enter="nsenter -n -t $(cat "$E_DIR/docker.pid")"
# shellcheck disable=SC2086
PATH=$scratch/bin:$PATH readme $enter sh -eu "$scratch/blocks" </dev/null >"$scratch/readme.log" 2>&1 || tail -n 20 "$scratch/readme.log"
check "README.md: from nothing to the log of a job" grep -x 'Hello from hello' "$scratch/readme.log"
[ -z "$with_node_red" ] || check "README.md: and on with Node-RED to the log of a job of its own" grep -x building "$scratch/readme.log"
readme docker compose down -v -t 1 >/dev/null 2>&1

say "compose up"
composed=yes
check "compose.yaml is valid as it is" docker compose -f compose.yaml config -q
check "docker compose up" compose up -d --no-build --pull missing
mkdir -m 777 "$scratch/data/hello"
# as README.md and compose.yaml say it
check "a job: its result is the reply" in_broker mosquitto_rr -h $host -q 1 -t jobs/pending -e jobs/results/hello -W 60 \
    -m '{ "id": "hello", "workDir": "hello", "steps": ["echo Hello from $JOB_ID"] }'
check "a job: its result arrives" is hello "$(arrived hello)"
check "a job: it succeeded" status_is hello success
check "a job: its log has the output" grep -qx 'Hello from hello' "$scratch/data/hello/job.log"
check "the health check finds the broker" until_true compose exec -T worker job-worker check --connect
job checked 'echo ran'
request checked
check "the health check: the worker goes on" is checked "$(arrived checked)"

alone=$(sed -n 's/^\$ \(docker run -d --name worker \)/\1/p' docs/install.md |
    sed "s/--name worker/--label $project --network host -e MQTT_TOPIC_ROOT=alone/; s/192.168.1.5/localhost/; s/ job-worker / $project /")
if [ -n "$engine_is_ours" ]; then
    check "a worker alone, for a broker that is there: up" env -C "$scratch" sh -c "$alone"
    check "a worker alone: is there" in_broker mosquitto_sub -t alone/workers/+ -C 1 -W 20
    topics=alone request alone ', "steps": ["pwd"]'
    check "a worker alone: runs a job" until_true grep -qx /data/alone "$scratch/data/alone/job.log"
    docker rm -f "$(docker ps -q --filter "label=$project")" >/dev/null
fi

for id in loop-1 loop-2 loop-3; do job $id 'cat /proc/1/stat | cut -d\" \" -f22'; request $id; done
check "the restart loop: three results in order" is "loop-1 loop-2 loop-3" "$(arrived loop-1 loop-2 loop-3)"
check "the restart loop: a fresh process for each" is 3 "$(grep -hx '[0-9]*' "$scratch"/data/loop-*/job.log | sort -u | wc -l)"

# --- several workers ----------------------------------------------------------------------------------------------------
say "docker compose up -d --scale worker=3"
running() { [ "$(docker ps -q --filter "label=com.docker.compose.project=$project" --filter label=com.docker.compose.service=worker | wc -l)" = "$1" ]; }
for id in side-1 side-2 side-3; do job $id 'touch began' 'while [ ! -e ../go ]; do sleep 0.1; done'; request $id; done
scale() { WORKER_COMMAND=supervise compose up -d --no-build --scale worker="$1"; }
check "three workers: up" scale 3
check "three workers: they run" running 3
check "three workers: each has a name of its own" until_true sh -c "[ \$(docker exec $project-mosquitto-1 mosquitto_sub -h $host -t 'jobs/workers/+' \
    --retained-only -W 1 2>/dev/null | grep -c '\"busy\"') = 3 ]"
for id in side-1 side-2 side-3; do
    check "three workers: one has $id while the others run" until_true test -e "$scratch/data/$id/began"
done
touch "$scratch/data/go"
check "three workers: all results arrive" is 3 "$(arrived side-1 side-2 side-3 | wc -w)"
rm "$scratch/data/go"
job left 'touch runs' 'while [ ! -e ../go ]; do sleep 0.1; done'
request left
check "one worker again: a job runs on one of the three" until_true test -e "$scratch/data/left/runs"
check "one worker again: down" scale 1
check "one worker again: it runs" running 1
touch "$scratch/data/go"
check "one worker again: no job is lost" is left "$(arrived left)"
check "one worker again: no claim is left" until_true sh -c "! ls '$scratch/data/.job-worker/workers' | grep -q ^c-"
rm "$scratch/data/go"

# --- deaths -------------------------------------------------------------------------------------------------------------
say "a killed container"
job killed 'echo attempt $JOB_ATTEMPT' '[ -e ../go ] || sleep 600'
request killed
check "a killed container: its job runs" until_true grep -qx 'attempt 1' "$scratch/data/killed/job.log"
docker kill "$project-worker-1" >/dev/null
touch "$scratch/data/go"
compose up -d --no-build worker >/dev/null 2>&1
check "a killed container: the next one reports the job" is killed "$(arrived killed)"
check "a killed container: as its second attempt" is "success 2" "$(field killed status) $(field killed attempt)"

say "a killed broker"
rm "$scratch/data/go"
job held 'echo started' 'while [ ! -e ../go ]; do sleep 0.1; done'
job queued 'echo ran >>runs'
request held
check "a killed broker: a job runs" until_true grep -q started "$scratch/data/held/job.log"
request queued
check "a killed broker: it has the queue on disk first" until_true in_broker grep -q '"queued"' /mosquitto/data/mosquitto.db
compose kill -s KILL mosquitto >/dev/null 2>&1
touch "$scratch/data/go"
check "a killed broker: the job goes on to its end" until_true status_is held success
compose up -d --no-build mosquitto >/dev/null 2>&1
check "a killed broker: both results arrive when it is back" is "held queued" "$(arrived held queued)"
check "a killed broker: the queued job ran once" is 1 "$(wc -l <"$scratch/data/queued/runs")"

say "docker stop in mid-job"
rm "$scratch/data/go"
job stopped 'echo attempt $JOB_ATTEMPT' '[ -e ../go ] || sleep 600'
request stopped
check "docker stop: the job runs" until_true grep -qx 'attempt 1' "$scratch/data/stopped/job.log"
compose stop worker >/dev/null 2>&1
check "docker stop: the worker ends by itself, with 0" is 0 "$(worker_state ExitCode)"
check "docker stop: the job is interrupted" status_is stopped interrupted
touch "$scratch/data/go"
compose start worker >/dev/null 2>&1
check "docker stop: the job is run after the start" is stopped "$(arrived stopped)"
check "docker stop: it succeeded" status_is stopped success

say "docker run in a step, as docs/words.md has it"
mkdir "$scratch/data/nested"
sed -n '/^{ "steps": \[ { "run": "docker rm/,/^```/p' docs/words.md | sed '/^```/d; s|node:20-slim npm test|--network none alpine:3 sh wait.sh|' >"$scratch/data/nested/job.json"
printf 'trap "" TERM\ntouch began\nsleep 300 & wait; sleep 300\n' >"$scratch/data/nested/wait.sh"
JOB_STOP_GRACE=1 "$JOB_WORKER_STATIC" run "$scratch/data/nested" >"$scratch/nested.log" 2>&1 &
nested=$!
check "docker run in a step: runs" until_true test -e "$scratch/data/nested/began"
kill $nested
status=0
wait $nested || status=$?
check "docker run in a step: is cancelled" is 130 $status
check "docker run in a step: nothing is left" is '' "$(docker ps -aq --filter name=job-nested)"

# --- pauses between short jobs ------------------------------------------------------------------------------------------
milliseconds() { date -d "$(field "$1" "$2")" +%s%3N; }
# From the end of each job to the start of the next, of those that have run.
gaps() { # prefix
    local n previous='' line='' sum=0
    for n in $(seq "$short_jobs"); do
        status_is "$1-$n" success || break
        if [ -n "$previous" ]; then
            gap=$(($(milliseconds "$1-$n" startedAt) - previous))
            line+=" $gap"
            sum=$((sum + gap))
        fi
        previous=$(milliseconds "$1-$n" finishedAt)
    done
    echo "ms:$line; together $sum ms"
}
of_queue() { seq -s ' ' -f "$1-%.0f" "$short_jobs"; } # prefix
queue() { # prefix
    local id
    for id in $(of_queue "$1"); do job "$id" true; request "$id"; done
}
fresh_worker() { # command: a container that knows of no earlier restart, for the queue that is there already
    WORKER_COMMAND=$1 compose up -d --no-build --force-recreate worker
}

say "$short_jobs short jobs under supervise"
compose stop worker >/dev/null 2>&1
queue supervised
check "supervise: starts" fresh_worker supervise
check "supervise: all are run" until_true status_is "supervised-$short_jobs" success
compose stop worker >/dev/null 2>&1
check "supervise: docker stop ends it by itself, with 0" is 0 "$(worker_state ExitCode)"
check "supervise: every result arrives, in order" is "$(of_queue supervised)" "$(arrived $(of_queue supervised))"

say "$short_jobs short jobs under restart: always (0.1 s, doubling up to 60 s: 9 take 27 s, 12 take 163 s)"
queue restarted
check "restart: always: starts" fresh_worker ''
# what the cleaning up takes is kept free
until status_is "restarted-$short_jobs" success || [ $SECONDS -ge $((limit - 20)) ]; do sleep 0.5; done
echo
echo "pauses under restart: always, $(gaps restarted)"
status_is "restarted-$short_jobs" success || echo "  (only these: TIME_LIMIT=$limit s left no time for all $short_jobs jobs)"
echo "pauses under supervise,       $(gaps supervised)"
echo "left out: Docker: the Dockerfile's stage \`build\` (it needs rust:1-alpine from a registry), and images for ARM"
finished=yes
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
