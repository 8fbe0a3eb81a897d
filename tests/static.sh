#!/usr/bin/env bash
# The released binaries: one file that runs on any Linux host. Builds them for x86-64 and three kinds of ARM, with TLS and without
# it (`-minimal`), shows that they are static, runs tests/smoke.sh with each of them (ARM under qemu) and a job through mqtts:// with
# those that have TLS, prints size and memory, and checks the systemd unit.
#
#   tests/static.sh [TARGET...]
#
# TIME_LIMIT (480) seconds are spent at most; what had no time is named at the end. TOOLS_DIR: ../shared/tools. The binaries
# stay in DIST, if that is set.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export TOOLS_DIR=${TOOLS_DIR:-$root/../shared/tools}
PATH=$PATH:/usr/sbin
limit=${TIME_LIMIT:-480}
targets=("$@")
[ $# -gt 0 ] || targets=(x86_64-unknown-linux-musl aarch64-unknown-linux-musl arm-unknown-linux-musleabihf
    armv7-unknown-linux-musleabihf)
# kilobytes of memory and bytes of the file that a static x86-64 binary without TLS may take
memory_budget=1536 size_budget=1300000

scratch=$(mktemp -d)
. tests/support/check.sh
dist=${DIST:-$scratch/dist}
broker='' worker='' port='' left_out=()

clean_up() {
    status=$?
    trap - EXIT
    for process in $worker $broker; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    rm -rf "$scratch"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 143' TERM INT

skip() { echo "left out: static binaries: $*"; exit 0; }
leave_out() { left_out+=("$*"); echo "left out: $*"; }


if [ ! -x "$TOOLS_DIR/static-build.sh" ] && ! command -v cargo-zigbuild >/dev/null; then
    skip "no $TOOLS_DIR/static-build.sh and no cargo-zigbuild, so nothing was built (see .ci/release)"
fi
for program in readelf mosquitto mosquitto_pub mosquitto_sub openssl; do
    command -v $program >/dev/null || skip "$program is missing, so nothing was built (apt-get install binutils mosquitto mosquitto-clients openssl)"
done

# It listens at $port, and with TLS at the next one. Its certificate is one that it has signed itself.
start_broker() {
    local try
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext \
        subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -keyout "$scratch/key.pem" \
        -out "$scratch/certificate.pem" 2>/dev/null
    chmod 644 "$scratch/key.pem" # for the user mosquitto
    chmod 755 "$scratch"
    for try in 1 2 3 4 5 6 7 8 9; do
        port=$((12000 + ($$ * 7 + try * 1009) % 20000))
        cat >"$scratch/mosquitto.conf" <<END_OF_SETTINGS
allow_anonymous true
listener $port 127.0.0.1
listener $((port + 1)) 127.0.0.1
certfile $scratch/certificate.pem
keyfile $scratch/key.pem
END_OF_SETTINGS
        mosquitto -c "$scratch/mosquitto.conf" >"$scratch/mosquitto.log" 2>&1 &
        broker=$!
        # It ends at once where the port is taken.
        while kill -0 $broker 2>/dev/null; do
            ! grep -qs " running" "$scratch/mosquitto.log" || return 0
            sleep 0.05
        done
    done
    echo "static.sh: no Mosquitto: $(cat "$scratch/mosquitto.log")" >&2
    exit 1
}

emulator() { # target
    case $1 in
        aarch64-*) echo qemu-aarch64-static ;;
        armv7-*) echo qemu-arm-static -cpu cortex-a7 ;;
        arm-*) echo qemu-arm-static -cpu arm1176 ;; # the Pi Zero's: ARMv7 instructions end it
    esac
}

is_static() { ! readelf -lW "$1" | grep -q INTERP && ! readelf -dW "$1" 2>/dev/null | grep -q NEEDED; }
has_no_path_of_this_machine() { ! grep -aqF -e "$HOME/" -e registry/src -e "$root" "$1"; }
is_armv6() { readelf -A "$1" | grep -q 'Tag_CPU_arch: v6'; }
is_small() { [ "$(stat -c %s "$1")" -le $size_budget ]; }

# With nothing around it but itself, and its emulator.
runs_alone() { # binary, emulator
    local dir=$scratch/alone program
    rm -rf "$dir" && mkdir "$dir" && cp "$1" "$dir/job-worker"
    set -- $2
    if [ $# -gt 0 ]; then
        program=$1; shift
        cp "$(command -v "$program")" "$dir/qemu" && set -- /qemu "$@"
    fi
    chroot "$dir" "$@" /job-worker --version
}

# What README.md says, as it stands there. `sudo` puts an emulator in front of the program, which the kernel does on hosts that have
# binfmt. /usr/local/bin is an empty directory of this test.
readme() { # emulator, binary
    local dir=$scratch/readme
    mkdir -p "$dir/bin" "$dir/home"
    cp "$2" "$dir/"
    cat >"$dir/bin/sudo" <<END
#!/bin/sh -e
"\$@"
mv /usr/local/bin/job-worker /usr/local/bin/program
printf '#!/bin/sh\nexec $1 /usr/local/bin/program "\$@"\n' >/usr/local/bin/job-worker
chmod +x /usr/local/bin/job-worker
END
    chmod +x "$dir/bin/sudo"
    for client in mosquitto_sub mosquitto_rr; do printf -- '-h 127.0.0.1\n-p %s\n' "$port" >"$dir/home/$client"; done
    tests/readme.sh "Static binary" >"$dir/home/script"
    (cd "$dir" && PATH=$dir/bin:/usr/local/bin:$PATH XDG_CONFIG_HOME=$dir/home MQTT_URL=mqtt://localhost:$port timeout 60 \
        unshare --mount sh -euc 'mount -t tmpfs none /usr/local/bin; . home/script' </dev/null) | tee /dev/stderr | grep -x 'Hello from hello'
}

# As Docker counts SIGRTMIN+3, which the C library of these binaries calls by another number.
stops_as_images_of_systemd() { # binary
    local status=0
    MQTT_URL=mqtt://localhost:$port WORKER_ID=stopped "$1" supervise &
    worker=$!
    until_true sh -c "mosquitto_sub -h 127.0.0.1 -p $port -t jobs/workers/stopped -C 1 -W 1 2>/dev/null | grep -q idle" || return 1
    kill -37 $worker
    wait $worker || status=$?
    worker=
    [ $status -eq 0 ] || { echo "ended with $status"; return 1; }
}

says_target() { [ "$($1 --version)" = "job-worker $version ($2)" ]; }

memory_of() { sed -n "s/^$2:[^0-9]*\([0-9]*\) kB/\1/p" "$1"; }

# Memory while it waits, and the most that it took until the end of a step's run: the step looks at its parent.
measure_memory() { # command, settings...; into $idle, $peak
    local name=memory-$RANDOM dir=$scratch/memory
    rm -rf "$dir" && mkdir "$dir"
    echo '{ "steps": ["head -c 50000000 /dev/zero", "cat /proc/$PPID/status >peak"] }' >"$dir/job.json"
    env "${@:2}" WORKER_ID=$name MQTT_TOPIC_ROOT=$name $1 >"$scratch/worker.log" 2>&1 &
    worker=$!
    until_true sh -c "mosquitto_sub -h 127.0.0.1 -p $port -t $name/workers/$name -C 1 -W 1 2>/dev/null | grep -q idle" || return 1
    idle=$(memory_of "/proc/$worker/status" VmRSS)
    mosquitto_pub -h 127.0.0.1 -p "$port" -q 1 -t "$name/pending" -m "{ \"id\": \"m\", \"workDir\": \"$dir\" }"
    wait $worker || return 1
    worker=
    peak=$(memory_of "$dir/peak" VmHWM)
}

lacks_download() {
    ! grep -q 'could not compile' "$scratch/build.log" && grep -qE -e 'Could not resolve|[Tt]emporary failure|(Failed|Unable) to fetch' \
        -e 'Unable to locate package|failed to download|download of .* failed|NewConnectionError' "$scratch/build.log"
}

# One binary: what it is called here, and what .ci/release calls its target and kind.
test_binary() { # name, target, kind
    local name=$1 target=$2 kind=$3 binary=$dist/job-worker-$version-$2
    local settings=("MQTT_URL=mqtt://localhost:$port") rest status=0 emulator idle=- peak=- note=''
    echo "--- [$SECONDS s] $name"
    # a minute is for the tests of what has been built
    rest=$((limit - 60 - SECONDS))
    if [ $rest -lt 20 ]; then
        leave_out "$name: no time left of $limit s"
        return
    fi
    KINDS=$kind timeout -k 10 $rest .ci/release "$dist" "$target" >"$scratch/build.log" 2>&1 || status=$?
    if [ $status -eq 124 ]; then
        leave_out "$name: not built within the $rest s that were left of $limit s"
        return
    fi
    if [ $status -ne 0 ] && lacks_download; then
        leave_out "$name: not built, since something could not be downloaded ($(tail -n 1 "$scratch/build.log"))"
        return
    fi
    check "$name: is built" [ $status -eq 0 ]
    if [ $status -ne 0 ]; then tail -n 30 "$scratch/build.log"; return; fi
    case $kind in
        ordinary) settings=("MQTT_URL=mqtts://localhost:$((port + 1))" "MQTT_CA_FILE=$scratch/certificate.pem") ;;
        minimal) binary+=-minimal ;;
    esac
    check "$name: is static" is_static "$binary"
    check "$name: holds no path of this machine" has_no_path_of_this_machine "$binary"
    case $name in
        arm-*) check "$name: is for ARMv6" is_armv6 "$binary" ;;
        x86_64-*minimal) check "$name: takes at most $size_budget bytes" is_small "$binary" ;;
    esac
    emulator=$(emulator "$target")
    if [ -n "$emulator" ] && ! command -v ${emulator%% *} >/dev/null; then
        leave_out "$name: was built, and not run: ${emulator%% *} is missing"
        return
    fi
    if [ "$(id -u)" = 0 ]; then
        check "$name: runs in a root directory that holds nothing else" runs_alone "$binary" "$emulator"
    else
        leave_out "$name: a run in an empty root directory: that takes root"
    fi
    check "$name: --version names it" says_target "$emulator $binary" "$target"
    [ "$name" != aarch64-unknown-linux-musl ] || check "$name: README.md: from nothing to the log of a job" readme "$emulator" "$binary"
    [ -n "$emulator" ] || check "$name: SIGRTMIN+3 is a stop" stops_as_images_of_systemd "$binary"
    check "$name: tests/smoke.sh" env JOB_WORKER="$emulator $binary" MQTT_HOST=127.0.0.1 MQTT_PORT="$port" sh tests/smoke.sh
    check "$name: runs a job on $settings" measure_memory "$emulator $binary" "${settings[@]}"
    if [ -n "$emulator" ]; then
        note="qemu's memory included"
    elif [ "$kind" = minimal ] && [ "$idle" != - ]; then
        note="budget $memory_budget kB: $([ "$idle" -le $memory_budget ] && [ "$peak" -le $memory_budget ] && echo kept || echo EXCEEDED)"
    fi
    size[$name]=$(stat -c %s "$binary")
    printf '%-38s %9d bytes  idle %5s kB  peak %5s kB  %s\n' "$name" "${size[$name]}" "$idle" "$peak" "$note" >>"$scratch/table"
}

declare -A size
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
start_broker
printf '' >"$scratch/table"
for target in "${targets[@]}"; do
    test_binary "$target" "$target" ordinary
    test_binary "$target minimal" "$target" minimal
    ordinary=${size[$target]:-} minimal=${size[$target minimal]:-}
    [ -z "$ordinary" ] || [ -z "$minimal" ] || printf '%-38s %9d bytes\n' "  so much is TLS" $((ordinary - minimal)) >>"$scratch/table"
done

# The units name a program that is not installed here: the one that was just built takes its place. Also with the lines that
# a user is told to uncomment.
verify_unit() { # file, name, sed expression
    local program
    program=$(find "$dist" -name 'job-worker-*' | sort | tail -n 1)
    sed -e "s|/usr/local/bin/job-worker |$program |" -e "$3" "examples/systemd/$1" >"$scratch/$2"
    # It warns of mistakes, and says so with its exit status only for some of them.
    local said
    said=$(systemd-analyze verify --man=no "$scratch/$2" 2>&1) || { echo "$said"; return 1; }
    ! grep -F "$2" <<<"$said"
}
if [ ! -e "$dist/SHA256SUMS" ]; then
    leave_out "the checksums and the systemd unit: nothing was built"
else
    check "the checksums are right" sh -c "cd '$dist' && sha256sum -c SHA256SUMS"
    if command -v systemd-analyze >/dev/null; then
        for unit in job-worker.service:job-worker.service job-worker@.service:job-worker@1.service; do
            check "systemd takes ${unit#*:}" verify_unit "${unit%:*}" "${unit#*:}" ''
            check "systemd takes ${unit#*:} with a password" verify_unit "${unit%:*}" "${unit#*:}" 's/^# \(LoadCredential\|Environment\)/\1/'
        done
    else
        leave_out "the systemd unit: no systemd-analyze"
    fi
fi

echo
cat "$scratch/table"
for what in "${left_out[@]}"; do echo "left out: $what"; done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
