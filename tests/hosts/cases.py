#!/usr/bin/env python3
"""A pool of workers on several hosts: what dies there, and what then happens (docs/several-machines.md).

    tests/hosts/cases.py [CASE...]      all, in some 15 minutes; --list names them; --short: two machines and two cases, in about 2

JOB_WORKER is the program, a static one or Debian 12's. LAB is where the machines' images are made and kept.
Each case ends with the same question: did each job run as often as it should, did each result come, is no claim left?
"""
import atexit, json, os, re, subprocess, sys, tempfile, time
sys.dont_write_bytecode = True
from lab import Lab, build, wait_for

LEASE = 15


class Site:
    """The lab and the controller's side of it."""

    def __init__(self, lab):
        self.lab, self.number, self.requests, self.heard = lab, 0, {}, tempfile.NamedTemporaryFile("r")
        self.hosts = lab.names[1:] if len(lab.names) > 2 else ["h1", "srv"]
        self.listener = subprocess.Popen(["mosquitto_sub", "-h", "127.0.0.1", "-p", str(lab.broker), "-k", "5", "-c", "-i", "controller", "-q", "1", "-v",
                                          "-t", "jobs/results/+", "-t", "own/results/+"], stdout=open(self.heard.name, "w"), stderr=subprocess.DEVNULL)
        atexit.register(self.listener.kill)

    def worker(self, host, name="", command="job-worker supervise", **settings):
        settings = {"MQTT_URL": "mqtt://10.9.0.1", "MQTT_KEEP_ALIVE": 5, "JOB_ROOT": "/srv/jobs", "WORKER_ID": name or host, "JOB_POOL": "pool", **settings}
        words = "env " + " ".join(f"{key}={value}" for key, value in settings.items() if value != "")
        self.lab.sh(host, f"cd /tmp; {words} setsid nohup {command} < /dev/null > /tmp/{name or host}.log 2>&1 &")

    def members(self):
        """Each host has one idle member, and the queue exists."""
        for host in self.hosts:
            self.lab.up(host)
            if "supervise" not in self.lab.sh(host, "pgrep -af 'job-worker supervise'"):
                self.worker(host)
        for host in self.hosts:
            wait_for("an idle member", 90, lambda: "waiting for a job" in self.lab.sh(host, f"cat /tmp/{host}.log"))
        self.finish(self.submit("true", 1), 90)

    def stop(self, *hosts):
        """No worker is left there."""
        for host in hosts:
            wait_for(f"the workers of {host} to stop", 30, lambda: "none" in self.lab.sh(host, "pkill job-worker || echo none"))

    def submit(self, step, count, root="jobs", before="true", keyed=True):
        """The ids of new jobs; each says in `runs` where it runs."""
        ids = [f"{root}-{self.number + n}" for n in range(count)]
        self.number += count
        self.lab.sh("srv", f"cd /export && mkdir -p {' '.join(ids)}; sync -f .; {before}", 120)
        for id in ids:
            request = {"id": id, "workDir": f"/srv/jobs/{id}", "steps": [f'echo "$JOB_ATTEMPT $(hostname)" >> runs; {step}']}
            request |= {"key": id} if keyed else {}
            self.requests[id] = ["timeout", "5", "mosquitto_pub", "-h", "127.0.0.1", "-p", str(self.lab.broker), "-q", "1", "-t", root + "/pending", "-m", json.dumps(request)]
        self.publish(ids)
        return ids

    def publish(self, ids):
        """Publishes requests, or publishes them again: a broker that loses its power loses what it has just acknowledged."""
        for id in ids:
            wait_for("the broker", 120, lambda: subprocess.run(self.requests[id], stderr=subprocess.DEVNULL).returncode == 0)

    def results(self, id):
        """All that were heard of it."""
        with open(self.heard.name) as heard:
            return [json.loads(line.split(" ", 1)[1]) for line in heard if line.split(" ", 1)[0].endswith("/" + id)]

    def runs(self, id):
        """[(attempt, host)], as the drive has them."""
        return [(int(line.split()[0]), line.split()[1]) for line in self.lab.sh("srv", f"cat /export/{id}/runs 2>/dev/null").splitlines()]

    def running(self, ids, count):
        """Hosts by the job that they are at, once so many run."""
        def running():
            return {id: self.runs(id)[-1][1] for id in ids if self.runs(id) and not self.results(id)}
        wait_for(f"{count} jobs to run", 60, lambda: len(running()) >= count)
        return running()

    def finish(self, ids, seconds=120, attempts=None, first=(1,)):
        """Each has its one result, as attempt 1 or as `attempts` says, and no claim is left. How long the last one took.

        `first` are the attempts that may be the first to come to its steps, where an earlier one died before."""
        missing = lambda: [id for id in ids if not self.results(id)]
        took = wait_for(lambda: f"the results of {missing()}", seconds, lambda: not missing())
        for id in ids:
            wanted = (attempts or {}).get(id, 1)
            final, runs = self.results(id), self.runs(id)
            assert len({result.get("startedAt") for result in final}) == 1, (id, final)
            assert (final[0]["status"], final[0]["attempt"]) == ("success", wanted), (id, final[0])
            assert [attempt for attempt, _ in runs] in [list(range(min(n, wanted), wanted + 1)) for n in first], (id, runs)
        wait_for("no claim", 30, lambda: not re.search(r"^[cn]-", self.lab.sh("srv", "ls /export/.job-worker/pool"), re.M))
        return took


def shared(site):
    """jobs are shared, and each runs once, also those of a worker with a queue of its own"""
    site.worker("h1", "own", JOB_POOL="", MQTT_TOPIC_ROOT="own")
    wait_for("its session", 60, lambda: "waiting for a job" in site.lab.sh("h1", "cat /tmp/own.log"))
    ids, own = site.submit("sleep 0.5", 12), site.submit("true", 4, "own")
    took = site.finish(ids + own)
    hosts = {host for id in ids for _, host in site.runs(id)}
    assert len(hosts) == 2, hosts
    site.stop("h1")
    return f"12 and 4 jobs in {took:.0f} s"


def busy_host(site):
    """the plug of a busy host: the others go on, its job is the next attempt of another after the lease"""
    ids = site.submit("sleep 8", 2)
    running = site.running(ids, 2)
    lost = next(id for id in ids if running[id] == "h1")
    other = site.hosts[1]
    site.worker(other, "idle")
    wait_for("an idle member", 30, lambda: "connected to the broker" in site.lab.sh(other, "cat /tmp/idle.log"))
    site.lab.reset("h1")
    start, more = time.time(), site.submit("true", 3)
    others = wait_for("others to go on", 60, lambda: all(site.results(id) for id in more))
    site.finish(ids + more, 120, {lost: 2})
    site.stop(other)
    return f"the others went on after {others:.0f} s, its job was done after {time.time() - start:.0f} s"


def idle_head(site):
    """the plug of an idle head: another becomes it after the lease"""
    wait_for("a head", 30, lambda: head(site))
    site.lab.reset(head(site))
    return f"the next request was done after {site.finish(site.submit('true', 1)):.0f} s"


def head(site):
    """The host that has the pool's session: Mosquitto knows."""
    connected = site.lab.sh("srv", "grep ' as pool ' /var/log/mosquitto.log | tail -n 1")
    found = re.search(r"from 10\.9\.0\.1(\d)", connected)
    return found and f"h{found[1]}"


# What the head has just done; the system call, its number in its thread, and what strace shows of it; whether its request is a claim by then.
STEPS = [
    ("got the lock", "flock", 1, "flock", False),
    ("connected", "writev", 1, r"\\4pool", False),
    ("subscribed", "writev", 2, "jobs/pending", False),
    ("written n-", "fsync", 1, "fsync", False),
    ("renamed it to c-", "renameat", 1, '"n-', True),
    ("synced the directory", "fsync", 2, "fsync", True),
    ("acknowledged", "writev", 3, r'"@\\2', True),
    ("taken the hash off the name", "renameat", 2, r'"c-[^ ]* \d+, "c-', True),
    ("disconnected", "writev", 4, r'"\\340', True),  # while its job begins
]


def stop_head(site, call, number, shown):
    """A member of h1 takes the next request, and stops as the head behind this system call."""
    site.lab.sh("h1", "rm -f /tmp/trace")
    trace = f"strace -f -o /tmp/trace -e trace={call} -e inject={call}:signal=STOP:when={number} job-worker"
    site.worker("h1", command=trace, MQTT_KEEP_ALIVE=600)
    passed = 0  # its own connection makes the same calls

    def stopped():
        nonlocal passed
        seen = site.lab.sh("h1", "cat /tmp/trace")
        if seen.count("--- SIGSTOP {") <= passed:
            return False
        if re.search(shown, seen):
            return True
        passed += 1
        site.lab.sh("h1", "pkill -CONT job-worker")
        return False
    wait_for(f"the head to stop behind {call} {number}", 60, stopped)


def plug(site):
    """the plug of the head, pulled behind each step of its turn: another goes on after the lease, and each job runs once"""
    took = []
    for done, call, number, shown, is_claim in STEPS:
        site.lab.up("h1")
        site.stop("h1", "h2")
        id, = site.submit("true", 1, keyed=False)
        stop_head(site, call, number, shown)
        site.worker("h2")
        wait_for("the other member", 60, lambda: "connected to the broker" in site.lab.sh("h2", "cat /tmp/h2.log"))
        site.lab.reset("h1")
        ids = [id] + site.submit("true", 2, keyed=False)
        took.append(site.finish(ids, 90, {id: 2} if is_claim else {}, (1, 2) if done == "disconnected" else (2,)))
        print(f"    {done}: {took[-1]:.0f} s", flush=True)
    return f"{min(took):.0f} to {max(took):.0f} s"


def own_queue(site):
    """the plug of a host whose worker has a queue of its own: its job is the next attempt when it is back"""
    own = {"name": "own", "JOB_POOL": "", "MQTT_TOPIC_ROOT": "own"}
    site.worker("h1", **own)
    wait_for("its session", 60, lambda: "waiting for a job" in site.lab.sh("h1", "cat /tmp/own.log"))
    ids = site.submit("sleep 9", 2, "own")
    wait_for("its job to run", 60, lambda: site.runs(ids[0]))
    site.lab.reset("h1")
    site.lab.up("h1")
    site.worker("h1", **own)
    took = site.finish(ids, 90, {ids[0]: 2})
    site.stop("h1")
    return f"done {took:.0f} s after it was started again"


def cable(site, times):
    """a cable is out while a job runs there"""
    ids = site.submit("sleep 9", 2)  # long enough to be cut on a slow machine, too
    running = site.running(ids, 2)
    cut = next(id for id in ids if running[id] == "h1")
    site.lab.cable("h1", "off")
    start = time.time()
    more = site.submit("true", 3)
    wait_for("others to go on", 60, lambda: all(site.results(id) for id in more))
    time.sleep(max(0, times * LEASE - (time.time() - start)))
    site.lab.cable("h1", "on")
    attempts = {} if times < 1 else {cut: 2}
    site.finish(ids + more, 180, attempts)
    return f"done {time.time() - start:.0f} s after the cut"


def cable_half(site):
    """a cable is out for half a lease: its job runs once"""
    return cable(site, 0.5)


def cable_three(site):
    """a cable is out for three leases: its job is another's next attempt, and it publishes nothing for the first"""
    return cable(site, 3)


def server(site):
    """the server is reset while jobs run, and again when requests have just come: each runs once"""
    ids = site.submit("sleep 5", 2)
    site.running(ids, 2)
    waiting = site.submit("true", 6)
    site.lab.reset("srv")
    site.lab.up("srv")
    site.publish(waiting)
    took = site.finish(ids + waiting, 180)
    ids = site.submit("true", 6)
    site.lab.reset("srv")
    site.lab.up("srv")
    site.publish(ids)
    return f"done {took:.0f} s after it was up, then {site.finish(ids, 180):.0f} s"


def server_at_the_claim(site):
    """the server is reset while it is asked to make a claim of what was written: the job runs once"""
    site.stop(*site.hosts)
    ids = site.submit("true", 1)
    stop_head(site, "fsync", 1, "fsync")
    site.lab.reset("srv")
    site.lab.sh("h1", "(while pkill -CONT job-worker; do sleep 0.2; done) > /dev/null 2>&1 &")  # its other threads make the call, too
    site.lab.up("srv")
    site.publish(ids)
    site.worker("h2")
    return f"done {site.finish(ids, 180):.0f} s after it was up"


def full(site):
    """the export is full: the requests stay with the broker, and become jobs once there is room"""
    ids = site.submit("true", 4, before="fallocate -l $(($(stat -f -c '%a * %S' /export))) ballast; dd if=/dev/zero of=ballast2 bs=4k 2>/dev/null")
    wait_for("trouble", 30, lambda: all("stays with the broker" in site.lab.sh(host, f"cat /tmp/{host}.log") for host in site.hosts))
    assert not any(site.results(id) for id in ids)
    site.lab.sh("srv", "rm /export/ballast*")
    return f"done {site.finish(ids):.0f} s after there was room"


def clocks(site):
    """clocks that differ by an hour change nothing"""
    site.lab.sh("h1", "date -s '+1 hour'")
    site.lab.sh("h2", "date -s '-1 hour'")
    took = site.finish(site.submit("sleep 0.2", 10))
    for host, hour in ("h1", "-1"), ("h2", "+1"):
        site.lab.sh(host, f"date -s '{hour} hour'")
    return f"10 jobs in {took:.0f} s"


def at_the_result(site):
    """the plug of a host at the very moment of its result: what the result speaks of is on the server"""
    for _ in range(3):
        site.members()
        id, = site.submit("head -c 4000000 /dev/urandom > made; sha256sum made > sum; echo made", 1)
        wait_for("the result", 60, lambda: site.results(id))
        host = site.runs(id)[0][1]
        site.lab.reset(host)
        said = site.lab.sh("srv", f"cd /export/{id} && sha256sum -c sum; tail -n 1 job.log; cat job.status.json")
        assert "made: OK" in said and "job success" in said and '"status":"success"' in said.replace(" ", ""), said
        assert not site.results(id)[1:], "it ran again"
    return "3 times"


CASES = [shared, busy_host, clocks, full, cable_half, cable_three, idle_head, plug, own_queue, server, server_at_the_claim, at_the_result]

if __name__ == "__main__":
    names, hosts = sys.argv[1:], 2
    if names == ["--list"]:
        sys.exit("\n".join(f"{case.__name__}: {case.__doc__}" for case in CASES))
    if names == ["--short"]:
        names, hosts = ["shared", "busy_host"], 1
    images = os.environ.get("LAB", "/tmp/job-worker-lab")
    try:
        build(images)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(print(f"left out: several hosts: their images cannot be made: {error}"))
    start = time.time()
    with Lab(images, os.environ["JOB_WORKER"], hosts, LEASE) as lab:
        print(f"{len(lab.names)} machines are up after {time.time() - start:.0f} s", flush=True)
        site = Site(lab)
        for case in CASES:
            if names and case.__name__ not in names:
                continue
            site.members()
            try:
                print(f"ok: {case.__name__}: {case.__doc__}: {case(site)}", flush=True)
            except BaseException:
                print(f"FAILED {case.__name__}: {case.__doc__}")
                for name in lab.names:
                    print(f"--- {name}\n" + lab.sh(name, "tail -n 15 /tmp/*.log /tmp/trace; ls -la /export/.job-worker/pool 2>/dev/null", 20), flush=True)
                raise
