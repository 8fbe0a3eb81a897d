#!/usr/bin/env python3
"""A pool of workers on several hosts: what dies there, and what then happens (docs/several-machines.md).

    tests/hosts/cases.py [CASE...]      all; --list names them. JOB_WORKER: the program. LAB: where the machines' images are made and kept

Each case ends with the same question: did each job run as often as it should, did each result come, is no claim left?
"""
import atexit, json, os, re, subprocess, sys, tempfile, time
from lab import Lab, wait_for

LEASE = 15


class Site:
    """The lab and the controller's side of it."""

    def __init__(self, lab):
        self.lab, self.number, self.heard = lab, 0, tempfile.NamedTemporaryFile("r")
        self.listener = subprocess.Popen(["mosquitto_sub", "-h", "127.0.0.1", "-p", str(lab.broker), "-k", "5", "-c", "-i", "controller", "-q", "1", "-v",
                                          "-t", "jobs/results/+", "-t", "own/results/+"], stdout=open(self.heard.name, "w"), stderr=subprocess.DEVNULL)
        atexit.register(self.listener.kill)

    def worker(self, host, name="", command="job-worker supervise", **settings):
        settings = {"MQTT_URL": "mqtt://10.9.0.1", "MQTT_KEEP_ALIVE": 5, "JOB_ROOT": "/srv/jobs", "WORKER_ID": name or host, "JOB_POOL": "pool", **settings}
        words = " ".join(f"{key}={value}" for key, value in settings.items() if value != "")
        self.lab.sh(host, f"cd /tmp; {words} setsid nohup {command} < /dev/null > /tmp/{name or host}.log 2>&1 &")

    def members(self, *hosts):
        """Hosts with one idle member each, and a queue that exists."""
        for host in hosts:
            self.lab.up(host)
            if "supervise" not in self.lab.sh(host, "pgrep -af 'job-worker supervise'"):
                self.worker(host)
        self.finish(self.submit("true", 1), 90)

    def submit(self, step, count, root="jobs", before="true"):
        """The ids of new jobs; each says in `runs` where it runs."""
        ids = [f"{root}-{self.number + n}" for n in range(count)]
        self.number += count
        self.lab.sh("srv", f"cd /export && mkdir -p {' '.join(ids)}; {before}", 120)
        for id in ids:
            request = {"id": id, "workDir": f"/srv/jobs/{id}", "key": id, "steps": [f'echo "$JOB_ATTEMPT $(hostname)" >> runs; {step}']}
            publish = ["timeout", "5", "mosquitto_pub", "-h", "127.0.0.1", "-p", str(self.lab.broker), "-q", "1", "-t", root + "/pending", "-m", json.dumps(request)]
            wait_for("the broker", 120, lambda: subprocess.run(publish, stderr=subprocess.DEVNULL).returncode == 0)
        return ids

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

    def finish(self, ids, seconds=120, attempts=None):
        """Each has its one result, as attempt 1 or as `attempts` says, and no claim is left. How long the last one took."""
        took = max(wait_for(f"the result of {id}", seconds, lambda: self.results(id)) for id in ids)
        for id in ids:
            wanted = (attempts or {}).get(id, 1)
            final, runs = self.results(id), self.runs(id)
            assert len({result["startedAt"] for result in final}) == 1, (id, final)
            assert (final[0]["status"], final[0]["attempt"]) == ("success", wanted), (id, final[0])
            assert [attempt for attempt, _ in runs] == list(range(1, wanted + 1)), (id, runs)
        wait_for("no claim", 30, lambda: not re.search(r"^[cn]-", self.lab.sh("srv", "ls /export/.job-worker/pool"), re.M))
        return took


def shared(site):
    """jobs are shared, and each runs once, also those of a member with a queue of its own"""
    site.worker("h1", "own", JOB_POOL="", MQTT_TOPIC_ROOT="own")
    wait_for("its session", 60, lambda: "waiting for a job" in site.lab.sh("h1", "cat /tmp/own.log"))
    ids, own = site.submit("sleep 0.5", 12), site.submit("true", 4, "own")
    took = site.finish(ids + own)
    hosts = {host for id in ids for _, host in site.runs(id)}
    assert len(hosts) == 2, hosts
    site.lab.sh("h1", "pkill job-worker; sleep 1")
    return f"12 and 4 jobs in {took:.0f} s"


def busy_host(site):
    """the plug of a busy host: the others go on, its job is the next attempt of another after the lease"""
    ids = site.submit("sleep 4", 2)
    running = site.running(ids, 2)
    lost = next(id for id in ids if running[id] == "h1")
    site.lab.reset("h1")
    start, more = time.time(), site.submit("true", 3)
    others = wait_for("others to go on", 60, lambda: all(site.results(id) for id in more))
    site.finish(ids + more, 120, {lost: 2})
    return f"the others went on after {others:.0f} s, its job was done after {time.time() - start:.0f} s"


def idle_head(site):
    """the plug of an idle head: another becomes it after the lease"""
    wait_for("a head", 30, lambda: head(site))
    site.lab.reset(head(site))
    return f"the next request was done after {site.finish(site.submit('true', 1)):.0f} s"


def head(site):
    """Who has the pool's session: Mosquitto knows."""
    connected = site.lab.sh("srv", "grep ' as pool ' /var/log/mosquitto.log | tail -n 1")
    found = re.search(r"from 10\.9\.0\.1(\d)", connected)
    return found and f"h{found[1]}"


def cable(site, times):
    """a cable is out while a job runs there"""
    ids = site.submit("sleep 3", 2)
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
    """the server is reset while jobs run, and while it is asked for a claim: each runs once"""
    ids = site.submit("sleep 5", 2)
    site.running(ids, 2)
    waiting = site.submit("true", 6)
    site.lab.reset("srv")
    site.lab.up("srv")
    took = site.finish(ids + waiting, 180)
    ids = site.submit("true", 6)
    site.lab.reset("srv")
    site.lab.up("srv")
    return f"done {took:.0f} s after it was up, then {site.finish(ids, 180):.0f} s"


def full(site):
    """the export is full: nothing is lost, and the queue goes on once there is room"""
    ids = site.submit("true", 4, before="fallocate -l $(($(stat -f -c '%a * %S' /export))) ballast; dd if=/dev/zero of=ballast2 bs=4k 2>/dev/null")
    time.sleep(5)
    assert not any(result["status"] == "success" for id in ids for result in site.results(id))
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
        site.members("h1", "h2")
        id, = site.submit("head -c 4000000 /dev/urandom > made; sha256sum made > sum; echo made", 1)
        wait_for("the result", 60, lambda: site.results(id))
        host = site.runs(id)[0][1]
        site.lab.reset(host)
        said = site.lab.sh("srv", f"cd /export/{id} && sha256sum -c sum; tail -n 1 job.log; cat job.status.json")
        assert "made: OK" in said and "job success" in said and '"status":"success"' in said.replace(" ", ""), said
        assert not site.results(id)[1:], "it ran again"
    return "3 times"


CASES = [shared, clocks, full, cable_half, cable_three, busy_host, idle_head, server, at_the_result]

if __name__ == "__main__":
    names = sys.argv[1:]
    if names == ["--list"]:
        sys.exit("\n".join(f"{case.__name__}: {case.__doc__}" for case in CASES))
    with Lab(os.environ.get("LAB", "/tmp/job-worker-lab"), os.environ["JOB_WORKER"], 2, LEASE) as lab:
        print(f"{len(lab.names)} machines are up after {time.process_time():.0f} s", flush=True)
        site = Site(lab)
        for case in CASES:
            if names and case.__name__ not in names:
                continue
            site.members("h1", "h2")
            try:
                print(f"ok: {case.__name__}: {case.__doc__}: {case(site)}", flush=True)
            except BaseException:
                print(f"FAILED {case.__name__}: {case.__doc__}")
                for name in lab.names:
                    print(f"--- {name}\n" + lab.sh(name, "tail -n 15 /tmp/*.log; ls -la /export/.job-worker/pool 2>/dev/null", 20))
                raise
