//! The delivery promises against chance: many requests for few ids through a real Mosquitto, while workers, their steps and
//! the broker are killed with SIGKILL, workers are stopped, and links are cut, at random moments.
//!
//! A short form runs with the other tests. The long one, by hand:
//!
//! ```text
//! CAMPAIGN_JOBS=1000 cargo test --test campaign -- --nocapture --test-threads 1
//! ```
//!
//! `CAMPAIGN_SEED` takes another seed than the usual one. It decides all that the campaign decides; the moments also
//! depend on the machine.
//!
//! Five actors: the controller publishes requests for 20 ids, over and over, on the queues of two workers that share a
//! drive, and publishes again what the broker has forgotten. A supervising loop for each worker starts processes and ends
//! many of them. A breaker kills the broker and cuts links. A step notes its starts and ends outside of its directory,
//! and a proxy notes what goes over the wire. At the end each of these notes is explained, or the campaign fails.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod hostile;
mod power;
mod verdict;
mod wire;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use support::controller::Controller;
use support::mosquitto::Mosquitto;
use support::site::names;
use support::temp_dir::TempDir;
use support::wait;
use support::worker::{Worker, job_worker};
use wire::Proxy;

const SEED: u64 = 20_260_217;
const SHORT_FORM: usize = 60;
const MAX_ATTEMPTS: u64 = 3;

/// Each worker's id and topic root.
const QUEUES: [&str; 2] = ["a", "b"];

/// Ids, and directories, that all requests share.
const IDS: u64 = 20;

/// Requests that are published and have no result yet.
const WINDOW: usize = 30;

/// Without any result for so long nothing more is broken, until one comes.
const LULL: Duration = Duration::from_secs(1);

/// Without any result for so long, longer than a worker's longest pause before it connects again, the broker has lost what
/// is outstanding, and the controller publishes it again.
const PATIENCE: Duration = Duration::from_secs(12);

/// Without any result for so long something is stuck.
const STUCK: Duration = Duration::from_secs(90);

/// The start of the ids of the last jobs. Requests keep their order, so that nothing is left when these are over.
const LAST: &str = "last";

/// What each step does. A file with a name that only one process can make shows that it has the directory for itself.
const STEP: &str = r#"
echo "start $TOKEN $CAMPAIGN_LIFE $JOB_ATTEMPT" >> "$CAMPAIGN_DIR/marks"
echo $$ > claim.$$
if ! ln claim.$$ busy 2> /dev/null; then
    read -r owner < busy
    if read -r stat < "/proc/$owner/stat"; then
        case $stat in
            *") Z "* | *") X "*) ;;
            *) echo "overlap $TOKEN $CAMPAIGN_LIFE $owner" >> "$CAMPAIGN_DIR/marks" ;;
        esac
    fi 2> /dev/null
    ln -f claim.$$ busy
fi
sleep "$PAUSE"
rm -f busy claim.$$
echo "end $TOKEN $CAMPAIGN_LIFE" >> "$CAMPAIGN_DIR/marks"
"#;

/// What the broker does when it is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Broker {
    Remembers,
    Forgets,
}

mod by_default {
    #[test]
    fn with_a_broker_that_remembers() {
        super::campaign("auto", super::Broker::Remembers);
    }

    #[test]
    fn with_a_broker_that_forgets() {
        super::campaign("auto", super::Broker::Forgets);
    }
}

mod in_mqtt_3_1_1 {
    #[test]
    fn with_a_broker_that_remembers() {
        super::campaign("4", super::Broker::Remembers);
    }

    #[test]
    fn with_a_broker_that_forgets() {
        super::campaign("4", super::Broker::Forgets);
    }
}

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// How a process of the worker ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Killed,
    Stopped,
    /// By itself, with status 0.
    Done,
}

/// One process of a worker.
#[derive(Debug)]
struct Life {
    started: Instant,
    end: End,
    stderr: String,
}

/// What the controller knows of a request.
#[derive(Debug)]
struct Request {
    id: String,
    queue: usize,
    key: Option<String>,
    /// From the call to the broker's acknowledgement.
    published: Vec<(Instant, Instant)>,
    /// A worker has said that the broker has forgotten the request.
    told_to_publish_again: usize,
    pause: Duration,
    results: Vec<Value>,
}

type Requests = BTreeMap<String, Request>;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a number"))
    })
}

fn campaign(version: &str, memory: Broker) {
    let seed = number("CAMPAIGN_SEED", SEED);
    let count = number("CAMPAIGN_JOBS", SHORT_FORM as u64) as usize;
    let random = |actor: u64| Random(seed.wrapping_mul(actor) | 1);
    let started = Instant::now();

    let drive = TempDir::new();
    let mut broker = match memory {
        Broker::Remembers => Mosquitto::prepare(),
        Broker::Forgets => Mosquitto::prepare().without_persistence(),
    };
    broker.restart();
    let controller = Controller::connect(&broker);
    let log = wire::Log::default();
    let proxies = QUEUES.map(|_| Proxy::start(broker.port(), &log));
    fs::write(drive.path().join("step"), STEP).unwrap();
    for id in 0..IDS {
        fs::create_dir(drive.path().join(format!("id-{id:02}"))).unwrap();
    }
    let crew = Crew {
        proxies: &proxies,
        drive: drive.path(),
        version,
        lives: Mutex::default(),
        next: AtomicUsize::new(0),
        calm: AtomicBool::new(false),
        over: AtomicBool::new(false),
    };
    for queue in 0..QUEUES.len() {
        crew.open_queue(&controller, queue);
    }
    let lull = AtomicBool::new(false);

    let (requests, crashes, cuts) = thread::scope(|scope| {
        for queue in 0..QUEUES.len() {
            let random = random(1 + queue as u64);
            let crew = &crew;
            scope.spawn(move || {
                // whichever actor panics, the others end
                let _guard = Ending(&crew.calm, &crew.over);
                crew.supervise(queue, random);
            });
        }
        let breaker = scope.spawn(|| {
            let _guard = Ending(&crew.calm, &crew.over);
            break_things(&mut broker, &proxies, random(3), &lull, &crew.calm)
        });
        let _guard = Ending(&crew.calm, &crew.over);
        let mut desk = Desk {
            controller: &controller,
            drive: drive.path(),
            log: &log,
            sessions: controller.fresh_sessions().len(),
            requests: Requests::new(),
            outstanding: BTreeSet::new(),
            mark: controller.mark(),
            lull: &lull,
            over: &crew.over,
        };
        desk.bring_through(count, &mut random(4));
        crew.calm.store(true, Relaxed);
        let (crashes, cuts) = breaker.join().expect("the breaker");
        desk.bring_the_last_through();
        crew.over.store(true, Relaxed);
        (desk.requests, crashes, cuts)
    });

    let lives = crew.lives.into_inner().unwrap();
    let events = std::mem::take(&mut *log.lock().unwrap());
    let marks = fs::read_to_string(drive.path().join("marks")).unwrap_or_default();
    let ended = |end| lives.values().filter(|life| life.end == end).count();
    let (kills, stops) = (ended(End::Killed), ended(End::Stopped));
    let verdict = verdict::Evidence {
        requests: &requests,
        lives: &lives,
        events: &events,
        marks: &marks,
        crashes: &crashes,
        cuts: &cuts,
        memory,
    }
    .verdict();
    println!(
        "campaign (MQTT_PROTOCOL_VERSION={version}, broker {}, seed {seed}): {count} requests for {IDS} ids in {:.1} s; \
         {} workers, {kills} killed, {stops} stopped; {} broker kills; {} links cut; {verdict}",
        match memory {
            Broker::Remembers => "remembers",
            Broker::Forgets => "forgets",
        },
        started.elapsed().as_secs_f64(),
        lives.len(),
        crashes.len(),
        cuts.len(),
    );
    assert!(
        verdict.violations.is_empty(),
        "{}",
        verdict.violations.join("\n")
    );
    for id in 0..IDS {
        let left = names(&drive.path().join(format!("id-{id:02}")));
        assert!(
            !left.iter().any(|name| name.starts_with(".job")),
            "a killed worker leaves nothing behind for good: {left:?}"
        );
    }
    assert!(kills * 8 > count, "only {kills} workers were killed");
    assert!(
        crashes.len() >= 8 || count < 1000 && !crashes.is_empty(),
        "only {} broker kills",
        crashes.len()
    );
}

/// Ends all actors when one of them does.
struct Ending<'a>(&'a AtomicBool, &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Relaxed);
            self.1.store(true, Relaxed);
        }
    }
}

/// The workers, and who starts and ends them.
struct Crew<'a> {
    proxies: &'a [Proxy],
    drive: &'a Path,
    version: &'a str,
    lives: Mutex<BTreeMap<usize, Life>>,
    next: AtomicUsize,
    /// No more faults.
    calm: AtomicBool,
    over: AtomicBool,
}

impl Crew<'_> {
    fn start(&self, queue: usize) -> (usize, Worker) {
        let life = self.next.fetch_add(1, Relaxed);
        let mut command = job_worker();
        command
            .env(
                "MQTT_URL",
                format!("mqtt://127.0.0.1:{}", self.proxies[queue].port),
            )
            .env("MQTT_USERNAME", life.to_string())
            .env("MQTT_PROTOCOL_VERSION", self.version)
            .env("MQTT_TOPIC_ROOT", QUEUES[queue])
            .env("WORKER_ID", QUEUES[queue])
            .env("JOB_MAX_ATTEMPTS", MAX_ATTEMPTS.to_string())
            .env("JOB_STOP_GRACE", "1")
            .env("CAMPAIGN_LIFE", life.to_string())
            .env("CAMPAIGN_DIR", self.drive)
            .current_dir(self.drive);
        let stderr = self.drive.join("workers").join(life.to_string());
        fs::create_dir_all(&stderr).unwrap();
        (life, Worker::start(command, &stderr))
    }

    /// Makes the broker keep requests for a worker, by one that comes, subscribes and is stopped.
    fn open_queue(&self, controller: &Controller, queue: usize) {
        let started = Instant::now();
        let (life, mut worker) = self.start(queue);
        wait::until("the worker to be idle", || is_served(controller, 0, queue));
        worker.sigterm();
        worker.exits_with(0);
        self.note(life, started, End::Stopped, &worker);
    }

    fn note(&self, life: usize, started: Instant, end: End, worker: &Worker) {
        let stderr = worker.stderr();
        self.lives.lock().unwrap().insert(
            life,
            Life {
                started,
                end,
                stderr,
            },
        );
    }

    /// Starts one process after the other, and ends most of them at some moment of their life.
    fn supervise(&self, queue: usize, mut random: Random) {
        while !self.over.load(Relaxed) {
            let started = Instant::now();
            let (life, mut worker) = self.start(queue);
            let end_at = random.percent(75).then(|| started + random.millis(0, 150));
            let how = random.below(100);
            let mut end = End::Done;
            while worker.ended().is_none() {
                if self.over.load(Relaxed) {
                    // by the signal itself, where it comes before the handlers are there
                    worker.sigterm();
                    worker.wait();
                    end = End::Stopped;
                } else if end == End::Done
                    && end_at.is_some_and(|at| at <= Instant::now())
                    && !self.calm.load(Relaxed)
                {
                    end = end_worker(&mut worker, how);
                } else {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            match worker.wait().code() {
                Some(0) => {}
                // the cuts look like those of a rival under our id to a worker that is idle for three of them
                Some(75) => end = End::Stopped,
                Some(code) => panic!("a worker ended with {code}:\n{}", worker.stderr()),
                // also where SIGTERM comes before its handler is there
                None => assert_ne!(end, End::Done, "{}", worker.stderr()),
            }
            self.note(life, started, end, &worker);
        }
    }
}

fn end_worker(worker: &mut Worker, how: u64) -> End {
    if how < 20 {
        worker.sigterm();
        return End::Stopped;
    }
    let steps = (how < 50).then(|| children(worker.pid()));
    worker.kill9();
    for group in steps.into_iter().flatten() {
        use rustix::process::{Pid, Signal, kill_process_group};
        if let Some(group) = Pid::from_raw(group) {
            let _ = kill_process_group(group, Signal::KILL); // may have ended by itself
        }
    }
    End::Killed
}

fn children(pid: u32) -> Vec<i32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Whether a worker of this queue has been heard after `mark`: then it has subscribed.
fn is_served(controller: &Controller, mark: usize, queue: usize) -> bool {
    let topic = format!("{0}/workers/{0}", QUEUES[queue]);
    controller
        .heard_since(mark, &topic)
        .iter()
        .any(|message| message.json()["state"] != "offline")
}

/// Kills the broker and cuts links until it is calm; tells when it killed and when it cut.
fn break_things(
    broker: &mut Mosquitto,
    proxies: &[Proxy],
    mut random: Random,
    lull: &AtomicBool,
    calm: &AtomicBool,
) -> (Vec<Instant>, Vec<Instant>) {
    let (mut crashes, mut cuts) = (Vec::new(), Vec::new());
    let mut next_cut = Instant::now() + random.millis(50, 600);
    let mut next_crash = Instant::now() + random.millis(200, 600);
    while !calm.load(Relaxed) {
        let now = Instant::now();
        if lull.load(Relaxed) {
            thread::sleep(Duration::from_millis(1));
        } else if now >= next_crash {
            broker.crash();
            crashes.push(now);
            thread::sleep(random.millis(0, 200));
            broker.restart();
            next_crash = Instant::now() + random.millis(1000, 5000);
        } else if now >= next_cut {
            if proxies[random.below(2) as usize].cut() {
                cuts.push(now);
            }
            next_cut = now + random.millis(50, 600);
        } else {
            thread::sleep(Duration::from_millis(1));
        }
    }
    (crashes, cuts)
}

/// The controller's side.
struct Desk<'a> {
    controller: &'a Controller,
    drive: &'a Path,
    log: &'a wire::Log,
    /// How many sessions of ours the broker has begun.
    sessions: usize,
    requests: Requests,
    outstanding: BTreeSet<String>,
    mark: usize,
    lull: &'a AtomicBool,
    over: &'a AtomicBool,
}

impl Desk<'_> {
    fn bring_through(&mut self, count: usize, random: &mut Random) {
        let mut progress = Instant::now();
        let mut silence = progress;
        while self.requests.len() < count || !self.outstanding.is_empty() {
            assert!(!self.over.load(Relaxed), "another actor has failed");
            if self.collect() {
                (progress, silence) = (Instant::now(), Instant::now());
            }
            assert!(
                progress.elapsed() < STUCK,
                "stuck: no result of {:?}",
                self.outstanding
            );
            self.lull.store(silence.elapsed() > LULL, Relaxed);
            if self.has_lost_its_session() || silence.elapsed() > PATIENCE {
                silence = Instant::now();
                for token in self.outstanding.clone() {
                    self.publish(&token);
                }
            } else if self.requests.len() < count && self.outstanding.len() < WINDOW {
                self.submit_some(random);
            } else {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Whether the broker has forgotten us. It has forgotten the workers, too, and keeps nothing for them until they are
    /// back, so they are waited for.
    fn has_lost_its_session(&mut self) -> bool {
        let sessions = self.controller.fresh_sessions();
        let lost = sessions.len() > self.sessions;
        if lost {
            self.sessions = sessions.len();
            let mark = sessions[self.sessions - 1];
            wait::until("the workers to be back, or the broker to be gone", || {
                self.controller.fresh_sessions().len() > self.sessions
                    || (0..QUEUES.len()).all(|queue| is_served(self.controller, mark, queue))
            });
        }
        lost
    }

    /// One request for an id that has none, as a careful controller does it, or several for one id in a row.
    fn submit_some(&mut self, random: &mut Random) {
        let busy: BTreeSet<String> = self
            .outstanding
            .iter()
            .map(|token| self.requests[token].id.clone())
            .collect();
        let free: Vec<String> = (0..IDS)
            .map(|id| format!("id-{id:02}"))
            .filter(|id| !busy.contains(id))
            .collect();
        let queue = random.below(2) as usize;
        if !free.is_empty() && random.percent(60) {
            let id = free[random.below(free.len() as u64) as usize].clone();
            self.submit(&id, queue, random);
        } else {
            let id = format!("id-{:02}", random.below(IDS));
            for _ in 0..2 + random.below(3) {
                let other = random.percent(25);
                self.submit(&id, if other { 1 - queue } else { queue }, random);
            }
        }
    }

    fn submit(&mut self, id: &str, queue: usize, random: &mut Random) {
        let token = format!("t{:04}", self.requests.len());
        let key = random.percent(40).then(|| format!("key of {token}"));
        let request = Request {
            id: id.to_owned(),
            queue,
            key,
            published: Vec::new(),
            told_to_publish_again: 0,
            pause: random.millis(10, 50),
            results: Vec::new(),
        };
        self.requests.insert(token.clone(), request);
        self.outstanding.insert(token.clone());
        self.publish(&token);
    }

    fn publish(&mut self, token: &str) {
        let request = self.requests.get_mut(token).expect("a request of ours");
        let dir: PathBuf = self.drive.join(&request.id);
        let mut pointer = json!({
            "id": request.id, "workDir": dir,
            "steps": [{ "run": ". \"$CAMPAIGN_DIR/step\"", "name": token }],
            "env": { "TOKEN": token, "PAUSE": request.pause.as_secs_f64().to_string() },
        });
        if let Some(key) = &request.key {
            pointer["key"] = json!(key);
        }
        let started = Instant::now();
        self.controller.publish(
            &format!("{}/pending", QUEUES[request.queue]),
            pointer.to_string(),
        );
        request.published.push((started, Instant::now()));
    }

    /// Takes what has come, and tells whether there was a result.
    fn collect(&mut self) -> bool {
        let news = self.controller.news(self.mark);
        self.mark += news.len();
        let mut progress = false;
        for message in news {
            let kind = message.topic.split('/').nth(1).unwrap_or_default();
            assert_ne!(kind, "rejected", "{}", message.text());
            if kind == "results" {
                progress = true;
                self.take_result(message.json());
            }
        }
        progress
    }

    fn take_result(&mut self, result: Value) {
        let token = verdict::token_of(&result, &self.requests)
            .or_else(|| verdict::token_held(&result, &self.log.lock().unwrap()))
            .unwrap_or_else(|| panic!("a result of no request: {result}"));
        let request = self
            .requests
            .get_mut(&token)
            .unwrap_or_else(|| panic!("a result of another campaign: {result}"));
        request.results.push(result.clone());
        if verdict::is_forgotten(&result) && self.outstanding.contains(&token) {
            // the stored result of a key is final: publishing it anew takes another key
            request.told_to_publish_again += 1;
            let number = request.told_to_publish_again;
            if let Some(key) = &mut request.key {
                *key = format!("key of {token}, {number}");
            }
            self.publish(&token);
        } else {
            self.outstanding.remove(&token);
        }
    }

    fn bring_the_last_through(&mut self) {
        for (queue, name) in QUEUES.iter().enumerate() {
            let id = format!("{LAST}-{name}");
            fs::create_dir(self.drive.join(&id)).unwrap();
            self.submit(&id, queue, &mut Random(1));
        }
        let started = Instant::now();
        while !self.outstanding.is_empty() {
            assert!(
                started.elapsed() < STUCK && !self.over.load(Relaxed),
                "stuck: no result of the last jobs"
            );
            thread::sleep(Duration::from_millis(5));
            self.collect();
        }
    }
}
