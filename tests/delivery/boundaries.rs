//! The promises of delivery at every packet boundary of a whole job, of a queue of its own and of a pool's: before and after each
//! packet the link is cut, the session is lost, or the worker is killed or stopped. Wherever that happens, the end is the same.
//!
//! A run without a fault counts the packets, then there is one run for each boundary and each kind of fault.

use crate::support;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use support::broker::{Broker, Entry, Packet, Step, Verdict};
use support::cases;
use support::pool::Queue;
use support::site::{Site, read, read_json, verdict};
use support::wait;
use support::worker::Worker;

const RESULT: &str = "jobs/results/job";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    CutBefore,
    CutAfter,
    /// The broker loses the session, and the connection with it.
    Forget,
    KillBefore,
    KillAfter,
    /// The worker is killed while it deals with the cut.
    CutAndKill,
    /// The worker is asked to stop: that is no attempt, wherever it happens.
    Stop,
}

const FAULTS: [Fault; 7] = [
    Fault::CutBefore,
    Fault::CutAfter,
    Fault::KillBefore,
    Fault::KillAfter,
    Fault::CutAndKill,
    Fault::Stop,
    // a pool's campaign has the lost sessions
    Fault::Forget,
];

impl Fault {
    fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter | Self::CutAndKill)
    }

    fn cuts(self) -> bool {
        matches!(self, Self::CutBefore | Self::CutAfter | Self::CutAndKill)
    }

    fn inject(self, step: &Step, signal: impl Fn(Signal)) -> Verdict {
        match self {
            Self::CutBefore => Verdict::CutBefore,
            Self::CutAfter | Self::CutAndKill => Verdict::CutAfter,
            Self::Forget => Verdict::ForgetAndCut,
            Self::Stop => {
                signal(Signal::TERM);
                Verdict::Pass
            }
            Self::KillBefore => {
                signal(Signal::KILL);
                Verdict::CutBefore
            }
            Self::KillAfter if step.from_client => {
                signal(Signal::KILL);
                Verdict::CutAfter
            }
            // the worker shall read it first: the case kills it
            Self::KillAfter => Verdict::Pass,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    queue: Queue,
    version: &'static str,
    step: &'static str,
    /// The packet, counted from 0, and what happens there.
    fault: Option<(usize, Fault)>,
}

/// The worker is connected again after the end of the job, or in the middle of it.
const SHORT: &str = "echo $JOB_ATTEMPT >> runs";
const LONG: &str = "echo $JOB_ATTEMPT >> runs; sleep 0.3";

fn a_short_job(version: &'static str) {
    at_every_boundary(Queue::Own, version, SHORT);
}

fn a_short_job_of_a_pool(version: &'static str) {
    at_every_boundary(Queue::Pool, version, SHORT);
}

on_both_protocols!(a_short_job, a_short_job_of_a_pool);

#[test]
fn a_long_job() {
    at_every_boundary(Queue::Own, "5", LONG);
}

fn at_every_boundary(queue: Queue, version: &'static str, step: &'static str) {
    let case = |fault| Case {
        queue,
        version,
        step,
        fault,
    };
    let faults = match queue {
        Queue::Own => &FAULTS[..],
        Queue::Pool => &FAULTS[..FAULTS.len() - 1],
    };
    // whether the status is announced once more before the end is up to the scheduler
    let packets = [(); 2].map(|()| run(&case(None)).packets);
    let packets = packets.into_iter().min().unwrap_or_default();
    assert!(packets >= 10, "a whole job in {packets} packets?");
    let at = |at| faults.iter().map(move |fault| case(Some((at, *fault))));
    let cases: Vec<Case> = (0..packets).flat_map(at).collect();
    let reached = AtomicUsize::new(0);
    // each case mostly waits: for a process to start, or for the pause before a reconnect
    cases::try_all(2 * cases::AT_ONCE, &cases, |case| {
        reached.fetch_add(usize::from(run(case).is_reached), Relaxed);
    });
    let (reached, all) = (reached.into_inner(), cases.len());
    // so the last packets may not come
    let enough = reached + 2 * faults.len() >= all;
    assert!(enough, "only {reached} of {all} boundaries were reached");
    eprintln!("{packets} packets, {reached} boundaries");
}

struct End {
    packets: usize,
    /// The job had so many packets that the fault happened.
    is_reached: bool,
}

impl Case {
    fn is(&self, fault: Fault) -> bool {
        self.fault.is_some_and(|(_, it)| it == fault)
    }

    fn has(&self, kind: impl Fn(Fault) -> bool) -> bool {
        self.fault.is_some_and(|(_, it)| kind(it))
    }
}

/// The place of a case.
struct Place {
    site: Site<Broker>,
    case: Case,
}

fn run(case: &Case) -> End {
    let place = Place {
        site: Site::scripted(),
        case: *case,
    };
    let broker = &place.site.broker;
    let dir = place.site.directory("job");
    // from here on the broker keeps requests for the worker
    place.live_idle();

    let (tell_pid, pid) = mpsc::channel();
    let (reach, reached) = mpsc::channel();
    let before = broker.log().len();
    let (fault, mut number) = (case.fault, 0);
    broker.set_script(move |step| {
        number += 1;
        match fault {
            Some((at, fault)) if at + 1 == number => {
                let _ = reach.send(()); // only one kind of fault waits for it
                let pid: Pid = pid.recv().expect("a worker");
                fault.inject(step, |signal| _ = kill_process(pid, signal))
            }
            _ => Verdict::Pass,
        }
    });
    // In 3.1.1 only a key tells a redelivery from a fresh request; in a pool, where the broker seemed to end the connection in order.
    // Null counts as absent.
    let is_doubtful = match case.queue {
        Queue::Own => case.version == "4",
        Queue::Pool => case.has(Fault::cuts),
    };
    let request = json!({
        "id": "job",
        "key": is_doubtful.then_some("key"),
        "maxAttempts": if case.is(Fault::Stop) { 1 } else { 3 },
        "workDir": dir,
        "steps": [case.step, "exit 3"],
    });
    place.site.request(request.clone());
    let mut worker = place.start(&[]);
    let pid = Pid::from_raw(worker.pid() as i32).expect("a process");
    tell_pid.send(pid).expect("the script");
    if case.is(Fault::Forget) {
        place.republish_if_lost(before, request, &mut worker);
    }
    if case.is(Fault::KillAfter) || case.is(Fault::CutAndKill) {
        wait::until("the fault or the end", || {
            reached.try_recv().is_ok() || worker.ended().is_some()
        });
        // the packet is sent once the broker answers; what the worker makes of it by then is left to chance
        broker.log();
        let at = case.fault.map_or(0, |(at, _)| at as u64);
        thread::sleep(Duration::from_millis(at % 4));
        worker.kill9();
    }
    wait::until("the worker to end", || worker.ended().is_some());
    broker.set_script(|_| Verdict::Pass);
    let is_killed = worker.wait().code().is_none();
    match is_killed {
        true => assert!(case.has(Fault::kills), "killed without a reason"),
        false => worker.exits_with(0),
    }
    place.await_end();
    let is_reported = !broker.received(RESULT).is_empty();
    let log = broker.log().split_off(before);
    let is_packet = |entry: &&Entry| !matches!(entry.packet, Packet::Closed(_));
    let packets = log.iter().filter(is_packet).count();
    let is_open = !place.is_empty();
    if !is_killed && is_open {
        // nothing tells a client whether its acknowledgement has arrived; all else it has to wait for
        let is_left = match case.queue {
            _ if case.is(Fault::Stop) => true,
            Queue::Own => is_cut_after_report(&log),
            Queue::Pool => case.has(Fault::cuts),
        };
        assert!(is_left, "the request is left behind");
    }
    if is_open || !is_reported {
        place.finish();
    }
    place.verify(is_killed && !is_reported);

    // another worker finds nothing to do
    let results = broker.received(RESULT).len();
    place.live_idle();
    assert_eq!(broker.received(RESULT).len(), results);
    place.verify(is_killed && !is_reported);
    End {
        packets,
        is_reached: case.fault.is_some_and(|(at, _)| at < packets),
    }
}

/// Whether the worker was told that the broker has its result, and the link was cut only then.
fn is_cut_after_report(log: &[Entry]) -> bool {
    let is_told = |entry: &Entry| matches!(entry.told(), Some(Packet::PubAck { .. }));
    let is_cut =
        |entry: &Entry| matches!(entry.packet, Packet::Closed(why) if why.starts_with("cut"));
    let told = log.iter().position(is_told);
    told.is_some_and(|told| log.iter().position(is_cut).is_some_and(|cut| told < cut))
}

impl Place {
    fn start(&self, arguments: &[&str]) -> Worker {
        self.site.worker(|command| {
            command.args(arguments);
            command.env("MQTT_PROTOCOL_VERSION", self.case.version);
            self.case.queue.serve(command, self.site.drive.path());
        })
    }

    /// What a controller does whose request the broker has lost: it publishes it again, once somebody listens.
    fn republish_if_lost(&self, before: usize, request: Value, worker: &mut Worker) {
        wait::until("the session to be lost, and made anew", || {
            let log = self.site.broker.log().split_off(before);
            let is_lost = |entry: &Entry| !entry.passed;
            let Some(lost_at) = log.iter().position(is_lost) else {
                return worker.ended().is_some();
            };
            let (earlier, later) = log.split_at(lost_at);
            let is_delivered = |entry: &Entry| matches!(entry.told(), Some(Packet::Publish { .. }));
            let is_granted = |entry: &Entry| matches!(entry.told(), Some(Packet::SubAck { .. }));
            let is_there = earlier.iter().any(is_delivered);
            if !is_there && later.iter().any(is_granted) {
                self.site.request(request.clone());
                return true;
            }
            is_there
        });
    }

    /// Nothing is left to do, for the broker and on the drive.
    fn is_empty(&self) -> bool {
        self.site.broker.queued(self.case.queue.session()) == 0 && self.site.claims().is_empty()
    }

    /// Lets workers live until the job is reported and nothing is left to do.
    fn finish(&self) {
        let mut next = self.start(&["supervise"]);
        wait::until("the job to be reported, and nothing to be left", || {
            !self.site.broker.received(RESULT).is_empty() && self.is_empty()
        });
        next.stop();
        self.await_end();
    }

    fn live_idle(&self) {
        let mark = self.site.mark();
        let mut worker = self.start(&[]);
        self.site.await_state(&mut worker, mark, "idle");
        worker.stop();
        self.await_end();
    }

    /// Waits until the broker has read all that was sent.
    fn await_end(&self) {
        self.site.broker.wait_until(wait::DEADLINE, |log| {
            let mut open = BTreeSet::new();
            for entry in log {
                match entry.packet {
                    Packet::Closed(_) => open.remove(&entry.connection),
                    _ => open.insert(entry.connection),
                };
            }
            open.is_empty()
        });
    }

    /// The final state. `may_run_again`: the worker was killed, and had not published its result.
    fn verify(&self, may_run_again: bool) {
        let broker = &self.site.broker;
        let results = self.site.results("job", 1);
        let result = &results[0];
        assert_eq!(verdict(result), ("failed", "step", 3), "{result}");
        let same = |other: &&Value| {
            verdict(other) == verdict(result) && other["attempt"] == result["attempt"]
        };
        assert_eq!(results.iter().find(|other| !same(other)), None);
        let dir = self.site.drive.path().join("job");
        let stored = read_json(&dir.join("job.status.json"));
        assert_eq!(stored["attempt"], result["attempt"]);
        broker.wait_for_queued(self.case.queue.session(), 0, wait::DEADLINE);
        assert_eq!(self.site.claims(), [""; 0]);
        assert!(broker.received("jobs/rejected").is_empty());

        let attempts = result["attempt"].as_u64().unwrap();
        let runs = read(&dir.join("runs"));
        let runs: Vec<u64> = runs.lines().map(|line| line.parse().unwrap()).collect();
        let is_good = match (attempts, &runs[..]) {
            // a stop may have met the job in the middle
            (1, [1, 1]) => self.case.is(Fault::Stop),
            (1, [1]) => true,
            // an attempt that was killed before its step has left no line
            (2, [2] | [1, 2]) => may_run_again && !self.case.is(Fault::Stop),
            _ => false,
        };
        assert!(is_good, "attempt {attempts}, and runs of {runs:?}");
    }
}
