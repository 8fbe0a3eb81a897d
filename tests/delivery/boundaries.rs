//! The promises of delivery at every packet boundary of a whole job: before and after each packet the link is cut, the session
//! is lost, or the worker is killed. Wherever that happens, the end is the same.
//!
//! A run without a fault counts the packets, then there is one run for each boundary and each kind of fault.

use crate::support;

use serde_json::{Value, json};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use support::broker::{Broker, Entry, Packet, Step, Verdict};
use support::site::WORKER;
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
}

const FAULTS: [Fault; 5] = [
    Fault::CutBefore,
    Fault::CutAfter,
    Fault::Forget,
    Fault::KillBefore,
    Fault::KillAfter,
];

impl Fault {
    fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter)
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
    version: &'static str,
    length: Length,
    /// The packet, counted from 0, and what happens there.
    fault: Option<(usize, Fault)>,
}

#[test]
fn a_short_job_in_mqtt_5() {
    at_every_boundary("5", Length::Short);
}

#[test]
fn a_short_job_in_mqtt_3_1_1() {
    at_every_boundary("4", Length::Short);
}

#[test]
fn a_long_job_in_mqtt_5() {
    at_every_boundary("5", Length::Long);
}

#[test]
fn a_long_job_in_mqtt_3_1_1() {
    at_every_boundary("4", Length::Long);
}

fn at_every_boundary(version: &'static str, length: Length) {
    let packets = run(Case {
        version,
        length,
        fault: None,
    })
    .packets;
    assert!(packets >= 10, "a whole job in {packets} packets?");
    let cases: Vec<_> = (0..packets)
        .flat_map(|at| {
            FAULTS.map(|fault| Case {
                version,
                length,
                fault: Some((at, fault)),
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
        reached + 2 * FAULTS.len() >= cases.len(),
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
    let broker = Broker::start();
    let start = || {
        let mut command = job_worker();
        command
            .env("MQTT_URL", broker.url())
            .env("MQTT_PROTOCOL_VERSION", case.version)
            .current_dir(drive.path());
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
    // In 3.1.1 only a key tells a redelivery from a fresh request. Null counts as absent.
    let request = json!({
        "id": "job",
        "key": (case.version == "4").then_some("key"),
        "workDir": drive.path(),
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
    let fault = case.fault.map(|(_, fault)| fault);
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
    if fault == Some(Fault::KillAfter) {
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
    broker.wait_for_connected(WORKER, false, wait::DEADLINE);
    assert!(
        !killed || fault.is_some_and(Fault::kills),
        "killed without a reason"
    );
    let reported = !broker.received(RESULT).is_empty();
    let packets = packets_since(&broker, before);
    let unacknowledged = broker.queued(WORKER) > 0;
    if !killed && unacknowledged {
        // nothing tells a client whether its acknowledgement has arrived; all else it has to wait for
        assert!(
            cut_after_report(&broker, before),
            "the request is left behind"
        );
    }
    if killed || unacknowledged {
        finish(&broker, start);
    }
    verify(&broker, &drive, killed, reported);

    // another worker finds nothing to do
    let results = broker.received(RESULT).len();
    live_idle(&broker, start);
    assert_eq!(broker.received(RESULT).len(), results);
    verify(&broker, &drive, killed, reported);
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
        Fault::CutAfter => Verdict::CutAfter,
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
fn finish(broker: &Broker, start: impl Fn() -> Worker) {
    let is_done = || !broker.received(RESULT).is_empty() && broker.queued(WORKER) == 0;
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
        broker.wait_for_connected(WORKER, false, wait::DEADLINE);
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
    broker.wait_for_connected(WORKER, false, wait::DEADLINE);
}

/// The final state. `reported`: the first worker had published its result before it ended.
fn verify(broker: &Broker, drive: &TempDir, killed: bool, reported: bool) {
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
        serde_json::from_slice(&fs::read(drive.path().join("job.status.json")).unwrap()).unwrap();
    assert_eq!(stored["attempt"], result["attempt"]);
    broker.wait_for_queued(WORKER, 0, wait::DEADLINE);
    assert!(broker.received("jobs/rejected").is_empty());

    let attempts = result["attempt"].as_u64().unwrap();
    let runs = fs::read_to_string(drive.path().join("runs")).unwrap();
    let runs: Vec<u64> = runs.lines().map(|line| line.parse().unwrap()).collect();
    if !killed || reported {
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
