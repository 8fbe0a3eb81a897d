//! A broker, a shared drive, and the built binary as processes of the test's: the place where a test happens.
//!
//! A site is on Mosquitto ([`Site::start`]), with a controller, where Mosquitto does what the test is about; and on a broker
//! that follows a script ([`Site::scripted`]) where no real broker does so on demand. What a test says to it is the same.
//!
//! Every process that comes from a site, however it daemonises, carries the site's mark in its environment. So a test
//! sees what a job has left running, and a test that fails leaves nothing running itself.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::broker::{Broker, Message};
use super::controller::Controller;
use super::mosquitto::Mosquitto;
use super::processes::{Marked, survivors};
use super::schema::Schema;
use super::temp_dir::TempDir;
use super::wait;
use super::worker::{Worker, job_worker, with, without_configuration};

/// The id of a worker that is not given another one.
pub const WORKER: &str = "node-worker-01";

/// A broker that a site can be on.
pub trait Hub {
    /// Who publishes requests and hears results.
    type Controller;

    fn controller(&self) -> Self::Controller;
    fn url(&self) -> String;
    fn publish(&self, controller: &Self::Controller, topic: &str, payload: Vec<u8>);
    /// All that has been published so far, in order.
    fn heard(&self, controller: &Self::Controller) -> Vec<Message>;
    /// Waits until the session of a worker that has left is empty, where the broker tells.
    fn settle(&self, _worker: &str) {}
}

impl Hub for Mosquitto {
    type Controller = Controller;

    fn controller(&self) -> Controller {
        Controller::connect(self)
    }

    fn url(&self) -> String {
        self.url()
    }

    fn publish(&self, controller: &Controller, topic: &str, payload: Vec<u8>) {
        controller.publish(topic, payload);
    }

    fn heard(&self, controller: &Controller) -> Vec<Message> {
        controller.news(0)
    }
}

/// The scripted broker publishes and hears by itself, so that nothing but the worker is in its transcript.
impl Hub for Broker {
    type Controller = ();

    fn controller(&self) {}

    fn url(&self) -> String {
        self.url()
    }

    fn publish(&self, (): &(), topic: &str, payload: Vec<u8>) {
        self.publish(topic, payload);
    }

    fn heard(&self, (): &()) -> Vec<Message> {
        self.received("#")
    }

    /// A worker that came before the acknowledgement was read would be given the request once more.
    fn settle(&self, worker: &str) {
        self.wait_for_queued(worker, 0, wait::DEADLINE);
    }
}

pub struct Site<B: Hub = Mosquitto> {
    // the first to be dropped: what runs on the drive is gone by then
    marked: Marked,
    pub controller: B::Controller,
    pub broker: B,
    pub drive: TempDir,
    /// How many results of a job have been handed out.
    taken: Mutex<HashMap<String, usize>>,
}

/// What is left when a job is over.
pub struct Finished {
    pub dir: PathBuf,
    pub result: Value,
    /// The result as it was published.
    pub published: Message,
    pub log: String,
    pub worker: Worker,
}

impl Finished {
    /// What the steps wrote: the log without the worker's own lines.
    pub fn output(&self) -> String {
        let body = self
            .log
            .lines()
            .skip(3)
            .filter(|line| !line.starts_with("==>"));
        body.map(|line| format!("{line}\n")).collect()
    }

    pub fn read(&self, file: &str) -> String {
        read(&self.dir.join(file))
    }

    /// Status, reason and exit code of the result.
    pub fn verdict(&self) -> (&str, &str, i64) {
        verdict(&self.result)
    }
}

/// Status, reason (or nothing) and exit code of a result (-1 for none).
pub fn verdict(result: &Value) -> (&str, &str, i64) {
    (
        result["status"].as_str().expect("a status"),
        result["reason"].as_str().unwrap_or_default(),
        result["exitCode"].as_i64().unwrap_or(-1),
    )
}

impl Site {
    pub fn start() -> Self {
        Self::on(Mosquitto::start())
    }

    /// Makes the broker keep jobs for the worker, by a worker that comes, subscribes and is stopped.
    pub fn open_queue(&self, configure: impl FnOnce(&mut Command)) {
        let mut worker = self.idle_worker(configure);
        worker.stop();
    }

    pub fn kill9_broker(&mut self) {
        self.broker.kill9();
        self.controller.await_loss();
    }

    /// Starts the broker again and waits until the controller hears everything again.
    pub fn restart_broker(&mut self) {
        self.broker.restart();
        self.controller.await_subscription();
    }
}

impl Site<Broker> {
    pub fn scripted() -> Self {
        Self::on(Broker::start())
    }
}

impl<B: Hub> Site<B> {
    pub fn on(broker: B) -> Self {
        let controller = broker.controller();
        Self::with(broker, controller)
    }

    pub fn with(broker: B, controller: B::Controller) -> Self {
        let drive = TempDir::new();
        Self {
            marked: Marked::new(drive.path()),
            controller,
            broker,
            drive,
            taken: Mutex::default(),
        }
    }

    /// What every process of this site has in its environment.
    pub fn label(&self) -> String {
        self.marked.label()
    }

    /// How many messages have been heard so far: for what waits for something after it.
    pub fn mark(&self) -> usize {
        self.broker.heard(&self.controller).len()
    }

    fn heard_since(&self, mark: usize, topic: &str) -> Vec<Message> {
        let mut heard = self.broker.heard(&self.controller).split_off(mark);
        heard.retain(|message| message.topic == topic);
        heard
    }

    /// A directory on the shared drive.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.drive.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A directory with this `job.json`.
    pub fn prepare(&self, name: &str, definition: Value) -> PathBuf {
        let dir = self.directory(name);
        fs::write(dir.join("job.json"), definition.to_string()).unwrap();
        dir
    }

    pub fn request(&self, request: Value) {
        let payload = request.to_string().into_bytes();
        self.broker
            .publish(&self.controller, "jobs/pending", payload);
    }

    /// Prepares a directory and publishes the request for it, both under the name `id`. There must be a session that keeps it.
    pub fn submit(&self, id: &str, definition: Value) -> PathBuf {
        let dir = self.prepare(id, definition);
        self.request(json!({ "id": id, "workDir": dir }));
        dir
    }

    /// Submits a job that runs until [`release`] lets it end, and waits until it runs. [`runs`] tells its starts and ends.
    pub fn hold(&self, id: &str) -> PathBuf {
        let gate = until_exists("gate");
        let step = format!(
            "echo start $JOB_ATTEMPT >> runs; echo $PPID > worker; touch up; {gate}; echo end $JOB_ATTEMPT >> runs"
        );
        self.begin(id, json!({ "steps": [step] }))
    }

    /// Submits a job, and waits until it has made the file `up`.
    pub fn begin(&self, id: &str, definition: Value) -> PathBuf {
        let dir = self.submit(id, definition);
        await_file(&dir.join("up"));
        dir
    }

    /// The binary with these arguments, not started yet, with none of the configuration of whoever runs the tests.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = job_worker();
        command.args(arguments);
        self.equip(&mut command);
        command
    }

    /// Makes `command` a part of the site.
    pub fn equip(&self, command: &mut Command) {
        without_configuration(command);
        command
            .env("MQTT_URL", self.broker.url())
            .env("JOB_DIR_WAIT", "0")
            .current_dir(self.drive.path())
            .stdin(Stdio::null());
        self.marked.mark(command);
    }

    /// Starts a command as it is, with stdout and stderr in files of their own.
    pub fn start_as(&self, command: Command) -> Worker {
        Worker::start(command, self.drive.path())
    }

    /// Starts a worker without waiting for anything.
    pub fn worker(&self, configure: impl FnOnce(&mut Command)) -> Worker {
        let mut command = self.command::<&str>([]);
        configure(&mut command);
        self.start_as(command)
    }

    /// Starts a worker and waits until it waits for a job.
    pub fn idle_worker(&self, configure: impl FnOnce(&mut Command)) -> Worker {
        let mut command = self.command::<&str>([]);
        configure(&mut command);
        self.idle(command)
    }

    /// Starts `command` and waits until it waits for a job.
    pub fn idle(&self, command: Command) -> Worker {
        let mark = self.mark();
        let mut worker = self.start_as(command);
        self.await_state(&mut worker, mark, "idle");
        worker
    }

    /// Waits until the presence of `worker`, as heard since `mark`, was at `state`.
    #[track_caller]
    pub fn await_state(&self, worker: &mut Worker, mark: usize, state: &str) {
        let topic = format!("{}/workers/{}", worker.topic_root, worker.id);
        wait::until(&format!("worker {} to be {state}", worker.id), || {
            let there = |message: &Message| {
                let said = message.json();
                // a member that cannot take a request yet is idle, and says what it waits for
                said["state"] == state && (state != "idle" || said["waitingFor"].is_null())
            };
            let arrived = self.heard_since(mark, &topic).iter().any(there);
            if !arrived && let Some(status) = worker.ended() {
                panic!("the worker ended with {status} before it was {state}");
            }
            arrived
        });
    }

    /// The states that the presence of [`WORKER`] has had since `mark`, in order.
    pub fn states(&self, mark: usize) -> Vec<String> {
        let topic = format!("jobs/workers/{WORKER}");
        let heard = self.heard_since(mark, &topic).into_iter();
        let states = heard.map(|message| message.json()["state"].as_str().map(str::to_owned));
        states.flatten().collect()
    }

    /// Waits until some process has said that [`WORKER`] waits for a job.
    #[track_caller]
    pub fn await_idle(&self, mark: usize) {
        wait::until("an idle worker", || {
            self.states(mark).iter().any(|state| state == "idle")
        });
    }

    /// The next result of a job, as it was published. Each is as its schema says.
    #[track_caller]
    pub fn result(&self, id: &str) -> Message {
        let taken = *self.taken.lock().unwrap().get(id).unwrap_or(&0);
        let result = self.heard_results(id, taken + 1).swap_remove(taken);
        self.taken.lock().unwrap().insert(id.to_owned(), taken + 1);
        Schema::read("status.json").describes(&result.json());
        result
    }

    /// The next result of a job is a success.
    #[track_caller]
    pub fn succeeds(&self, id: &str) {
        let result = self.result(id).json();
        assert_eq!(verdict(&result), ("success", "", 0), "{result}");
    }

    /// Waits for `n` results of a job in all.
    #[track_caller]
    pub fn results(&self, id: &str, n: usize) -> Vec<Value> {
        let heard = self.heard_results(id, n);
        heard.iter().map(Message::json).collect()
    }

    #[track_caller]
    fn heard_results(&self, id: &str, n: usize) -> Vec<Message> {
        let topic = format!("jobs/results/{id}");
        wait::until_some(&format!("{n} results of {id}"), || {
            Some(self.heard_since(0, &topic)).filter(|heard| heard.len() >= n)
        })
    }

    /// The worker is as good as ever: it runs a job, and leaves.
    #[track_caller]
    pub fn runs_a_job(&self, worker: &mut Worker) {
        self.submit("a-job", json!({ "steps": ["true"] }));
        assert_eq!(self.result("a-job").json()["status"], "success");
        worker.exits_with(0);
        self.broker.settle(&worker.id);
    }

    /// One job of a fresh worker, from its request to the end of the worker.
    #[track_caller]
    pub fn run(&self, id: &str, definition: Value) -> Finished {
        self.run_on(self.idle_worker(|_| {}), id, definition)
    }

    /// The same with these variables in the worker's environment.
    #[track_caller]
    pub fn run_with(&self, variables: &[(&str, &str)], id: &str, definition: Value) -> Finished {
        self.run_on(self.idle_worker(with(variables)), id, definition)
    }

    /// Runs each job of a table with a worker of its own. A case has the `job`, what is in `env` of the worker, further fields
    /// of the `request`; and what must come of it: it `ends` with status, reason and exit code, its steps with `codes` and
    /// with this `output`, and these texts are in the `error`, the `warning` and the `log`. Where a busy machine may come too
    /// late for that, it has several `tries`.
    #[track_caller]
    pub fn jobs(&self, cases: &Value) -> Vec<Finished> {
        let run = |number: usize, case: &Value| {
            let variables = case["env"].as_object().into_iter().flatten();
            let variables: Vec<_> = variables
                .map(|(name, value)| (name.as_str(), value.as_str().expect("a text")))
                .collect();
            let id = format!("job-{number}");
            let dir = match case.get("job") {
                Some(job) => self.prepare(&id, job.clone()),
                None => self.directory(&id),
            };
            let mut request = json!({ "id": id, "workDir": dir });
            for (field, value) in case["request"].as_object().into_iter().flatten() {
                request[field] = value.clone();
            }
            let job = self.run_request(self.idle_worker(with(&variables)), dir, request);
            let result = &job.result;
            assert_eq!(json!(job.verdict()), case["ends"], "{case}: {result}");
            let steps = result["steps"].as_array().into_iter().flatten();
            let codes: Value = steps.map(|step| step["exitCode"].clone()).collect();
            let output = json!(job.output());
            for (name, found) in [("codes", &codes), ("output", &output)] {
                let expected = case.get(name).unwrap_or(found);
                assert_eq!(found, expected, "{case}: {result}");
            }
            let said = |field: &str| result[field].as_str().unwrap_or_default();
            for (name, said) in [
                ("error", said("error")),
                ("warning", said("warning")),
                ("log", &job.log),
            ] {
                let text = case[name].as_str().unwrap_or_default();
                assert!(said.contains(text), "{case}: {said}");
            }
            self.nothing_survives();
            job
        };
        let try_all = |(number, case): (usize, &Value)| {
            for _ in 1..case["tries"].as_u64().unwrap_or(1) {
                if let Ok(job) = catch_unwind(AssertUnwindSafe(|| run(number, case))) {
                    return job;
                }
                fs::remove_dir_all(self.drive.path().join(format!("job-{number}"))).unwrap();
            }
            run(number, case)
        };
        let cases = cases.as_array().expect("a table").iter();
        cases.enumerate().map(try_all).collect()
    }

    #[track_caller]
    pub fn run_on(&self, worker: Worker, id: &str, definition: Value) -> Finished {
        let dir = self.prepare(id, definition);
        self.run_request(worker, dir.clone(), json!({ "id": id, "workDir": dir }))
    }

    #[track_caller]
    pub fn run_request(&self, worker: Worker, dir: PathBuf, request: Value) -> Finished {
        self.request(request.clone());
        let id = match &request["id"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        self.finish(worker, dir, &id)
    }

    /// Waits for the result of a job that has been requested, and for its worker to exit with 0.
    #[track_caller]
    pub fn finish(&self, mut worker: Worker, dir: PathBuf, id: &str) -> Finished {
        let published = self.result(id);
        worker.exits_with(0);
        self.broker.settle(&worker.id);
        let log = fs::read(dir.join("job.log")).unwrap_or_default();
        Finished {
            log: String::from_utf8_lossy(&log).into_owned(),
            result: published.json(),
            published,
            dir,
            worker,
        }
    }

    /// Nothing lives of the jobs of this site.
    #[track_caller]
    pub fn nothing_survives(&self) {
        let left = survivors(&self.label());
        assert!(left.is_empty(), "these are left: {left:?}");
    }
}

pub fn read(path: &Path) -> String {
    let bytes =
        fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&read(path))
        .unwrap_or_else(|error| panic!("{} is no JSON: {error}", path.display()))
}

/// Runs a line of shell in a directory.
#[track_caller]
pub fn shell(dir: &Path, line: &str) {
    let mut shell = Command::new("sh");
    let status = shell.args(["-c", line]).current_dir(dir).status();
    assert!(status.unwrap().success(), "{line}");
}

/// Waits until a step has made this file.
#[track_caller]
pub fn await_file(path: &Path) {
    wait::until(&format!("{} to exist", path.display()), || path.exists());
}

/// Lets a job end whose step waits for the file `gate`.
pub fn release(dir: &Path) {
    fs::write(dir.join("gate"), "").unwrap();
}

/// The lines that runs of a job have left in `runs`.
pub fn runs(dir: &Path) -> Vec<String> {
    let runs = fs::read_to_string(dir.join("runs")).unwrap_or_default();
    runs.lines().map(str::to_owned).collect()
}

/// Waits until a final document is on the drive.
pub fn await_final(dir: &Path) -> String {
    let journal = dir.join("job.status.json");
    await_file(&journal);
    wait::until_some("a final document", || {
        let text = read(&journal);
        let document: Value = serde_json::from_str(&text).expect("valid JSON at any moment");
        (document["status"] == "success" || document["status"] == "failed").then_some(text)
    })
}

/// The names of what is in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()));
    let names = entries.map(|entry| entry.expect("a directory entry").file_name());
    let mut names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A step that ends when `gate` is removed from the workDir (or the whole workDir is, at the end of a test).
pub fn while_exists(gate: &str) -> String {
    format!("while [ -e {gate} ]; do sleep 0.02; done")
}

/// A step that runs until the file `gate` exists in the workDir.
pub fn until_exists(gate: &str) -> String {
    format!("until [ -e {gate} ]; do sleep 0.02; done")
}
