//! The promises of delivery at every packet boundary of a whole job, of a queue of its own and of a pool's: before and after each
//! packet the link is cut, the session is lost, or the worker is killed or stopped. Wherever that happens, the end is the same.
//!
//! A run without a fault counts the packets, then there is one run for each boundary and each kind of fault.

use crate::support;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use support::broker::{Broker, Entry, Packet, Step, Verdict};
use support::site::{WORKER, names};
use support::temp_dir::TempDir;
use support::wait;
use support::worker::{Worker, job_worker};

const RESULT: &str = "jobs/results/job";
const PRESENCE: &str = "jobs/workers/node-worker-01";

/// Each case mostly waits: for a process to start, or for the pause before a reconnect.
const CASES_AT_ONCE: usize = 4;

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
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Queue {
    Own,
    Pool,
}

impl Queue {
    /// The session that is the queue.
    fn session(self) -> &'static str {
        match self {
            Self::Own => WORKER,
            Self::Pool => "the-pool",
        }
    }

    fn faults(self) -> &'static [Fault] {
        match self {
            Self::Own => &FAULTS,
            Self::Pool => &FAULTS[..FAULTS.len() - 1],
        }
    }
}

/// How long the job takes: the worker is connected again after its end, or in the middle of it.
#[derive(Clone, Copy, Debug)]
enum Length {
    Short,
    Long,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    queue: Queue,
    version: &'static str,
    length: Length,
    /// The packet, counted from 0, and what happens there.
    fault: Option<(usize, Fault)>,
}

fn a_short_job(version: &'static str) {
    at_every_boundary(Queue::Own, version, Length::Short);
}

fn a_short_job_of_a_pool(version: &'static str) {
    at_every_boundary(Queue::Pool, version, Length::Short);
}

on_both_protocols!(a_short_job, a_short_job_of_a_pool);

#[test]
fn a_long_job() {
    at_every_boundary(Queue::Own, "5", Length::Long);
}

fn at_every_boundary(queue: Queue, version: &'static str, length: Length) {
    let faults = queue.faults();
    let packets = run(Case {
        queue,
        version,
        length,
        fault: None,
    })
    .packets;
    assert!(packets >= 10, "a whole job in {packets} packets?");
    let cases: Vec<_> = (0..packets)
        .flat_map(|at| {
            faults.iter().map(move |fault| Case {
                queue,
                version,
                length,
                fault: Some((at, *fault)),
            })
        })
        .collect();
    let (next, reached) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..CASES_AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match catch_unwind(AssertUnwindSafe(|| run(*case))) {
                        Ok(end) => {
                            _ = reached.fetch_add(usize::from(end.reached), Ordering::Relaxed)
                        }
                        Err(_) => failed.lock().unwrap().push(*case),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {} cases failed: {failed:?}",
        failed.len(),
        cases.len()
    );
    // whether the status is announced once more before the end is up to the scheduler: the last packets may not come
    let reached = reached.into_inner();
    assert!(
        reached + 2 * faults.len() >= cases.len(),
        "only {reached} of {} boundaries were reached",
        cases.len()
    );
    eprintln!("{packets} packets, {reached} boundaries");
}

struct End {
    packets: usize,
    /// The job had so many packets that the fault happened.
    reached: bool,
}

fn run(case: Case) -> End {
    // the first to come and the last to go: the worker's own log is in it
    let drive = TempDir::new();
    fs::create_dir(drive.path().join("job")).unwrap();
    let broker = Broker::start();
    let session = case.queue.session();
    let start = || {
        let mut command = job_worker();
        command
            .env("MQTT_URL", broker.url())
            .env("MQTT_PROTOCOL_VERSION", case.version)
            .env("WORKER_ID", WORKER)
            .current_dir(drive.path());
        if case.queue == Queue::Pool {
            command.env("JOB_POOL", case.queue.session());
            command.env("JOB_ROOT", drive.path());
        }
        Worker::start(command, drive.path())
    };
    // from here on the broker keeps requests for the worker
    live_idle(&broker, start);

    let victim = Arc::new(Mutex::new(None::<Worker>));
    let (reach, reached) = mpsc::channel();
    let before = broker.log().len();
    let mut number = 0;
    let shot = victim.clone();
    broker.set_script(move |step| {
        number += 1;
        match case.fault {
            Some((at, fault)) if at + 1 == number => {
                let _ = reach.send(()); // only one kind of fault waits for it
                inject(fault, step, &shot)
            }
            _ => Verdict::Pass,
        }
    });
    let fault = case.fault.map(|(_, fault)| fault);
    // In 3.1.1 only a key tells a redelivery from a fresh request; in a pool, where the broker seemed to end the connection in order.
    // Null counts as absent.
    let is_doubtful = match case.queue {
        Queue::Own => case.version == "4",
        Queue::Pool => fault.is_some_and(Fault::cuts),
    };
    let request = json!({
        "id": "job",
        "key": is_doubtful.then_some("key"),
        "maxAttempts": if fault == Some(Fault::Stop) { 1 } else { 3 },
        "workDir": drive.path().join("job"),
        "steps": [match case.length {
            Length::Short => "echo $JOB_ATTEMPT >> runs",
            Length::Long => "echo $JOB_ATTEMPT >> runs; sleep 0.3",
        }, "exit 3"],
    });
    broker.publish("jobs/pending", request.to_string());
    {
        // locked before the first packet can come, so that there is something to kill
        let mut place = victim.lock().unwrap();
        *place = Some(start());
    }
    let has_ended = || {
        victim
            .lock()
            .unwrap()
            .as_mut()
            .expect("it was started")
            .ended()
            .is_some()
    };
    if fault == Some(Fault::Forget) {
        republish_if_lost(&broker, before, &request, has_ended);
    }
    if matches!(fault, Some(Fault::KillAfter | Fault::CutAndKill)) {
        wait::until("the fault or the end", || {
            reached.try_recv().is_ok() || has_ended()
        });
        // the packet is sent once the broker answers; what the worker makes of it by then is left to chance
        broker.log();
        thread::sleep(Duration::from_millis(
            case.fault.map_or(0, |(at, _)| at as u64 % 4),
        ));
        victim
            .lock()
            .unwrap()
            .as_mut()
            .expect("it was started")
            .kill9();
    }
    wait::until("the worker to end", has_ended);
    broker.set_script(|_| Verdict::Pass);
    let mut worker = victim.lock().unwrap().take().expect("it was started");
    let killed = worker.wait().code().is_none();
    if !killed {
        worker.exits_with(0);
    }
    drop(worker);
    // until the broker has read all that was sent
    await_end(&broker);
    assert!(
        !killed || fault.is_some_and(Fault::kills),
        "killed without a reason"
    );
    let reported = !broker.received(RESULT).is_empty();
    let packets = packets_since(&broker, before);
    let is_open = broker.queued(session) > 0 || !claims(&drive).is_empty();
    if !killed && is_open {
        // nothing tells a client whether its acknowledgement has arrived; all else it has to wait for
        let is_left = match case.queue {
            _ if fault == Some(Fault::Stop) => true,
            Queue::Own => cut_after_report(&broker, before),
            Queue::Pool => fault.is_some_and(Fault::cuts),
        };
        assert!(is_left, "the request is left behind");
    }
    if killed || is_open {
        finish(&broker, &drive, case.queue, start);
    }
    verify(&broker, &drive, case, killed, reported);

    // another worker finds nothing to do
    let results = broker.received(RESULT).len();
    live_idle(&broker, start);
    assert_eq!(broker.received(RESULT).len(), results);
    verify(&broker, &drive, case, killed, reported);
    End {
        packets,
        reached: case.fault.is_some_and(|(at, _)| at < packets),
    }
}

fn packets_since(broker: &Broker, before: usize) -> usize {
    broker.log()[before..]
        .iter()
        .filter(|entry| matches!(entry, Entry::Packet { .. }))
        .count()
}

/// Whether the worker was told that the broker has its result, and the link was cut only then.
fn cut_after_report(broker: &Broker, before: usize) -> bool {
    let log = &broker.log()[before..];
    let acknowledged = log.iter().position(|entry| {
        matches!(
            entry,
            Entry::Packet {
                packet: Packet::PubAck { .. },
                from_client: false,
                passed: true,
                ..
            }
        )
    });
    let cut = log.iter().position(|entry| {
        matches!(
            entry,
            Entry::Closed {
                why: "cut by the script",
                ..
            }
        )
    });
    acknowledged.is_some_and(|acknowledged| cut.is_some_and(|cut| acknowledged < cut))
}

fn inject(fault: Fault, step: &Step, victim: &Mutex<Option<Worker>>) -> Verdict {
    let kill = || {
        victim
            .lock()
            .unwrap()
            .as_mut()
            .expect("it was started")
            .kill9()
    };
    match fault {
        Fault::CutBefore => Verdict::CutBefore,
        Fault::CutAfter | Fault::CutAndKill => Verdict::CutAfter,
        Fault::Stop => {
            victim
                .lock()
                .unwrap()
                .as_ref()
                .expect("it was started")
                .sigterm();
            Verdict::Pass
        }
        Fault::Forget => Verdict::ForgetAndCut,
        Fault::KillBefore => {
            kill();
            Verdict::CutBefore
        }
        Fault::KillAfter if step.from_client => {
            kill();
            Verdict::CutAfter
        }
        // the worker shall read it first: the case kills it
        Fault::KillAfter => Verdict::Pass,
    }
}

/// What a controller does whose request the broker has lost: it publishes it again, once somebody listens.
fn republish_if_lost(
    broker: &Broker,
    before: usize,
    request: &Value,
    has_ended: impl Fn() -> bool,
) {
    wait::until("the session to be lost, and made anew", || {
        let log = &broker.log()[before..];
        let forgotten = |entry: &Entry| matches!(entry, Entry::Packet { passed: false, .. });
        let subscribed = |entry: &Entry| {
            matches!(
                entry,
                Entry::Packet {
                    packet: Packet::SubAck { .. },
                    passed: true,
                    ..
                }
            )
        };
        let delivered = |entry: &Entry| {
            matches!(
                entry,
                Entry::Packet {
                    packet: Packet::Publish { .. },
                    from_client: false,
                    passed: true,
                    ..
                }
            )
        };
        let Some(lost_at) = log.iter().position(forgotten) else {
            return has_ended();
        };
        if log[..lost_at].iter().any(delivered) {
            return true;
        }
        let again = log[lost_at..].iter().any(subscribed);
        if again {
            broker.publish("jobs/pending", request.to_string());
        }
        again
    });
}

/// Starts workers until the job is reported and nothing is left to do.
fn finish(broker: &Broker, drive: &TempDir, queue: Queue, start: impl Fn() -> Worker) {
    let is_done = || {
        let is_empty = broker.queued(queue.session()) == 0 && claims(drive).is_empty();
        !broker.received(RESULT).is_empty() && is_empty
    };
    for _ in 0..3 {
        let idle_before = idle_messages(broker);
        let mut worker = start();
        wait::until("the job to be reported", || {
            worker.ended().is_some() || (is_done() && idle_messages(broker) > idle_before)
        });
        if worker.ended().is_none() {
            worker.sigterm();
        }
        worker.exits_with(0);
        await_end(broker);
        if is_done() {
            return;
        }
    }
    panic!("the third worker has not brought the job to its end");
}

fn idle_messages(broker: &Broker) -> usize {
    let is_idle =
        |payload: &[u8]| serde_json::from_slice::<Value>(payload).unwrap()["state"] == "idle";
    broker
        .received(PRESENCE)
        .iter()
        .filter(|message| is_idle(&message.payload))
        .count()
}

fn live_idle(broker: &Broker, start: impl Fn() -> Worker) {
    let before = idle_messages(broker);
    let mut worker = start();
    wait::until("the worker to be idle", || idle_messages(broker) > before);
    worker.sigterm();
    worker.exits_with(0);
    await_end(broker);
}

/// Waits until the broker has read all that was sent.
fn await_end(broker: &Broker) {
    broker.wait_until(wait::DEADLINE, |log| {
        let mut open = BTreeSet::new();
        for entry in log {
            match entry {
                Entry::Packet { connection, .. } => open.insert(*connection),
                Entry::Closed { connection, .. } => open.remove(connection),
            };
        }
        open.is_empty()
    });
}

/// What is in progress in the pool's directory, if there is one.
fn claims(drive: &TempDir) -> Vec<String> {
    let pool = drive.path().join(".job-worker/the-pool");
    let mut claims = match pool.is_dir() {
        true => names(&pool),
        false => Vec::new(),
    };
    claims.retain(|name| name.starts_with("c-"));
    claims
}

/// The final state. `reported`: the first worker had published its result before it ended.
fn verify(broker: &Broker, drive: &TempDir, case: Case, killed: bool, reported: bool) {
    let results: Vec<Value> = broker
        .received(RESULT)
        .iter()
        .map(|m| serde_json::from_slice(&m.payload).unwrap())
        .collect();
    let result = results.first().expect("a result");
    for other in &results {
        for key in ["id", "status", "exitCode", "reason", "attempt"] {
            assert_eq!(
                other[key], result[key],
                "{key} differs between the copies of the result"
            );
        }
    }
    assert_eq!(
        (&result["status"], &result["exitCode"]),
        (&json!("failed"), &json!(3)),
        "{result}"
    );
    let stored: Value =
        serde_json::from_slice(&fs::read(drive.path().join("job/job.status.json")).unwrap())
            .unwrap();
    assert_eq!(stored["attempt"], result["attempt"]);
    broker.wait_for_queued(case.queue.session(), 0, wait::DEADLINE);
    assert_eq!(claims(drive), [""; 0]);
    assert!(broker.received("jobs/rejected").is_empty());

    let attempts = result["attempt"].as_u64().unwrap();
    let runs = fs::read_to_string(drive.path().join("job/runs")).unwrap();
    let runs: Vec<u64> = runs.lines().map(|line| line.parse().unwrap()).collect();
    if case.fault.is_some_and(|(_, fault)| fault == Fault::Stop) {
        // a stop may have met the job in the middle
        assert!(
            attempts == 1 && matches!(runs[..], [1] | [1, 1]),
            "{runs:?}"
        );
    } else if !killed || reported {
        assert_eq!(
            (attempts, &runs[..]),
            (1, &[1][..]),
            "run again without a cause"
        );
    } else {
        // an attempt that was killed before its step has left no line
        assert!(attempts <= 2, "{attempts} attempts for one kill");
        assert!(
            runs == [attempts] || runs == [1, 2] && attempts == 2,
            "attempt {attempts}, but runs of {runs:?}"
        );
    }
}
