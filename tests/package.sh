#!/usr/bin/env bash
# The Debian package in a Debian with a running systemd and Mosquitto: install, a job, settings, an upgrade in mid-job and one of an
# idle worker, a reboot in mid-job, several instances, remove, purge. The Debian is made by mmdebstrap and booted by systemd-nspawn,
# with nothing but loopback.
#
#   tests/package.sh
#
# JOB_WORKER_STATIC: the binary to make the package of; else .ci/release builds one. TIME_LIMIT (150) seconds are spent at most.
# target/package-root.tar, the Debian, is kept for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
PATH=$PATH:/usr/sbin:/sbin
limit=${TIME_LIMIT:-150}
target=${CARGO_TARGET_DIR:-$root/target}

# The limit holds for whatever is waited for; the end of this very process cleans up.
if [ -z "${PACKAGE_TEST_BOUNDED:-}" ]; then
    PACKAGE_TEST_BOUNDED=1 exec timeout -k 30 "$limit" "$0" "$@"
fi

# seconds for what comes behind the making of a Debian
needed=70
nspawn='' finished=''
scratch=$(mktemp -d)
. tests/support/check.sh
say() { printf -- '--- [%3d s] %s\n' "$SECONDS" "$*"; }
skip() { echo "left out: Debian package: $*"; exit 0; }

clean_up() {
    status=$?
    trap - EXIT TERM INT
    [ $status -ne 143 ] || echo "package.sh: stopped after $SECONDS s (TIME_LIMIT=$limit)"
    [ $status -eq 0 ] || [ -n "$finished" ] || echo "package.sh: not finished; $passed passed, $failed failed until here"
    if [ -n "$nspawn" ]; then
        # Its init first, with which everything in the system ends: nspawn killed alone would leave that running.
        kill -KILL "$(leader)" 2>/dev/null || true
        kill -TERM "$nspawn" 2>/dev/null || true
        wait "$nspawn" 2>/dev/null || true
        # empty ones alone can go
        find /sys/fs/cgroup/{,*/}{payload,supervisor} -depth -type d -exec rmdir {} + 2>/dev/null || true
    fi
    rm -rf "$scratch"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 143' TERM INT

# The init of the system in the container.
leader() { sed 's/ .*//' "/proc/$nspawn/task/$nspawn/children" 2>/dev/null; }

# --- what it takes ------------------------------------------------------------------------------------------------------
[ "$(id -u)" = 0 ] || skip "systemd-nspawn needs root"
case $(uname -m) in
    x86_64) architecture=amd64 triple=x86_64-unknown-linux-musl ;;
    aarch64) architecture=arm64 triple=aarch64-unknown-linux-musl ;;
    *) skip "no package for $(uname -m) is known here" ;;
esac
for need in mmdebstrap:mmdebstrap systemd-nspawn:systemd-container dpkg-deb:dpkg; do
    command -v "${need%:*}" >/dev/null || skip "${need%:*} is missing (apt-get install ${need#*:})"
done
if [ -z "${JOB_WORKER_STATIC:-}" ]; then
    say "static binary for $triple"
    KINDS=ordinary .ci/release "$scratch/dist" $triple >"$scratch/release.log" 2>&1 || {
        tail -n 20 "$scratch/release.log"
        skip "no static binary could be built; set JOB_WORKER_STATIC"
    }
    JOB_WORKER_STATIC=$(echo "$scratch"/dist/job-worker-*-$triple)
fi

# --- packages -----------------------------------------------------------------------------------------------------------
say "packages"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
package() { # version
    VERSION=$1 .ci/package "$JOB_WORKER_STATIC" $architecture "$scratch/packages" 2>/dev/null
    echo "$scratch/packages/job-worker_$1-1_$architecture.deb"
}
check "the package is built" package "$version"
[ $failed -eq 0 ] || exit 1
first=$(package "$version")
sum=$(sha256sum <"$first")
check "the same source gives the same file" is "$sum" "$(sha256sum <"$(package "$version")")"
second=$(package 99.1.0) third=$(package 99.2.0)
if command -v lintian >/dev/null; then
    check "lintian finds nothing" is "" "$(lintian "$first" 2>&1 | grep -v '^running with root')"
fi
if command -v man >/dev/null; then
    dpkg-deb -x "$first" "$scratch/x"
    check "the man page has no mistake" is "" "$(LC_ALL=C.UTF-8 MANROFFSEQ='' man --warnings -E UTF-8 -l -Tutf8 -Z "$scratch/x/usr/share/man/man1/job-worker.1.gz" 2>&1 >/dev/null)"
fi

# --- a Debian -----------------------------------------------------------------------------------------------------------
tar=$target/package-root.tar
if [ ! -e "$tar" ]; then
    say "a Debian by mmdebstrap"
    suite=$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}")
    if ! timeout $((limit > SECONDS + needed ? limit - SECONDS - needed : 1)) mmdebstrap --quiet --mode=root --variant=minbase --dpkgopt=force-unsafe-io \
        --include=acl,adduser,dbus,mosquitto,mosquitto-clients,sudo,systemd,systemd-sysv "${suite:-stable}" "${tar%.tar}.new.tar" >"$scratch/mmdebstrap.log" 2>&1; then
        tail -n 5 "$scratch/mmdebstrap.log"
        rm -f "${tar%.tar}.new.tar"
        skip "no Debian could be made here within $((limit - needed)) s: that takes the network"
    fi
    mv "${tar%.tar}.new.tar" "$tar"
fi
say "its first boot"
system=$scratch/system
mkdir "$system"
tar -C "$system" -xf "$tar"
cp "$first" "$second" "$third" "$system/root/"
echo '127.0.0.1 localhost' >"$system/etc/hosts"
echo board >"$system/etc/hostname"
boot() {
    systemd-nspawn --quiet --directory="$system" --boot --register=no --keep-unit --private-network \
        >"$scratch/console.log" 2>&1 </dev/null &
    nspawn=$!
}
here() { nsenter -t "$(leader)" --all env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
has_booted() { case $(here systemctl is-system-running) in running | degraded) ;; *) return 1 ;; esac; }
boot
if ! until_true has_booted; then
    tail -n 5 "$scratch/console.log"
    skip "systemd does not boot under systemd-nspawn here"
fi

# --- what the tests ask it ----------------------------------------------------------------------------------------------
active() { here systemctl is-active --quiet "${1:-job-worker}"; }
main_pid() { here systemctl show --property MainPID --value "${1:-job-worker}"; }
said() { here journalctl --no-pager -u job-worker -o cat | grep -F -- "$1"; }
runs_installed() { # pid: whether it runs from the file that is installed now
    is "$(here stat -c %i /usr/bin/job-worker)" "$(here stat -Lc %i "/proc/${1% }/exe")"
}
idle() { # worker
    here timeout 5 mosquitto_sub -t "jobs/workers/${1:-board}" -C 1 | grep -q '"idle"'
}
# As somebody in the group, with the umask that everybody has.
controller() { here setpriv --reuid=controller --regid=controller --init-groups sh -euc "umask 022; cd /srv/jobs; $1"; }
submit() { # id, job.json
    controller "mkdir $1; echo '$2' >$1/job.json; mosquitto_pub -q 1 -t jobs/pending -m '{ \"id\": \"$1\", \"workDir\": \"$1\" }'"
}
status_is() { grep -q "\"status\": *\"$2\"" "$system/srv/jobs/$1/job.status.json" 2>/dev/null; }
field() { sed -n "s/.*\"$2\": *\"\{0,1\}\([^\",]*\).*/\1/p" "$system/srv/jobs/$1/job.status.json" | head -n 1; }
exists() { [ -e "$system/srv/jobs/$1" ]; }
install_it() { here apt-get install -y -qq "/root/${1##*/}"; }

# --- install ------------------------------------------------------------------------------------------------------------
say "install"
check "apt installs it" install_it "$first"
here useradd --create-home --groups job-worker controller
# somebody whom the results are kept for
here mosquitto_sub -c -i results -q 1 -t 'jobs/results/#' -E
check "the service runs" until_true active
check "it starts at each boot" is enabled "$(here systemctl is-enabled job-worker)"
check "/srv/jobs is the group's" is "2775 job-worker job-worker" "$(here stat -c '%a %U %G' /srv/jobs)"
check "the worker waits, under the host's name" until_true idle board
check "the program is that of the package" is "job-worker $version ($triple)" "$(here job-worker --version)"

say "what README.md says of it, as it stands there"
tests/readme.sh "Debian package" >"$system/root/readme.sh"
here sh -euc 'apt-get purge -y -qq job-worker; systemctl start mosquitto' >/dev/null 2>&1
mkdir "$system/root/release" && cp "$first" "$system/root/release/"
check "README.md: from nothing to the log of a job" grep -x 'Hello from hello' <(here sh -euc 'cd /root/release; timeout 60 sh -eu ../readme.sh' 2>&1)

say "a job"
submit a '{ "steps": ["id -un; umask", "mkdir out; touch out/file; cp -a out copy", "echo $HOME; cd; touch here"] }'
check "a controller of the group has its job run" until_true status_is a success
check "as job-worker, at home in /var/lib/job-worker" is "job-worker /var/lib/job-worker" \
    "$(here grep -x -e job-worker -e '/var/lib.*' /srv/jobs/a/job.log | tr '\n' ' ' | sed 's/ $//')"
check "it may read the log and delete everything" controller "grep -q 'job success' a/job.log; rm -r a"

say "settings"
check "a setting of the file holds" here sh -euc 'echo JOB_TIMEOUT=77 >>/etc/default/job-worker; systemctl restart job-worker'
check "after a restart" until_true idle
submit timed '{ "steps": ["true"], "timeoutSeconds": 100 }'
check "JOB_TIMEOUT is the bound" until_true said 'more than JOB_TIMEOUT allows'
here sh -euc 'echo JOB_MAXATTEMPTS=1 >>/etc/default/job-worker; echo JOB_ON_STOP=never >>/etc/default/job-worker; systemctl restart job-worker || true'
check "a wrong one ends the service" until_true here systemctl is-failed --quiet job-worker
sleep 6 # RestartSec
check "which is not started again" here systemctl is-failed --quiet job-worker
check "the journal names it" said 'JOB_ON_STOP'
check "and one that does not exist" said 'JOB_MAXATTEMPTS (did you mean JOB_MAX_ATTEMPTS?)'
here sed -i -e '/^JOB_ON_STOP/d' -e '/^JOB_MAXATTEMPTS/d' /etc/default/job-worker
check "it starts when that is mended" here systemctl start job-worker
check "and waits" until_true idle
connect=$(sed -n 's/^ *`sudo -u\( job-worker xargs .* check --connect.*\)`$/setpriv --init-groups --reuid\1/p' docs/install.md |
    sed 's/--reuid job-worker/& --regid job-worker/')
check "docs/install.md: check with the settings of the service" grep -qz 'JOB_TIMEOUT.*login: accepted' <(here sh -c "$connect" 2>&1)

# --- upgrades -----------------------------------------------------------------------------------------------------------
say "an upgrade in mid-job"
held='{ "steps": ["echo >>runs; touch up; until [ -e gate ]; do sleep 0.1; done"] }'
submit held "$held"
check "a job runs" until_true exists held/up
before=$(main_pid)
install_it "$second" >"$scratch/upgrade.log" 2>&1
check "the upgrade says that it leaves the job alone" grep -q 'job-worker.service has a job' "$scratch/upgrade.log"
check "the new package is there" is "99.1.0-1" "$(here dpkg-query -Wf '${Version}' job-worker)"
check "the service goes on as it was" is "$before" "$(main_pid)"
check "and runs the old program still" not runs_installed "$before"
controller 'touch held/gate'
check "the job ends" until_true status_is held success
check "in its first attempt" is "1 1" "$(field held attempt) $(wc -l <"$system/srv/jobs/held/runs")"
check "then the service is the new program, under the same pid" until_true runs_installed "$before"
check "so is its worker" until_true runs_installed "$(here cat "/proc/$before/task/$before/children")"
check "the settings are kept" here grep -qx JOB_TIMEOUT=77 /etc/default/job-worker

say "an upgrade of an idle worker"
check "it waits" until_true idle
install_it "$third" >"$scratch/upgrade.log" 2>&1
check "the service is started anew" not is "$before" "$(main_pid)"
check "from the new program" runs_installed "$(main_pid)"
submit after "$held"
controller 'touch after/gate'
check "and runs jobs" until_true status_is after success

say "back to the first version"
check "a downgrade is an upgrade" here dpkg -i "/root/${first##*/}"
check "and runs jobs" until_true idle

# --- reboot -------------------------------------------------------------------------------------------------------------
say "a reboot in mid-job"
submit rebooted "$held"
check "a job runs" until_true exists rebooted/up
here systemctl reboot
status=0
wait "$nspawn" || status=$?
check "the system goes down for a reboot" is 133 $status
boot
check "and boots" until_true has_booted
controller 'touch rebooted/gate'
check "the job runs again, to its end" until_true status_is rebooted success
check "that is its second run" is 2 "$(wc -l <"$system/srv/jobs/rebooted/runs")"

# --- instances ----------------------------------------------------------------------------------------------------------
say "two instances, one queue"
check "the worker of the queue is idle" until_true idle
here systemctl disable --now job-worker
here runuser -u job-worker -- mkdir -p /srv/jobs/.job-worker/board # this is the right drive
here sh -euc 'echo JOB_POOL=board >>/etc/default/job-worker; systemctl enable --now job-worker@1 job-worker@2'
check "one waits" until_true idle board-1
check "the other one, too" until_true idle board-2
submit one "$held"
submit two "$held"
check "one takes a job" until_true exists one/up
check "the other one the next" until_true exists two/up
controller 'touch one/gate two/gate'
check "the one job ends" until_true status_is one success
check "and the other" until_true status_is two success
workers="$(field one worker) $(field two worker)"
check "they were two" sh -c "case '$workers' in 'board-1 board-2' | 'board-2 board-1') ;; *) echo '$workers'; exit 1;; esac"

# --- remove, purge ------------------------------------------------------------------------------------------------------
say "remove"
check "apt removes it" here apt-get remove -y -qq job-worker
check "no instance is left" not active 'job-worker@1'
check "nothing of it runs" not here sh -c 'cat /proc/[0-9]*/comm | grep -x job-worker'
check "the settings stay" [ -e "$system/etc/default/job-worker" ]
controller 'mkdir while-away; mosquitto_pub -q 1 -t jobs/pending -m "{ \"id\": \"while-away\", \"workDir\": \"while-away\", \"steps\": [\"true\"] }"'
check "a later install" install_it "$first"
check "starts those that are enabled" until_true active job-worker@1
check "and not the one that is disabled" not active job-worker
check "takes what was queued meanwhile" until_true status_is while-away success
say "stopped by somebody"
here systemctl stop job-worker@1 job-worker@2
check "an upgrade" install_it "$second"
check "starts nothing that is stopped" not active job-worker@1
say "purge"
here rm -r "/srv/jobs"
check "apt purges it" here apt-get purge -y -qq job-worker
left=$(cd "$system" && find etc usr var/lib srv -name '*job-worker*' ! -path 'var/lib/dpkg/*' ! -path '*/journal/*')
check "no file is left" is "" "$left"
check "no user is left" is "" "$(here getent passwd job-worker)"

finished=yes
here systemctl poweroff || true
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
