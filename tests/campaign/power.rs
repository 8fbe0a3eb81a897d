//! The drive has what a result speaks of, whenever the power goes: jobs on a drive whose power is cut, at random moments and
//! exactly when something happens. After each cut the drive is mounted again, looked up, and served by new workers.
//!
//! It needs root, loop devices and a mkfs for each kind of file system; what is missing here is left out with a word.
//!
//! ```text
//! cargo test --test campaign power -- --ignored --nocapture --test-threads 1                  # the short form
//! POWER_CUTS=120 cargo test --test campaign power -- --ignored --nocapture --test-threads 1   # the long one
//! ```
//!
//! `POWER_CUTS` is the number of cuts on each file system, `POWER_SEED` takes another seed than the usual one, and
//! `POWER_FILE_SYSTEM` tries one kind alone. The moments also depend on the machine.
//!
//! The jobs are those of a worker's own queue, or of a pool of three whose directory is on that drive, too: then every request that a
//! member has acknowledged is a claim after the cut, or has its result.
//!
//! The broker, the controller and a witness file for each request are not on the drive. Each attempt writes its number
//! into the witness file before it does anything else, so the campaign knows what was run though the drive has forgotten it.

use crate::claims::{Claim, claims};
use crate::support;
use crate::wire::{self, Packet, Proxy, World};

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};
use support::broker::Message;
use support::controller::Controller;
use support::cut_drive::{CutDrive, DiskCache, FILE_SYSTEMS, FileSystem};
use support::mosquitto::Mosquitto;
use support::pool::Queue;
use support::process_tree::ProcessTree;
use support::random::{Random, number};
use support::temp_dir::TempDir;
use support::wait;
use support::worker::{Worker, job_worker};

const SEED: u64 = 20_260_217;
const SHORT_FORM: u64 = 8;
const SHORT_FORM_OF_A_POOL: u64 = 4;

/// The members of the pool.
const MEMBERS: [&str; 3] = ["m0", "m1", "m2"];

/// Requests that are published and have no result yet, at the beginning of each round.
const WINDOW: usize = 6;

/// Without any news for so long nothing more comes.
const STUCK: Duration = Duration::from_secs(20);

#[test]
#[ignore = "needs root and loop devices"]
fn every_result_is_on_the_drive() {
    let often = ["results looked up", "attempts cut off"];
    let rare = ["stored results looked up", "given up", "results twice"];
    nothing_is_lost(Queue::Own, SHORT_FORM, &often, &rare);
}

#[test]
#[ignore = "needs root and loop devices"]
fn every_request_that_a_pool_has_acknowledged_is_on_the_drive() {
    let often = ["claims looked up"];
    nothing_is_lost(Queue::Pool, SHORT_FORM_OF_A_POOL, &often, &[]);
}

fn nothing_is_lost(queue: Queue, short_form: u64, often: &[&str], rare: &[&str]) {
    let cuts = number("POWER_CUTS", short_form);
    let reports = campaigns(queue, "on", cuts);
    for report in &reports {
        assert!(report.violations.is_empty(), "{report}");
    }
    // a campaign that never comes to these moments shows nothing
    for what in often.iter().chain(rare.iter().filter(|_| cuts >= 50)) {
        let is_met = reports.iter().any(|it| it.counts.contains_key(*what));
        assert!(is_met || reports.is_empty(), "no cut met {what}");
    }
}

/// A campaign that cannot fail is worth nothing.
#[test]
#[ignore = "needs root and loop devices"]
fn without_syncs_the_campaign_finds_what_is_lost() {
    use Violation::*;
    let own: &[&[Violation]] = &[
        &[JournalLost, LogLost, FilesLost],
        &[AttemptNotCounted, RunAgain],
    ];
    for (queue, all) in [(Queue::Own, own), (Queue::Pool, &[&[ClaimLost]])] {
        let reports = campaigns(queue, "off", number("POWER_CUTS", 4).min(4));
        let said = "JOB_SYNC=off loses nothing, or the campaign does not see it";
        for report in &reports {
            assert!(!report.violations.is_empty(), "{said}: {report}");
        }
        // the few cuts of one file system may miss one of them
        for some in all {
            let mut found = reports.iter().flat_map(|report| report.violations.keys());
            let is_found = found.any(|kind| some.contains(kind));
            assert!(is_found || reports.is_empty(), "{said}: {some:?}");
        }
    }
}

/// One campaign on each kind of file system that is to be had here.
fn campaigns(queue: Queue, sync: &'static str, cuts: u64) -> Vec<Report> {
    let only = std::env::var("POWER_FILE_SYSTEM").ok();
    let mut reports = Vec::new();
    for kind in FILE_SYSTEMS {
        if only.as_ref().is_some_and(|name| name != kind.name) {
            continue;
        }
        let name = format!("{}-{queue:?}-{sync}", kind.name);
        if let Some(drive) = CutDrive::start_or_leave_out(kind, &name) {
            let report = Campaign::new(kind, drive, queue, sync).run(cuts);
            println!("\n{report}");
            reports.push(report);
        }
    }
    reports
}

/// What a cut waits for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Moment {
    /// A new result arrives at the controller.
    Result,
    /// An attempt begins.
    Begin,
    /// The final document appears in a workDir; the result is on its way.
    FinalDocument,
    /// A span of time passes.
    Random,
}

const MOMENTS: [Moment; 4] = [
    Moment::Result,
    Moment::Begin,
    Moment::FinalDocument,
    Moment::Random,
];

/// What must not be.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Violation {
    /// A request was acknowledged, and the drive has no claim of it, and no result has come.
    ClaimLost,
    /// A claim is left when everything is over.
    ClaimLeft,
    /// A result arrived, and the drive does not have that very document.
    JournalLost,
    /// A final document is there, and the log is not whole.
    LogLost,
    /// A final document is there, and what the steps wrote is not.
    FilesLost,
    /// An attempt ran under a number that an earlier one had, or that is too high.
    AttemptNotCounted,
    /// More attempts than `maxAttempts` ran.
    TooManyAttempts,
    /// It ran again though its final document was on the drive or with the controller.
    RunAgain,
    /// A result that is not the request's own, or a second one that differs from the first.
    WrongResult,
    NoResult,
    DriveUnusable,
}

/// A publication of a job.
#[derive(Default)]
struct Request {
    id: String,
    dir: PathBuf,
    witness: PathBuf,
    /// The exit code of its last step. Where two requests have one id, it tells whose result has come.
    exit: i64,
    max_attempts: u64,
    /// What its steps write into a file and into the log.
    text: String,
    bytes: usize,
    lines: usize,
    cuts_before: u64,
    begins_seen: usize,
    result: Option<Value>,
    /// The final document as it is known, from the drive or from the result, and how often the job had begun by then.
    settled: Option<(Value, usize)>,
    /// The log as it was when the power went.
    log_before: Option<Vec<u8>>,
    looked_up: bool,
}

impl Request {
    /// The numbers of the attempts that have begun.
    fn begins(&self) -> Vec<u64> {
        let witness = fs::read_to_string(&self.witness).unwrap_or_default();
        let numbers = witness.lines().map(|line| line.parse());
        numbers.collect::<Result<_, _>>().expect("attempt numbers")
    }

    /// The document that is stored in the workDir.
    fn stored(&self) -> Result<Value, String> {
        let path = self.dir.join("job.status.json");
        let content = fs::read(path).map_err(|error| error.to_string())?;
        serde_json::from_slice(&content).map_err(|error| {
            let length = content.len();
            format!("{length} bytes that are no document: {error}")
        })
    }

    /// Whether a document is the final one of this very request.
    fn owns(&self, document: &Value) -> bool {
        is_final(document) && (is_given_up(document) || document["exitCode"] == self.exit)
    }

    fn is_over(&self) -> bool {
        self.stored().is_ok_and(|document| self.owns(&document))
    }

    fn settle(&mut self, document: &Value) {
        if self.settled.is_none() {
            self.settled = Some((document.clone(), self.begins().len()));
        }
    }
}

/// Tells requests apart.
fn token(id: &str, exit: i64) -> String {
    format!("{id} {exit}")
}

fn is_final(document: &Value) -> bool {
    document["status"] == "success" || document["status"] == "failed"
}

/// Whether a job was given up, and the result says that the drive did not take the journal (a member dies when it opens the directory;
/// the cut drive gives errors for some moments before the host is off).
fn has_no_journal(result: &Value) -> bool {
    let warning = result["warning"].as_str().unwrap_or_default();
    is_given_up(result)
        && (result["logFile"].is_null() || warning.contains("job.status.json cannot be written"))
}

fn is_given_up(document: &Value) -> bool {
    document["reason"] == "interrupted"
}

#[derive(Default)]
struct Report {
    name: String,
    seconds: f64,
    counts: BTreeMap<String, usize>,
    violations: BTreeMap<Violation, Vec<String>>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {:.1} s", self.name, self.seconds)?;
        for (what, count) in &self.counts {
            write!(f, ", {count} {what}")?;
        }
        let violations = self.violations.values().map(Vec::len).sum::<usize>();
        write!(f, ", {violations} violations")?;
        for (kind, cases) in &self.violations {
            write!(f, "\n  {kind:?}: {}", cases.len())?;
            for case in cases.iter().take(4) {
                write!(f, "\n    {case}")?;
            }
        }
        Ok(())
    }
}

struct Campaign {
    report: Report,
    queue: Queue,
    sync: &'static str,
    random: Random,
    // dropped in this order: a worker that is left would hold the drive
    controller: Controller,
    _broker: Mosquitto,
    /// What members of the pool and the broker say to each other.
    wire: wire::Log,
    proxy: Proxy,
    drive: CutDrive,
    outside: TempDir,
    requests: Vec<Request>,
    mark: usize,
    cuts: u64,
}

impl Campaign {
    fn new(kind: FileSystem, drive: CutDrive, queue: Queue, sync: &'static str) -> Self {
        let broker = Mosquitto::start();
        let wire = wire::Log::default();
        let world = World {
            log: wire.clone(),
            ..World::default()
        };
        Self {
            report: Report {
                name: format!("{queue:?} on {} with JOB_SYNC={sync}", kind.name),
                ..Report::default()
            },
            queue,
            sync,
            proxy: Proxy::start(broker.port(), world),
            wire,
            random: Random::new(number("POWER_SEED", SEED)),
            controller: Controller::connect(&broker),
            _broker: broker,
            drive,
            outside: TempDir::new(),
            requests: Vec::new(),
            mark: 0,
            cuts: 0,
        }
    }

    fn run(mut self, cuts: u64) -> Report {
        let started = Instant::now();
        self.open_queue();
        while self.cuts < cuts && !self.has_found(Violation::DriveUnusable) {
            self.round();
        }
        // what a pool has lost never comes to an end
        if !self.has_found(Violation::DriveUnusable) && !self.has_found(Violation::ClaimLost) {
            self.bring_to_an_end();
            self.cut_at_the_end();
        }
        let attempts = self.requests.iter().map(|it| it.begins().len()).sum();
        self.count("attempts", attempts);
        self.count("requests", self.requests.len());
        self.report.seconds = started.elapsed().as_secs_f64();
        self.report
    }

    fn has_found(&self, kind: Violation) -> bool {
        self.report.violations.contains_key(&kind)
    }

    fn count(&mut self, what: &str, more: usize) {
        if more > 0 {
            *self.report.counts.entry(what.to_owned()).or_default() += more;
        }
    }

    /// Makes the broker keep requests, by workers that come, subscribe and are stopped.
    fn open_queue(&mut self) {
        let mut workers = self.supervise();
        wait::until("the subscription", || {
            let mut wire = self.wire.lock().unwrap().clone().into_iter();
            wire.any(|event| matches!(event.packet, Packet::Subscribed))
        });
        for worker in &mut workers {
            worker.stop();
        }
    }

    fn supervise(&self) -> Vec<Worker> {
        let supervise = |name: &&str| {
            let mut command = job_worker();
            command
                .arg("supervise")
                .env(
                    "MQTT_URL",
                    format!("mqtt://0@127.0.0.1:{}", self.proxy.port),
                )
                .env("MQTT_PROTOCOL_VERSION", "5")
                .env("JOB_SYNC", self.sync)
                .current_dir(self.outside.path());
            self.queue.serve(&mut command, &self.drive.path());
            command.env("WORKER_ID", name);
            Worker::start(command, self.outside.path())
        };
        let members = match self.queue {
            Queue::Own => 1,
            Queue::Pool => MEMBERS.len(),
        };
        MEMBERS[..members].iter().map(supervise).collect()
    }

    /// From a sound drive over a cut to a sound drive.
    fn round(&mut self) {
        self.fill_the_queue();
        let moment = MOMENTS[(self.cuts as usize) % MOMENTS.len()];
        let cache = match self.random.below(3) {
            0 => DiskCache::WrittenOut,
            _ => DiskCache::Lost,
        };
        let mut workers = self.supervise();
        self.await_moment(moment);
        // whatever they do, nobody can report what happens to them after the cut: a host without power reports nothing
        let freeze = |worker: &Worker| ProcessTree::freeze(worker.pid());
        let trees: Vec<ProcessTree> = workers.iter().map(freeze).collect();
        self.remember_logs();
        if self.random.one_in(2) {
            self.drive.sync_by_somebody_else();
        }
        self.drive.cut(cache);
        trees.into_iter().for_each(ProcessTree::kill9);
        for worker in &mut workers {
            worker.wait();
        }
        self.count(&format!("cuts at {moment:?}"), 1);
        self.hear_the_rest();
        self.come_back();
    }

    /// Publishes jobs until the queue is as long as it should be. Their directories are on the disk before.
    fn fill_the_queue(&mut self) {
        let open = self.open().count();
        let mut fresh = Vec::new();
        while open + fresh.len() < WINDOW {
            let number = self.requests.len() + fresh.len();
            let id = format!("job-{number:04}");
            if self.random.one_in(6) {
                // the same job twice, in the same directory
                fresh.push(self.prepare(&id, 11, 3));
                fresh.push(self.prepare(&id, 12, 3));
            } else {
                let exit = 10 * self.random.below(2) as i64;
                let max_attempts = 1 + self.random.below(3);
                fresh.push(self.prepare(&id, exit, max_attempts));
            }
        }
        self.drive.sync();
        for (request, payload) in fresh {
            self.controller.publish("jobs/pending", payload.to_string());
            self.requests.push(request);
        }
    }

    fn prepare(&mut self, id: &str, exit: i64, max_attempts: u64) -> (Request, Value) {
        let dir = self.drive.path().join(id);
        fs::create_dir_all(&dir).unwrap();
        let witness = self.outside.path().join(format!("{id}-{exit}"));
        let text = format!("{id} that ends with {exit}");
        let bytes = [0, 1_000, 200_000][self.random.below(3) as usize];
        let lines = [1, 1, 1, 3_000][self.random.below(4) as usize];
        let mut pause = || format!("sleep {}", self.random.millis(0, 60).as_secs_f64());
        let steps = json!([
            format!("echo $JOB_ATTEMPT >> {}; {}", witness.display(), pause()),
            format!(
                "mkdir -p deep/er; head -c {bytes} /dev/zero > deep/er/zeros; echo '{text}' > part && mv part whole; \
                 seq -f 'line %g of {text}' {lines}"
            ),
            format!("{}; exit {exit}", pause()),
        ]);
        let payload = json!({ "id": id, "workDir": dir, "steps": steps, "maxAttempts": max_attempts, "env": { "TOKEN": token(id, exit) } });
        let request = Request {
            id: id.to_owned(),
            dir,
            witness,
            exit,
            max_attempts,
            text,
            bytes,
            lines,
            cuts_before: self.cuts,
            ..Request::default()
        };
        (request, payload)
    }

    fn await_moment(&mut self, moment: Moment) {
        // the queue keeps its order, so only the first of those that are open can begin or end soon
        let watch = |it: &Self| match moment {
            Moment::Result => it.new_results().len(),
            Moment::Begin => it.open().take(4).map(|it| it.begins().len()).sum(),
            Moment::FinalDocument => it.open().take(4).filter(|it| it.is_over()).count(),
            Moment::Random => 0,
        };
        // the first one or a later one, at once or a little after it
        let wanted = watch(self) + 1 + self.random.below(3) as usize;
        let delay = match moment {
            Moment::Random => self.random.millis(0, 400),
            // the result follows it within milliseconds
            Moment::FinalDocument => Duration::ZERO,
            _ if self.random.one_in(2) => Duration::ZERO,
            _ => self.random.millis(0, 20),
        };
        let end = Instant::now() + Duration::from_secs(5);
        while moment != Moment::Random && watch(self) < wanted && Instant::now() < end {
            thread::sleep(Duration::from_micros(200));
        }
        thread::sleep(delay);
    }

    fn open(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter(|it| it.result.is_none())
    }

    fn new_results(&self) -> Vec<Message> {
        let mut news = self.controller.news(self.mark);
        news.retain(|message| message.topic.starts_with("jobs/results/"));
        news
    }

    /// What a controller reads of a job when its result is there, before the power goes.
    fn remember_logs(&mut self) {
        for message in self.new_results() {
            let id = &message.topic["jobs/results/".len()..];
            if let Some(index) = self.owner(id, &message.json())
                && !self.is_followed(index)
            {
                let log = self.requests[index].dir.join("job.log");
                self.requests[index].log_before = fs::read(log).ok();
            }
        }
    }

    /// Takes all that the dead worker has sent: the broker answers a marker only after what it got before.
    fn hear_the_rest(&mut self) {
        for _ in 0..2 {
            let mark = self.controller.mark();
            self.controller.publish("marker", "");
            wait::until("the marker", || {
                !self.controller.heard_since(mark, "marker").is_empty()
            });
        }
        self.collect();
    }

    fn collect(&mut self) {
        let news = self.controller.news(self.mark);
        self.mark += news.len();
        for message in news {
            if let Some(id) = message.topic.strip_prefix("jobs/results/") {
                self.receive(id, message.json());
            } else if message.topic == "jobs/rejected" {
                self.violate(Violation::WrongResult, message.text());
            }
        }
    }

    /// The request that a result belongs to.
    fn owner(&self, id: &str, result: &Value) -> Option<usize> {
        let is_own = |it: &Request| {
            let first = it.result.as_ref();
            it.id == id
                && match is_given_up(result) {
                    true => first.is_none_or(|first| first == result || has_no_journal(first)),
                    false => it.exit == result["exitCode"],
                }
        };
        self.requests.iter().position(is_own)
    }

    fn receive(&mut self, id: &str, result: Value) {
        let Some(index) = self.owner(id, &result) else {
            let case = format!("{id}: nobody's result: {result}");
            return self.violate(Violation::WrongResult, case);
        };
        let cuts = self.cuts;
        let request = &mut self.requests[index];
        let expected = if is_given_up(&result) {
            // a cut in mid-job is the only thing that ends an attempt here, and this one may be too new to be counted
            let attempt = result["attempt"].as_u64();
            // in a pool, a cut while a member gives up leads to a result without a number
            let is_last = match self.queue {
                Queue::Own => attempt == Some(request.max_attempts),
                Queue::Pool => attempt.is_none_or(|attempt| attempt == request.max_attempts),
            };
            is_last && request.max_attempts <= cuts - request.cuts_before
        } else {
            let last = request.begins().last().copied();
            let reason = (request.exit != 0).then_some("step");
            result["reason"] == json!(reason) && result["attempt"] == json!(last)
        };
        let mut what = None;
        let mut wrong = (!expected).then(|| format!("not what was asked for: {result}"));
        match (&request.result, &request.settled) {
            (Some(first), _) if *first != result => {
                wrong = Some(format!("first {first}, then {result}"));
            }
            (Some(_), _) => what = Some("results twice"),
            (None, Some((stored, _))) if *stored != result => {
                wrong = Some(format!("stored was {stored}, sent was {result}"));
            }
            (None, _) => what = is_given_up(&result).then_some("given up"),
        }
        request.settle(&result);
        request.result.get_or_insert(result);
        if let Some(what) = what {
            self.count(what, 1);
        }
        if let Some(wrong) = wrong {
            self.accuse(index, Violation::WrongResult, wrong);
        }
    }

    /// The power is back.
    fn come_back(&mut self) {
        if let Err(error) = self.drive.restore() {
            return self.violate(Violation::DriveUnusable, error);
        }
        self.cuts += 1;
        self.look_at_the_attempts();
        if self.queue == Queue::Pool {
            self.look_at_the_claims();
        }
        self.look_it_up();
    }

    /// Every request that is acknowledged is a claim, or has its result.
    fn look_at_the_claims(&mut self) {
        let claims = claims(&self.drive.path());
        let acknowledged = self.acknowledged();
        for index in 0..self.requests.len() {
            let request = &mut self.requests[index];
            let token = token(&request.id, request.exit);
            let claim = claims.iter().find(|claim| claim.token == token);
            if let Some(Claim {
                document: Some(document),
                ..
            }) = claim
            {
                request.settle(document);
            }
            if request.result.is_none() && acknowledged.contains(&token) {
                self.count("claims looked up", 1);
                if claim.is_none() {
                    let lost = format!("acknowledged; there are {claims:?}");
                    self.accuse(index, Violation::ClaimLost, lost);
                }
            }
        }
    }

    /// The tokens of the requests that members have acknowledged.
    fn acknowledged(&self) -> BTreeSet<String> {
        let wire = self.wire.lock().unwrap();
        let tokens = wire.iter().filter_map(|event| match &event.packet {
            Packet::RequestAck { token, .. } => Some(token.clone()),
            _ => None,
        });
        tokens.collect()
    }

    fn look_at_the_attempts(&mut self) {
        for index in 0..self.requests.len() {
            let request = &mut self.requests[index];
            let begins = request.begins();
            let seen = std::mem::replace(&mut request.begins_seen, begins.len());
            let settled = request.settled.as_ref().map(|(_, begins)| *begins);
            let most = request.max_attempts;
            // each cut ends one attempt at most
            let highest = 1 + self.cuts - request.cuts_before;
            for place in seen..begins.len() {
                let attempt = begins[place];
                let before = place.checked_sub(1).map_or(0, |before| begins[before]);
                let kind = if settled.is_some_and(|count| place >= count) {
                    Violation::RunAgain
                } else if attempt > most {
                    Violation::TooManyAttempts
                } else if attempt <= before || attempt > highest {
                    Violation::AttemptNotCounted
                } else {
                    continue;
                };
                let what = format!("attempts that began: {begins:?} of {most}");
                self.accuse(index, kind, what);
            }
        }
    }

    /// Whether a later request uses the same directory.
    fn is_followed(&self, index: usize) -> bool {
        let dir = &self.requests[index].dir;
        self.requests[index + 1..].iter().any(|it| it.dir == *dir)
    }

    /// Looks up on the drive what has come since the last look, or may have.
    fn look_it_up(&mut self) {
        for index in 0..self.requests.len() {
            let request = &self.requests[index];
            if request.looked_up {
                continue;
            }
            let stored = request.stored();
            let Some(result) = request.result.clone() else {
                match stored {
                    // in a pool the claim says whether it is over
                    Ok(stored) if request.owns(&stored) => {
                        if request.settled.is_none() && self.queue == Queue::Own {
                            self.requests[index].settle(&stored);
                            self.count("stored results looked up", 1);
                            self.look_up_contents(index);
                        }
                    }
                    // it is not over, so it has to run again
                    _ => {
                        let is_cut =
                            request.cuts_before < self.cuts && !request.begins().is_empty();
                        self.count("attempts cut off", usize::from(is_cut));
                    }
                }
                continue;
            };
            self.requests[index].looked_up = true;
            self.count("results looked up", 1);
            if self.is_followed(index) {
                // the request behind it may have begun by now, and then the directory is its
                if let Err(error) = stored {
                    self.accuse(index, Violation::JournalLost, error);
                }
            } else if !has_no_journal(&result) {
                if stored.as_ref() != Ok(&result) {
                    let stored = stored.map_or_else(|error| error, |it| it.to_string());
                    let lost = format!("on the drive: {stored}; the result was: {result}");
                    self.accuse(index, Violation::JournalLost, lost);
                }
                self.look_up_contents(index);
            }
        }
    }

    /// The log and the files of a job whose final document is known.
    fn look_up_contents(&mut self, index: usize) {
        let request = &self.requests[index];
        let Some((document, _)) = &request.settled else {
            return;
        };
        let log = fs::read(request.dir.join("job.log")).unwrap_or_default();
        let shown = String::from_utf8_lossy(&log);
        let is_given_up = is_given_up(document);
        let line = |number| format!("line {number} of {}\n", request.text);
        let lines = if is_given_up { 0 } else { request.lines };
        let is_whole = shown.starts_with(&format!("Job ID: {}\n", request.id))
            && (1..=lines).all(|number| shown.contains(&line(number)))
            && shown.ends_with('\n')
            && shown
                .lines()
                .last()
                .is_some_and(|it| it.starts_with("==> "));
        let is_same = request.log_before.as_ref().is_none_or(|it| *it == log);
        let mut lost = Vec::new();
        if !is_whole || !is_same {
            let end = shown.lines().last().unwrap_or_default();
            let said = format!("{} bytes, at the end {end:?}", log.len());
            lost.push((Violation::LogLost, said));
        }
        let whole = fs::read_to_string(request.dir.join("whole"));
        let zeros = fs::read(request.dir.join("deep/er/zeros")).ok();
        let is_written = whole.as_ref().is_ok_and(|it| it.trim_end() == request.text)
            && zeros
                .as_ref()
                .is_some_and(|it| *it == vec![0; request.bytes]);
        if !is_given_up && !is_written {
            let bytes = zeros.map(|it| it.len());
            let said = format!("whole: {whole:?}; zeros: {bytes:?} of {}", request.bytes);
            lost.push((Violation::FilesLost, said));
        }
        for (kind, what) in lost {
            self.accuse(index, kind, what);
        }
    }

    /// Lets everything come to its end, without a cut.
    fn bring_to_an_end(&mut self) {
        let mut workers = self.supervise();
        let (mut heard, mut news) = (self.mark, Instant::now());
        // a claim whose result came before the cut is there again, since its end need not be on the disk
        let is_left = |it: &Self| it.queue == Queue::Pool && !claims(&it.drive.path()).is_empty();
        while (self.open().next().is_some() || is_left(self)) && news.elapsed() < STUCK {
            thread::sleep(Duration::from_millis(5));
            self.collect();
            if std::mem::replace(&mut heard, self.mark) != self.mark {
                news = Instant::now();
            }
        }
        for worker in &mut workers {
            // by the signal itself, where it comes before the handlers are there
            worker.sigterm();
            worker.wait();
        }
        self.hear_the_rest();
        if self.queue == Queue::Pool {
            for claim in claims(&self.drive.path()) {
                self.violate(Violation::ClaimLeft, format!("{claim:?}"));
            }
        }
        for index in 0..self.requests.len() {
            if self.requests[index].result.is_none() {
                self.accuse(index, Violation::NoResult, "nothing came".to_owned());
            }
        }
    }

    /// One more cut while nothing runs, and a look at everything that has ever been on the drive.
    fn cut_at_the_end(&mut self) {
        for request in &mut self.requests {
            request.looked_up = false;
            request.log_before = fs::read(request.dir.join("job.log")).ok();
        }
        self.drive.cut(DiskCache::Lost);
        self.come_back();
    }

    fn accuse(&mut self, index: usize, kind: Violation, what: String) {
        let request = &self.requests[index];
        let (id, exit, after) = (&request.id, request.exit, request.cuts_before);
        let (cut, log) = (self.cuts, self.log_lines(id));
        let case = format!("{id} ({exit}), published after cut {after}, cut {cut}: {what}{log}");
        self.violate(kind, case);
    }

    /// What the workers' logs say of a job.
    fn log_lines(&self, id: &str) -> String {
        let mut lines = String::new();
        for name in support::site::names(self.outside.path()) {
            let log = fs::read_to_string(self.outside.path().join(&name)).unwrap_or_default();
            for line in log.lines().filter(|line| line.contains(id)) {
                lines += &format!("\n      {name}: {line}");
            }
        }
        lines
    }

    fn violate(&mut self, kind: Violation, case: String) {
        let cases = self.report.violations.entry(kind).or_default();
        cases.push(case);
    }
}
