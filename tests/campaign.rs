//! Contract section 6 against chance: many jobs through a real Mosquitto, while the worker and the broker are killed with
//! SIGKILL and the link between them is cut, at random moments.
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
//! Three actors: the controller (publishes, collects results, publishes again what the broker has lost), a supervising
//! loop (starts workers and kills some of them), and a breaker (kills the broker, cuts the link). At the end every line
//! that a step has written is explained, or the campaign fails.

mod support;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use support::controller::Controller;
use support::mosquitto::Mosquitto;
use support::temp_dir::TempDir;
use support::wait;
use support::worker::{Worker, job_worker};

const SEED: u64 = 20_260_217;
const SHORT_FORM: usize = 40;
const MAX_ATTEMPTS: u64 = 3;

/// Requests that are published and not answered yet.
const WINDOW: usize = 40;

/// Without any result for so long nothing more is broken, until one comes.
const LULL: Duration = Duration::from_secs(1);

/// Without any result for so long, longer than a worker's longest pause before it connects again, the broker has lost what
/// is outstanding, and the controller publishes it again.
const PATIENCE: Duration = Duration::from_secs(12);

/// Without any result for so long something is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// How far back a crash of Mosquitto may reach. It writes its store after each turn of its loop.
const UNWRITTEN: Duration = Duration::from_secs(1);

/// The name of the last job. Requests keep their order, so that nothing is left when it is over.
const LAST: &str = "last";

#[test]
fn by_default() {
    campaign("auto");
}

#[test]
fn in_mqtt_3_1_1() {
    campaign("4");
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

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// One process of the worker.
struct Life {
    started: Instant,
    killed: bool,
}

/// What the controller knows of a job.
struct Job {
    dir: PathBuf,
    /// From the call to the broker's acknowledgement.
    published: Vec<(Instant, Instant)>,
    /// Whether it had run when it was published again, because the broker had lost its request or its result.
    lost: Vec<bool>,
    results: Vec<Value>,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a number"))
    })
}

fn campaign(version: &str) {
    let seed = number("CAMPAIGN_SEED", SEED);
    let count = number("CAMPAIGN_JOBS", SHORT_FORM as u64) as usize;
    let random = |actor: u64| Random(seed.wrapping_mul(actor) | 1);
    let started = Instant::now();

    let drive = TempDir::new();
    let mut broker = Mosquitto::start();
    let controller = Controller::connect(&broker);
    let proxy = Proxy::start(broker.port());
    let stderr = drive.path().join("workers");
    fs::create_dir(&stderr).unwrap();
    let start = |life: usize| {
        let mut command = job_worker();
        command
            .env("MQTT_URL", format!("mqtt://127.0.0.1:{}", proxy.port))
            .env("MQTT_PROTOCOL_VERSION", version)
            .env("JOB_MAX_ATTEMPTS", MAX_ATTEMPTS.to_string())
            .env("CAMPAIGN_LIFE", life.to_string())
            .current_dir(drive.path());
        Worker::start(command, &stderr)
    };
    open_queue(&controller, start(0));
    let (lull, calm, over) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );

    // whichever actor panics, the others end
    let guard = || Ending(&calm, &over);

    let (jobs, lives, crashes, cuts) = thread::scope(|scope| {
        let supervisor = scope.spawn(|| {
            let _guard = guard();
            supervise(start, random(1), &calm, &over)
        });
        let breaker = scope.spawn(|| {
            let _guard = guard();
            break_things(&mut broker, &proxy, random(2), &lull, &calm)
        });
        let _guard = guard();
        let mut desk = Desk {
            controller: &controller,
            drive: drive.path(),
            jobs: BTreeMap::new(),
            mark: 0,
            lull: &lull,
            over: &over,
        };
        desk.bring_through(count, &mut random(3));
        calm.store(true, Relaxed);
        let (crashes, cuts) = breaker.join().expect("the breaker");
        desk.bring_the_last_through();
        over.store(true, Relaxed);
        (
            desk.jobs,
            supervisor.join().expect("the supervising loop"),
            crashes,
            cuts,
        )
    });

    let kills = lives.iter().filter(|life| life.killed).count();
    let verdict = verify(&jobs, &lives, &crashes);
    println!(
        "campaign (MQTT_PROTOCOL_VERSION={version}, seed {seed}): {count} jobs in {:.1} s; {} workers, {kills} of them \
         killed; {} broker kills; {cuts} links cut; {verdict}",
        started.elapsed().as_secs_f64(),
        lives.len(),
        crashes.len(),
    );
    assert!(verdict.unexplained.is_empty(), "{:#?}", verdict.unexplained);
    assert!(kills * 4 > count, "only {kills} workers were killed");
    assert!(
        crashes.len() >= 20 || count < 1000 && !crashes.is_empty(),
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

/// Makes the broker keep requests for the worker, by one that comes, subscribes and is stopped.
fn open_queue(controller: &Controller, mut worker: Worker) {
    wait::until("the worker to be idle", || {
        controller
            .heard(&format!("jobs/workers/{}", worker.id))
            .iter()
            .any(|message| message.json()["state"] == "idle")
    });
    worker.sigterm();
    worker.exits_with(0);
}

/// Starts one worker after the other, and kills about half of them at some moment of their life.
fn supervise(
    start: impl Fn(usize) -> Worker,
    mut random: Random,
    calm: &AtomicBool,
    over: &AtomicBool,
) -> Vec<Life> {
    let mut lives = Vec::new();
    while !over.load(Relaxed) {
        let started = Instant::now();
        let mut worker = start(lives.len());
        let kill_at = (random.below(100) < 80).then(|| started + random.millis(0, 120));
        while worker.ended().is_none() {
            if over.load(Relaxed) {
                // by the signal itself, where it comes before the handlers are there
                worker.sigterm();
                worker.wait();
            } else if kill_at.is_some_and(|at| at <= Instant::now()) && !calm.load(Relaxed) {
                worker.kill9();
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let code = worker.wait().code();
        let killed = code.is_none();
        // 75: the cuts look like those of a rival under our id to a worker that is idle for three of them
        assert!(
            killed || code == Some(0) || code == Some(75),
            "a worker ended with {code:?}"
        );
        lives.push(Life { started, killed });
    }
    lives
}

/// Kills the broker and cuts the link until it is calm; tells when it killed, and how often it cut.
fn break_things(
    broker: &mut Mosquitto,
    proxy: &Proxy,
    mut random: Random,
    lull: &AtomicBool,
    calm: &AtomicBool,
) -> (Vec<Instant>, usize) {
    let (mut crashes, mut cuts) = (Vec::new(), 0);
    let mut next_cut = Instant::now() + random.millis(50, 900);
    let mut next_crash = Instant::now() + random.millis(500, 3000);
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
            cuts += usize::from(proxy.cut());
            next_cut = now + random.millis(50, 900);
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
    jobs: BTreeMap<String, Job>,
    mark: usize,
    lull: &'a AtomicBool,
    over: &'a AtomicBool,
}

impl Desk<'_> {
    fn bring_through(&mut self, count: usize, random: &mut Random) {
        let mut outstanding = BTreeSet::new();
        let mut news = Instant::now();
        let mut progress = news;
        while self.jobs.len() < count || !outstanding.is_empty() {
            assert!(!self.over.load(Relaxed), "another actor has failed");
            if self.jobs.len() < count && outstanding.len() < WINDOW {
                let id = format!("job-{:04}", self.jobs.len());
                self.submit(&id, random.millis(20, 50));
                outstanding.insert(id);
            } else {
                thread::sleep(Duration::from_millis(5));
            }
            for id in self.collect() {
                outstanding.remove(&id);
                (news, progress) = (Instant::now(), Instant::now());
            }
            assert!(
                progress.elapsed() < STUCK,
                "stuck: no result of {outstanding:?}"
            );
            self.lull.store(news.elapsed() > LULL, Relaxed);
            if news.elapsed() > PATIENCE {
                news = Instant::now();
                for id in &outstanding {
                    let job = self.jobs.get_mut(id).expect("a job of ours");
                    job.lost.push(job.dir.join("runs").exists());
                    self.publish(id);
                }
            }
        }
    }

    fn bring_the_last_through(&mut self) {
        self.submit(LAST, Duration::ZERO);
        let started = Instant::now();
        while self.jobs[LAST].results.is_empty() {
            assert!(
                started.elapsed() < STUCK && !self.over.load(Relaxed),
                "stuck: no result of the last job"
            );
            thread::sleep(Duration::from_millis(5));
            self.collect();
        }
    }

    fn submit(&mut self, id: &str, duration: Duration) {
        let dir = self.drive.join(id);
        fs::create_dir(&dir).unwrap();
        let step = format!(
            "echo $JOB_ATTEMPT $CAMPAIGN_LIFE >> runs; sleep {}",
            duration.as_secs_f64()
        );
        fs::write(dir.join("job.json"), json!({ "steps": [step] }).to_string()).unwrap();
        self.jobs.insert(
            id.to_owned(),
            Job {
                dir,
                published: Vec::new(),
                lost: Vec::new(),
                results: Vec::new(),
            },
        );
        self.publish(id);
    }

    fn publish(&mut self, id: &str) {
        let job = self.jobs.get_mut(id).expect("a job of ours");
        let started = Instant::now();
        self.controller.publish(
            "jobs/pending",
            // the id is new each time; in 3.1.1 nothing else tells a redelivery from a fresh request
            json!({ "id": id, "workDir": job.dir, "key": id }).to_string(),
        );
        job.published.push((started, Instant::now()));
    }

    /// Takes what has come, and tells which jobs have a result now.
    fn collect(&mut self) -> Vec<String> {
        let news = self.controller.news(self.mark);
        self.mark += news.len();
        let mut finished = Vec::new();
        for message in news {
            assert_ne!(message.topic, "jobs/rejected", "{}", message.text());
            if let Some(id) = message.topic.strip_prefix("jobs/results/") {
                self.jobs
                    .get_mut(id)
                    .expect("a job of ours")
                    .results
                    .push(message.json());
                finished.push(id.to_owned());
            }
        }
        finished
    }
}

/// The campaign in numbers.
#[derive(Default)]
struct Verdict {
    succeeded: usize,
    given_up: usize,
    runs: usize,
    /// Attempts after a kill of the worker.
    further_attempts: usize,
    /// Runs of a job anew, because the broker had lost something.
    new_runs: usize,
    lost_requests: usize,
    lost_results: usize,
    duplicate_results: usize,
    unexplained: Vec<String>,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} succeeded, {} given up after {MAX_ATTEMPTS} attempts, 0 lost; {} runs: {} further attempts after a kill, \
             {} new runs after the broker had lost state; published again because the broker had lost the request: {}, \
             or the result: {}; {} duplicate results; {} unexplained",
            self.succeeded,
            self.given_up,
            self.runs,
            self.further_attempts,
            self.new_runs,
            self.lost_requests,
            self.lost_results,
            self.duplicate_results,
            self.unexplained.len()
        )
    }
}

fn verify(jobs: &BTreeMap<String, Job>, lives: &[Life], crashes: &[Instant]) -> Verdict {
    let mut verdict = Verdict::default();
    for (id, job) in jobs.iter().filter(|(id, _)| *id != LAST) {
        if let Err(problem) = verify_job(job, lives, crashes, &mut verdict) {
            let runs = fs::read_to_string(job.dir.join("runs")).unwrap_or_default();
            verdict.unexplained.push(format!(
                "{id}: {problem}; attempt and life of each run: {:?}",
                runs.lines().collect::<Vec<_>>()
            ));
        }
    }
    verdict
}

fn verify_job(
    job: &Job,
    lives: &[Life],
    crashes: &[Instant],
    verdict: &mut Verdict,
) -> Result<(), String> {
    let Some(result) = job.results.last() else {
        return Err("no result".into());
    };
    verdict.duplicate_results += job.results.len() - 1;
    let stored = fs::read(job.dir.join("job.status.json")).map_err(|error| error.to_string())?;
    let stored: Value = serde_json::from_slice(&stored).map_err(|error| error.to_string())?;
    let attempts = stored["attempt"].as_u64().ok_or("no attempt")?;
    match (stored["status"].as_str(), stored["reason"].as_str()) {
        (Some("success"), _) => verdict.succeeded += 1,
        (Some("failed"), Some("interrupted")) if attempts == MAX_ATTEMPTS => verdict.given_up += 1,
        _ => return Err(format!("ended as {stored}")),
    }
    if ["status", "exitCode", "attempt"]
        .iter()
        .any(|key| stored[key] != result[key])
    {
        return Err(format!("reported as {result}, stored as {stored}"));
    }
    let runs = fs::read_to_string(job.dir.join("runs")).unwrap_or_default();
    let runs: Vec<(u64, usize)> = runs
        .lines()
        .map(|line| line.split_once(' ').expect("two numbers"))
        .map(|(attempt, life)| {
            (
                attempt.parse().expect("a number"),
                life.parse().expect("a number"),
            )
        })
        .collect();
    verdict.runs += runs.len();
    // an attempt that is killed before its step leaves no line: only a success shows that there must be one
    if stored["status"] == "success" && runs.last().is_none_or(|(attempt, _)| *attempt != attempts)
    {
        return Err(format!("success in attempt {attempts}, which did not run"));
    }

    let killed =
        |from: usize, to: usize| lives[from..to].iter().filter(|life| life.killed).count() as u64;
    let crashed =
        |from: Instant, to: Instant| crashes.iter().any(|crash| from <= *crash && *crash <= to);
    // the broker may have both copies of what was published on either side of its crash
    let doubtful = job
        .published
        .iter()
        .filter(|(from, to)| crashed(*from, *to))
        .count();
    let mut copies = job.published.len() - 1 + doubtful;
    let mut before: Option<(u64, usize)> = None;
    for &(attempt, life) in &runs {
        let (last_attempt, last_life) = before.unwrap_or((0, 0));
        let skipped = attempt.saturating_sub(last_attempt + u64::from(before.is_none()));
        if before.is_none() || attempt > last_attempt {
            if skipped > killed(last_life, life) {
                return Err(format!(
                    "attempt {attempt} without {skipped} kills before it"
                ));
            }
            verdict.further_attempts += usize::from(before.is_some());
        } else if attempt == 1 || killed(last_life, life) >= attempt - 1 {
            verdict.new_runs += 1;
            if !crashed(lives[last_life].started, lives[life].started) {
                copies = copies
                    .checked_sub(1)
                    .ok_or("run anew though the broker had lost nothing")?;
            }
        } else {
            return Err(format!("attempt {attempt} after attempt {last_attempt}"));
        }
        before = Some((attempt, life));
    }

    for (_, acknowledged) in &job.published[..job.published.len() - 1] {
        // had no broker crashed, nothing would have been published again
        if !crashes
            .iter()
            .any(|crash| *crash + UNWRITTEN >= *acknowledged)
        {
            return Err("lost though the broker did not crash".into());
        }
    }
    let had_run = job.lost.iter().filter(|had_run| **had_run).count();
    verdict.lost_results += had_run;
    verdict.lost_requests += job.lost.len() - had_run;
    Ok(())
}

/// A TCP proxy between worker and broker.
struct Proxy {
    port: u16,
    /// The two ends of the newest connection.
    link: Arc<Mutex<Option<[TcpStream; 2]>>>,
}

impl Proxy {
    fn start(broker: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free loopback port");
        let port = listener.local_addr().expect("the port just bound").port();
        let link = Arc::new(Mutex::new(None));
        let newest = link.clone();
        // ends with the process
        thread::spawn(move || {
            for worker in listener.incoming() {
                let worker = worker.expect("accept");
                // a connection that is closed at once looks like a broker that is away
                let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else {
                    continue;
                };
                let clone = |stream: &TcpStream| {
                    stream.set_nodelay(true).expect("TCP_NODELAY");
                    stream.try_clone().expect("a second handle")
                };
                *newest.lock().unwrap() = Some([clone(&worker), clone(&broker)]);
                pump(clone(&worker), clone(&broker));
                pump(broker, worker);
            }
        });
        Self { port, link }
    }

    /// Cuts the newest connection, if it stands.
    fn cut(&self) -> bool {
        let link = self.link.lock().unwrap().take();
        link.is_some_and(|ends| {
            ends.iter()
                .filter(|end| end.shutdown(Shutdown::Both).is_ok())
                .count()
                == 2
        })
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        // however it ends, the other end hears of it
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}
