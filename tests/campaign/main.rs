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
//! depend on the machine. `CAMPAIGN_TIMELINE` names a file for all that happened, one line a moment.
//!
//! The actors: the controller publishes requests for 20 ids, over and over, on the queues of two workers that share a
//! drive, or on the queue of a pool of six, and publishes again what the broker has forgotten. A supervising loop for each worker
//! starts processes and ends many of them, or a step. A breaker kills the broker and cuts links; in a pool it also kills and cuts when a
//! packet of its choice goes by. A step notes its starts and ends outside of its directory, and a proxy notes what goes over the
//! wire. At the end each of these notes is explained, or the campaign fails.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod claims;
mod hostile;
mod pool;
mod power;
mod verdict;
mod walk;
mod wire;

use claims::Claim;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use support::controller::Controller;
use support::mosquitto::Mosquitto;
use support::pool::{NAME, await_no_claims};
use support::processes::children;
use support::random::{Random, number};
use support::site::names;
use support::temp_dir::TempDir;
use support::wait;
use support::worker::{Worker, job_worker};
use wire::{Proxy, World};

const SEED: u64 = 20_260_217;
const SHORT_FORM: usize = 24;
const MAX_ATTEMPTS: u64 = 3;

/// Who serves which queues.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Crowd {
    /// Two workers, each with a queue of its own.
    Loners,
    /// Six members of one pool.
    Pool,
}

impl Crowd {
    /// The topic root of each queue; of a loner, also its id.
    fn queues(self) -> &'static [&'static str] {
        self.pick(&["a", "b"], &["p"])
    }

    fn workers(self) -> &'static [&'static str] {
        self.pick(self.queues(), &["m0", "m1", "m2", "m3", "m4", "m5"])
    }

    /// Which of two settings is this crowd's.
    fn pick<T>(self, loners: T, pool: T) -> T {
        match self {
            Self::Loners => loners,
            Self::Pool => pool,
        }
    }
}

/// Ids, and directories, that all requests share.
const IDS: u64 = 20;

/// Requests that are published and have no result yet.
const WINDOW: usize = 30;

/// Without any result for so long nothing more is broken, until one comes.
const LULL: Duration = Duration::from_secs(1);

/// Without any result for so long the broker has lost what is outstanding, and the controller publishes it again. It is longer
/// than a worker's longest pause before it connects again, 10 s, and what it then gives its controller to subscribe, 2 s: behind
/// this, the faults begin anew.
const PATIENCE: Duration = Duration::from_secs(20);

/// Without any result for so long something is stuck.
const STUCK: Duration = Duration::from_secs(180);

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
read -r journal < job.status.json
case $journal in
    *"$TOKEN"*) ;;
    *) echo "journal $TOKEN $CAMPAIGN_LIFE" >> "$CAMPAIGN_DIR/marks" ;;
esac
rm -f busy claim.$$
echo "end $TOKEN $CAMPAIGN_LIFE" >> "$CAMPAIGN_DIR/marks"
"#;

/// What the broker does when it is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Broker {
    Remembers,
    Forgets,
}

/// A campaign for each memory of a broker, by default and over MQTT 3.1.1.
macro_rules! campaigns {
    ($crowd:expr, $($mode:ident $version:literal),*) => { $(
        mod $mode {
            #[test]
            fn with_a_broker_that_remembers() {
                crate::campaign($crowd, $version, crate::Broker::Remembers);
            }

            #[test]
            fn with_a_broker_that_forgets() {
                crate::campaign($crowd, $version, crate::Broker::Forgets);
            }
        }
    )* };
}
use campaigns;

campaigns!(crate::Crowd::Loners, by_default "auto", in_mqtt_3_1_1 "4");

/// How a process of the worker ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Killed,
    Stopped,
    /// By itself, with status 0.
    Done,
}

/// One process of a worker.
#[derive(Clone)]
struct Life {
    worker: &'static str,
    started: Instant,
    ended: Instant,
    end: End,
    stderr: String,
    /// Of a pool: the claims that are there at its end, and the number of marks then.
    left: Vec<Claim>,
    marks: usize,
}

/// What the controller knows of a request.
#[derive(Clone)]
struct Request {
    id: String,
    queue: usize,
    key: Option<String>,
    /// From the call to the broker's acknowledgement.
    published: Vec<(Instant, Instant)>,
    pause: Duration,
    results: Vec<Value>,
}

type Requests = BTreeMap<String, Request>;

fn campaign(crowd: Crowd, version: &str, memory: Broker) {
    let seed = number("CAMPAIGN_SEED", SEED);
    let count = number("CAMPAIGN_JOBS", SHORT_FORM as u64) as usize;
    let random = |actor: u64| Random::new(seed.wrapping_mul(actor));
    let started = Instant::now();

    // where a disk keeps what it has is the subject of the power cuts
    let (drive, broker) = match crowd {
        Crowd::Loners => (TempDir::new(), Mosquitto::prepare()),
        Crowd::Pool => (TempDir::in_memory(), Mosquitto::prepare().in_memory()),
    };
    let mut broker = match memory {
        Broker::Remembers => broker,
        Broker::Forgets => broker.without_persistence(),
    };
    broker.restart();
    let controller = Controller::connect(&broker);
    let log = wire::Log::default();
    let running = Running::default();
    let world = World {
        log: log.clone(),
        running: running.clone(),
        drive: (crowd == Crowd::Pool).then(|| drive.path().to_owned()),
    };
    let start = |_: &&str| Proxy::start(broker.port(), world.clone());
    let proxies: Vec<Proxy> = crowd.workers().iter().map(start).collect();
    fs::write(drive.path().join("step"), STEP).unwrap();
    for id in 0..IDS {
        fs::create_dir(drive.path().join(format!("id-{id:02}"))).unwrap();
    }
    let crew = Crew {
        crowd,
        proxies: &proxies,
        drive: drive.path(),
        version,
        log: &log,
        running,
        lives: Mutex::default(),
        next: AtomicUsize::new(0),
        memory,
        faults: Mutex::default(),
        lull: AtomicBool::new(false),
        calm: AtomicBool::new(false),
        over: AtomicBool::new(false),
    };
    for worker in 0..crowd.queues().len() {
        crew.open_queue(&controller, worker);
    }

    let requests = thread::scope(|scope| {
        for worker in 0..crowd.workers().len() {
            let random = random(100 + worker as u64);
            let crew = &crew;
            scope.spawn(move || {
                // whichever actor panics, the others end
                let _guard = Ending(&crew.calm, &crew.over);
                crew.supervise(worker, random);
            });
        }
        let breaker = scope.spawn(|| {
            let _guard = Ending(&crew.calm, &crew.over);
            crew.break_things(&mut broker, random(3));
        });
        let _guard = Ending(&crew.calm, &crew.over);
        let mut desk = Desk {
            crew: &crew,
            controller: &controller,
            sessions: controller.fresh_sessions().len(),
            requests: Requests::new(),
            outstanding: BTreeSet::new(),
            mark: controller.mark(),
        };
        desk.bring_through(count, &mut random(4));
        crew.calm.store(true, Relaxed);
        breaker.join().expect("the breaker");
        desk.bring_the_last_through();
        if crowd == Crowd::Pool {
            await_no_claims(drive.path());
        }
        crew.over.store(true, Relaxed);
        desk.requests
    });

    let evidence = crew.evidence(&requests);
    let (lives, events) = (&evidence.lives, &evidence.events);
    let ended = |end| lives.values().filter(|life| life.end == end).count();
    let (kills, stops) = (ended(End::Killed), ended(End::Stopped));
    let is_trapped = |event: &&wire::Event| matches!(event.packet, wire::Packet::Trapped(_));
    if let Ok(file) = std::env::var("CAMPAIGN_TIMELINE") {
        let tokens: Vec<&str> = requests.keys().map(String::as_str).collect();
        fs::write(file, evidence.timeline(&tokens)).unwrap();
    }
    let verdict = evidence.verdict();
    println!(
        "campaign ({crowd:?}, MQTT_PROTOCOL_VERSION={version}, broker {memory:?}, seed {seed}): {} requests for {IDS} ids in {:.1} s; \
         {} workers, {kills} killed, {stops} stopped; {} broker kills; {} links cut; {} traps sprung; {verdict}",
        requests.len(),
        started.elapsed().as_secs_f64(),
        lives.len(),
        evidence.crashes.len(),
        evidence.cuts.len(),
        events.iter().filter(is_trapped).count(),
    );
    let found = verdict.violations.join("\n");
    assert!(found.is_empty(), "seed {seed}: {found}");
    for (words, forged) in evidence.forged() {
        let found = forged.verdict().violations;
        let is_seen = found.iter().any(|it| it.contains(words));
        assert!(is_seen, "the verdict does not see: {words}");
    }
    // a broker that forgets forgets a request that was published again, too, whose worker is killed
    let comes_again = crowd == Crowd::Pool || memory == Broker::Remembers;
    for id in (0..IDS).filter(|_| comes_again) {
        let left = names(&drive.path().join(format!("id-{id:02}")));
        let is_clean = !left.iter().any(|name| name.starts_with(".job"));
        assert!(is_clean, "a killed worker leaves nothing behind: {left:?}");
    }
    let enough = crew.has_seen_enough(count);
    assert!(enough, "{kills} kills, {} crashes", evidence.crashes.len());
}

/// When the broker was killed, and when a link was cut.
#[derive(Clone, Default)]
struct Faults {
    crashes: Vec<Instant>,
    cuts: Vec<Instant>,
}

/// The processes of the workers that run now.
type Running = Arc<Mutex<BTreeMap<usize, RunningLife>>>;

struct RunningLife {
    pid: u32,
    killed: bool,
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
    crowd: Crowd,
    proxies: &'a [Proxy],
    drive: &'a Path,
    version: &'a str,
    log: &'a wire::Log,
    running: Running,
    lives: Mutex<BTreeMap<usize, Life>>,
    next: AtomicUsize,
    memory: Broker,
    faults: Mutex<Faults>,
    /// No more faults, until there is a result.
    lull: AtomicBool,
    /// No more faults.
    calm: AtomicBool,
    over: AtomicBool,
}

impl Crew<'_> {
    /// All that was noted so far.
    fn evidence(&self, requests: &Requests) -> verdict::Evidence {
        let Faults { crashes, cuts } = self.faults.lock().unwrap().clone();
        verdict::Evidence {
            crowd: self.crowd,
            memory: self.memory,
            requests: requests.clone(),
            lives: self.lives.lock().unwrap().clone(),
            events: self.log.lock().unwrap().clone(),
            marks: fs::read_to_string(self.drive.join("marks")).unwrap_or_default(),
            crashes,
            cuts,
        }
    }

    /// The number of the process, when it was started, and the process.
    fn start(&self, worker: usize) -> (usize, Instant, Worker) {
        let life = self.next.fetch_add(1, Relaxed);
        let mut command = job_worker();
        let url = format!("mqtt://127.0.0.1:{}", self.proxies[worker].port);
        let name = self.crowd.workers()[worker];
        command
            .envs([
                ("MQTT_URL", url),
                ("MQTT_USERNAME", life.to_string()),
                ("MQTT_PROTOCOL_VERSION", self.version.to_owned()),
                ("WORKER_ID", name.to_owned()),
                ("JOB_MAX_ATTEMPTS", MAX_ATTEMPTS.to_string()),
                ("JOB_STOP_GRACE", "1".to_owned()),
                ("CAMPAIGN_LIFE", life.to_string()),
            ])
            .env("CAMPAIGN_DIR", self.drive)
            .current_dir(self.drive);
        match self.crowd {
            Crowd::Loners => command.env("MQTT_TOPIC_ROOT", name),
            Crowd::Pool => command
                .env("MQTT_TOPIC_ROOT", self.crowd.queues()[0])
                .env("JOB_POOL", NAME)
                .env("JOB_ROOT", self.drive),
        };
        let stderr = self.drive.join("workers").join(life.to_string());
        fs::create_dir_all(&stderr).unwrap();
        let started = Instant::now();
        let worker = Worker::start(command, &stderr);
        let running = RunningLife {
            pid: worker.pid(),
            killed: false,
        };
        self.running.lock().unwrap().insert(life, running);
        (life, started, worker)
    }

    /// Whether the faults are as many as so many requests are to meet.
    fn has_seen_enough(&self, count: usize) -> bool {
        let lives = self.lives.lock().unwrap();
        let kills = lives.values().filter(|life| life.end == End::Killed);
        kills.count() >= count / self.crowd.pick(8, 20)
            && !self.faults.lock().unwrap().crashes.is_empty()
    }

    /// Makes the broker keep requests for a worker, by one that comes, subscribes and is stopped.
    fn open_queue(&self, controller: &Controller, worker: usize) {
        let (life, started, mut process) = self.start(worker);
        wait::until("the worker to serve its queue", || {
            self.serves(controller, 0, worker, None)
        });
        process.stop();
        self.note(life, (worker, started), End::Stopped, &process);
    }

    /// Whether this worker, or a member of the pool, has subscribed after `mark`, or after `crash`.
    fn serves(
        &self,
        controller: &Controller,
        mark: usize,
        worker: usize,
        crash: Option<Instant>,
    ) -> bool {
        match self.crowd {
            Crowd::Loners => {
                let name = self.crowd.workers()[worker];
                let topic = format!("{name}/workers/{name}");
                let mut heard = controller.heard_since(mark, &topic).into_iter();
                heard.any(|message| message.json()["state"] != "offline")
            }
            Crowd::Pool => {
                let log = self.log.lock().unwrap();
                let is_new = |event: &&wire::Event| crash.is_none_or(|at| event.at > at);
                let mut newest = log.iter().rev().take_while(is_new);
                newest.any(|event| matches!(event.packet, wire::Packet::Subscribed))
            }
        }
    }

    /// The requests that are claims, or were.
    fn kept_requests(&self) -> BTreeSet<String> {
        let mut kept = verdict::claimed(&self.log.lock().unwrap());
        let claims = claims::claims(self.drive);
        kept.extend(claims.into_iter().map(|claim| claim.token));
        kept
    }

    fn note(&self, number: usize, (worker, started): (usize, Instant), end: End, process: &Worker) {
        let ended = Instant::now();
        // the marks first: a run that began before the look at the claims was not allowed to
        let marks = fs::read_to_string(self.drive.join("marks")).unwrap_or_default();
        let left = match self.crowd {
            Crowd::Loners => Vec::new(),
            Crowd::Pool => claims::claims(self.drive),
        };
        let life = Life {
            worker: self.crowd.workers()[worker],
            started,
            ended,
            end,
            stderr: process.stderr(),
            left,
            marks: marks.lines().count(),
        };
        self.lives.lock().unwrap().insert(number, life);
    }

    /// Starts one process after the other, and ends most of them at some moment of their life.
    fn supervise(&self, number: usize, mut random: Random) {
        // a member of a pool spends most of its life waiting
        let longest_life = self.crowd.pick(150, 600);
        while !self.over.load(Relaxed) {
            let (life, started, mut worker) = self.start(number);
            let end_at = random
                .percent(75)
                .then(|| started + random.millis(0, longest_life));
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
                    end = end_worker(&mut worker, random.below(100));
                } else {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            let running = self.running.lock().unwrap().remove(&life);
            if running.is_some_and(|running| running.killed) {
                end = End::Killed;
            }
            match worker.wait().code() {
                Some(0) => {}
                // the cuts look like those of a rival under our id to a worker that is idle for three of them
                Some(75) => end = End::Stopped,
                Some(code) => panic!("a worker ended with {code}:\n{}", worker.stderr()),
                // also where SIGTERM comes before its handler is there
                None => assert_ne!(end, End::Done, "{}", worker.stderr()),
            }
            self.note(life, (number, started), end, &worker);
        }
    }

    /// Kills the broker and cuts links until it is calm.
    fn break_things(&self, broker: &mut Mosquitto, mut random: Random) {
        let mut next_cut = Instant::now() + random.millis(50, 600);
        let mut next_crash = Instant::now() + random.millis(200, 600);
        while !self.calm.load(Relaxed) {
            let now = Instant::now();
            if self.lull.load(Relaxed) {
                self.proxies.iter().for_each(|proxy| proxy.set(None));
                // a worker that is back after its longest pause would lose each broker at once, and pause again
                next_crash = next_crash.max(now + 3 * LULL);
                thread::sleep(Duration::from_millis(1));
            } else if now >= next_crash {
                broker.crash();
                self.faults.lock().unwrap().crashes.push(now);
                thread::sleep(random.millis(0, 200));
                broker.restart();
                next_crash = Instant::now() + random.millis(1000, 5000);
            } else if now >= next_cut {
                let proxy = &self.proxies[random.below(self.proxies.len() as u64) as usize];
                let older = random.below(self.crowd.pick(1, 2)) as usize;
                if self.crowd == Crowd::Pool && random.percent(60) {
                    proxy.set(Some(pool::trap(&mut random)));
                } else if proxy.cut(older) {
                    self.faults.lock().unwrap().cuts.push(now);
                }
                next_cut = now + random.millis(50, self.crowd.pick(600, 300));
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.proxies.iter().for_each(|proxy| proxy.set(None));
    }
}

fn kill_group(group: u32) {
    use rustix::process::{Pid, Signal, kill_process_group};
    if let Some(group) = Pid::from_raw(group as i32) {
        let _ = kill_process_group(group, Signal::KILL); // may have ended by itself
    }
}

fn end_worker(worker: &mut Worker, how: u64) -> End {
    if how < 20 {
        worker.sigterm();
        return End::Stopped;
    }
    let steps = (how < 50).then(|| children(worker.pid()));
    worker.kill9();
    steps.into_iter().flatten().for_each(kill_group);
    End::Killed
}

/// The controller's side.
struct Desk<'a> {
    crew: &'a Crew<'a>,
    controller: &'a Controller,
    /// How many sessions of ours the broker has begun.
    sessions: usize,
    requests: Requests,
    outstanding: BTreeSet<String>,
    mark: usize,
}

impl Desk<'_> {
    fn bring_through(&mut self, count: usize, random: &mut Random) {
        let mut progress = Instant::now();
        let (mut silence, mut looked) = (progress, progress);
        while self.asks_for_more(count) || !self.outstanding.is_empty() {
            assert!(!self.crew.over.load(Relaxed), "another actor has failed");
            if self.collect() {
                (progress, silence) = (Instant::now(), Instant::now());
            }
            assert!(progress.elapsed() < STUCK, "{}", self.story_of_a_halt());
            self.crew.lull.store(silence.elapsed() > LULL, Relaxed);
            let patience = self.crew.crowd.pick(PATIENCE, pool::PATIENCE);
            // who reads all notes at each turn keeps the proxies from writing theirs
            let may_look = looked.elapsed() > LULL && silence.elapsed() > patience;
            if self.has_lost_its_session() || may_look {
                // a pool keeps what it has, whatever the broker forgets
                let kept = match self.crew.crowd {
                    Crowd::Pool if silence.elapsed() < pool::LONG_PATIENCE => {
                        self.crew.kept_requests()
                    }
                    _ => BTreeSet::new(),
                };
                let mut lost = self.outstanding.clone();
                lost.retain(|token| !kept.contains(token));
                looked = Instant::now();
                if !lost.is_empty() {
                    silence = looked;
                }
                lost.iter().for_each(|token| self.publish(token));
            } else if self.asks_for_more(count) && self.outstanding.len() < WINDOW {
                self.submit_some(random);
            } else {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// On a fast machine so many requests may all be over before they have met their faults.
    fn asks_for_more(&self, count: usize) -> bool {
        let sent = self.requests.len();
        let may_meet_more = !self.crew.calm.load(Relaxed) && sent < 10 * count;
        sent < count || (may_meet_more && !self.crew.has_seen_enough(count))
    }

    /// Whether the broker has forgotten us. It has forgotten the workers, too, and keeps nothing for them until they are
    /// back, so they are waited for.
    fn has_lost_its_session(&mut self) -> bool {
        let sessions = self.controller.fresh_sessions();
        let lost = sessions.len() > self.sessions;
        if lost {
            self.sessions = sessions.len();
            let mark = sessions[self.sessions - 1];
            let crash = self.crew.faults.lock().unwrap().crashes.last().copied();
            let serves = |worker| self.crew.serves(self.controller, mark, worker, crash);
            let since = Instant::now();
            wait::until("the workers to be back, or the broker to be gone", || {
                // one that pauses for longer than the broker lives would never be back
                self.crew.lull.store(since.elapsed() > LULL, Relaxed);
                self.controller.fresh_sessions().len() > self.sessions
                    || (0..self.crew.crowd.workers().len()).all(serves)
            });
        }
        lost
    }

    /// One request for an id that has none, as a careful controller does it, or several for one id in a row.
    fn submit_some(&mut self, random: &mut Random) {
        let is_busy = |id: &String| {
            let mut outstanding = self.outstanding.iter();
            outstanding.any(|token| self.requests[token].id == *id)
        };
        let ids = (0..IDS).map(|id| format!("id-{id:02}"));
        let free: Vec<String> = ids.filter(|id| !is_busy(id)).collect();
        let queues = self.crew.crowd.queues().len();
        let queue = random.below(queues as u64) as usize;
        if !free.is_empty() && random.percent(60) {
            let id = free[random.below(free.len() as u64) as usize].clone();
            self.submit(&id, queue, random);
        } else {
            let id = format!("id-{:02}", random.below(IDS));
            for _ in 0..2 + random.below(3) {
                let other = random.percent(25);
                let queue = queue + usize::from(other);
                self.submit(&id, queue % queues, random);
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
            pause: random.millis(10, 50),
            results: Vec::new(),
        };
        self.requests.insert(token.clone(), request);
        self.outstanding.insert(token.clone());
        self.publish(&token);
    }

    fn publish(&mut self, token: &str) {
        let request = self.requests.get_mut(token).expect("a request of ours");
        let dir: PathBuf = self.crew.drive.join(&request.id);
        let mut pointer = json!({
            "id": request.id, "workDir": dir,
            "steps": [{ "run": ". \"$CAMPAIGN_DIR/step\"", "name": token }],
            "env": { "TOKEN": token, "PAUSE": request.pause.as_secs_f64().to_string() },
        });
        if let Some(key) = &request.key {
            pointer["key"] = json!(key);
        }
        let started = Instant::now();
        let topic = format!("{}/pending", self.crew.crowd.queues()[request.queue]);
        self.controller.publish(&topic, pointer.to_string());
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

    fn story_of_a_halt(&self) -> String {
        let evidence = self.crew.evidence(&self.requests);
        let outstanding: Vec<&str> = self.outstanding.iter().map(String::as_str).collect();
        let story = evidence.timeline(&outstanding[..outstanding.len().min(3)]);
        format!("stuck: no result of {outstanding:?}{story}")
    }

    fn take_result(&mut self, result: Value) {
        let token = verdict::token_of(&result, &self.requests)
            .or_else(|| verdict::token_held(&result, &self.crew.log.lock().unwrap()))
            .unwrap_or_else(|| panic!("a result of no request: {result}"));
        let request = self
            .requests
            .get_mut(&token)
            .unwrap_or_else(|| panic!("a result of another campaign: {result}"));
        request.results.push(result);
        self.outstanding.remove(&token);
    }

    fn bring_the_last_through(&mut self) {
        let mut random = Random::new(1);
        for (queue, name) in self.crew.crowd.queues().iter().enumerate() {
            let id = format!("{LAST}-{name}");
            fs::create_dir(self.crew.drive.join(&id)).unwrap();
            self.submit(&id, queue, &mut random);
        }
        self.bring_through(self.requests.len(), &mut random);
    }
}
