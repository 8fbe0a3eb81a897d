//! Members of one pool, and the controller that has work for them.

use crate::cycle::open_session;
use crate::mqtt::{Broker, Client};
use crate::scratch::Scratch;
use crate::worker::{Running, command, program};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a member has to know.
pub struct Member<'a> {
    broker: &'a Broker,
    pool: &'a str,
    root: PathBuf,
    name: String,
}

impl Member<'_> {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A worker for one job.
    pub fn command(&self) -> Command {
        self.command_of(program())
    }

    /// A program that starts the member.
    pub fn command_of(&self, program: impl AsRef<Path>) -> Command {
        let mut command = command(program, self.broker, self.pool);
        command
            .env("WORKER_ID", &self.name)
            .env("JOB_POOL", self.pool)
            .env("JOB_ROOT", &self.root);
        command
    }

    /// One worker after the other.
    pub fn supervised(&self) -> Command {
        let mut command = self.command();
        command.arg("supervise");
        command
    }
}

pub struct Fleet<'a> {
    broker: &'a Broker,
    /// Of the pool, its session, and its topics.
    name: String,
    root: PathBuf,
    controller: Client,
    results: Client,
    submitted: usize,
    pub members: Vec<Running>,
}

impl<'a> Fleet<'a> {
    /// A pool without members.
    pub fn new(broker: &'a Broker, scratch: &Scratch, name: &str) -> Self {
        open_session(broker, name);
        let client = |role: &str| broker.client(&format!("{name}-{role}"));
        let (controller, mut results) = (client("controller"), client("results"));
        results.subscribe(&format!("{name}/results/+"));
        Self {
            broker,
            name: name.to_owned(),
            root: scratch.dir(name),
            controller,
            results,
            submitted: 0,
            members: Vec::new(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn submit(&mut self, step: &str) {
        let job = self.submitted;
        self.submitted += 1;
        let dir = self.root.join(job.to_string());
        std::fs::create_dir(dir).expect("a directory");
        let request = format!(r#"{{"id":"{job}","workDir":"{job}","steps":["{step}"]}}"#);
        self.controller
            .publish(&format!("{}/pending", self.name), request.as_bytes());
    }

    /// Starts members.
    pub fn start(&mut self, members: usize, how: impl Fn(&Member<'_>) -> Command) {
        for number in 0..members {
            let member = self.member(number);
            self.members.push(Running::start(&mut how(&member)));
        }
    }

    /// The same, and waits until all stand for the head.
    pub fn start_idle(&mut self, members: usize, how: impl Fn(&Member<'_>) -> Command) {
        let mut presence = self.broker.client(&format!("{}-presence", self.name));
        presence.subscribe(&format!("{}/workers/+", self.name));
        self.start(members, how);
        let mut idle = 0;
        while idle < members {
            idle += usize::from(String::from_utf8_lossy(&presence.message()).contains("\"idle\""));
        }
    }

    pub fn member(&self, number: usize) -> Member<'_> {
        Member {
            broker: self.broker,
            pool: &self.name,
            root: self.root.clone(),
            name: format!("{}-{number}", self.name),
        }
    }

    /// Waits for so many results.
    pub fn await_results(&mut self, count: usize) {
        for _ in 0..count {
            let result = String::from_utf8_lossy(&self.results.message()).into_owned();
            assert!(result.contains("\"success\""), "{result}");
        }
    }
}
