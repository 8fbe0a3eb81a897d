//! A broker, a controller and a shared drive: the place where a test happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::controller::{Controller, Message};
use super::mosquitto::Mosquitto;
use super::temp_dir::TempDir;
use super::wait;
use super::worker::Worker;

pub struct Site {
    pub controller: Controller,
    pub broker: Mosquitto,
    pub drive: TempDir,
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
}

impl Site {
    pub fn start() -> Self {
        Self::on(Mosquitto::start())
    }

    pub fn on(broker: Mosquitto) -> Self {
        Self {
            controller: Controller::connect(&broker),
            broker,
            drive: TempDir::new(),
        }
    }

    /// A directory on the shared drive.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.drive.path().join(name);
        fs::create_dir_all(&path).expect("the drive can be written");
        path
    }

    /// A directory with this `job.json`.
    pub fn prepare(&self, name: &str, definition: Value) -> PathBuf {
        let dir = self.directory(name);
        fs::write(dir.join("job.json"), definition.to_string()).expect("the drive can be written");
        dir
    }

    pub fn request(&self, request: Value) {
        self.controller.publish("jobs/pending", request.to_string());
    }

    /// Prepares a directory and publishes a pointer to it, both under the name `id`.
    pub fn submit(&self, id: &str, definition: Value) -> PathBuf {
        let dir = self.prepare(id, definition);
        self.request(json!({ "id": id, "workDir": dir }));
        dir
    }

    /// Starts a worker without waiting for anything.
    pub fn spawn(&self, configure: impl FnOnce(&mut Command)) -> Worker {
        Worker::spawn(&self.broker, configure)
    }

    /// Starts a worker and waits until it waits for a job.
    pub fn idle_worker(&self, configure: impl FnOnce(&mut Command)) -> Worker {
        let mark = self.controller.mark();
        let mut worker = self.spawn(configure);
        self.await_state(&mut worker, mark, "idle");
        worker
    }

    /// Waits until the presence of `worker`, as heard since `mark`, was at `state`.
    pub fn await_state(&self, worker: &mut Worker, mark: usize, state: &str) {
        let topic = format!("{}/workers/{}", worker.topic_root, worker.id);
        wait::until(&format!("worker {} to be {state}", worker.id), || {
            let there = |message: &Message| message.json()["state"] == state;
            let arrived = self.controller.heard_since(mark, &topic).iter().any(there);
            if !arrived && let Some(status) = worker.ended() {
                panic!("the worker ended with {status} before it was {state}");
            }
            arrived
        });
    }

    /// Makes the broker keep jobs for the worker, by a worker that comes, subscribes and is stopped.
    pub fn open_queue(&self, configure: impl FnOnce(&mut Command)) {
        let mut worker = self.idle_worker(configure);
        worker.sigterm();
        worker.exits_with(0);
    }

    pub fn result(&self, id: &str) -> Message {
        self.controller.next(&format!("jobs/results/{id}"))
    }

    /// One job from its request to the end of its worker.
    pub fn run(&self, id: &str, definition: Value) -> Finished {
        self.run_on(self.idle_worker(|_| {}), id, definition)
    }

    pub fn run_on(&self, worker: Worker, id: &str, definition: Value) -> Finished {
        let dir = self.prepare(id, definition);
        self.run_request(worker, dir.clone(), json!({ "id": id, "workDir": dir }))
    }

    pub fn run_request(&self, worker: Worker, dir: PathBuf, request: Value) -> Finished {
        self.request(request.clone());
        let id = match &request["id"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        self.finish(worker, dir, &id)
    }

    /// Waits for the result of a job that has been requested, and for its worker to exit with 0.
    pub fn finish(&self, mut worker: Worker, dir: PathBuf, id: &str) -> Finished {
        let published = self.result(id);
        worker.exits_with(0);
        let log =
            fs::read(dir.join("job.log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Finished {
            log: log.unwrap_or_default(),
            result: published.json(),
            published,
            dir,
            worker,
        }
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

pub fn read(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The names of what is in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()));
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("a directory entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// A step that ends when `gate` is removed from the workDir (or the whole workDir is, at the end of a test).
pub fn while_exists(gate: &str) -> String {
    format!("while [ -e {gate} ]; do sleep 0.02; done")
}
