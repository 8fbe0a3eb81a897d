//! `examples/submit.sh`, the controller in shell.

use crate::support;

use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::mosquitto::tool;
use support::site::{Site, names, read, while_exists};
use support::wait;

/// A run of the script, in a process group of its own as a terminal would make it.
struct Submit {
    process: Child,
    output: PathBuf,
    errors: PathBuf,
}

impl Submit {
    fn start(site: &Site, port: u16, steps: &[&str], input: Option<&Path>) -> Self {
        tool("mosquitto_sub");
        let dir = site.broker.dir();
        let (output, errors) = (dir.join("submit.out"), dir.join("submit.err"));
        let drive = site.directory("the \"drive\"");
        let mut command = Command::new("sh");
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/submit.sh"))
            .args(steps);
        command
            .env("MQTT_HOST", "127.0.0.1")
            .env("MQTT_PORT", port.to_string())
            .env("JOBS_DIR", drive);
        command.env_remove("MQTT_TOPIC_ROOT").env_remove("INPUT");
        if let Some(input) = input {
            command.env("INPUT", input);
        }
        command
            .stdin(Stdio::null())
            .stdout(File::create(&output).unwrap())
            .stderr(File::create(&errors).unwrap());
        Self {
            process: command.process_group(0).spawn().expect("sh can be started"),
            output,
            errors,
        }
    }

    fn on(site: &Site, steps: &[&str]) -> Self {
        Self::start(site, site.broker.port(), steps, None)
    }

    fn exits_with(&mut self, code: i32) {
        let status = wait::until_some("submit.sh to exit", || self.process.try_wait().unwrap());
        assert_eq!(
            status.code(),
            Some(code),
            "{status}\n{}{}",
            read(&self.output),
            read(&self.errors)
        );
    }

    fn shows(&self, text: &str) {
        wait::until(&format!("submit.sh to show {text:?}"), || {
            read(&self.output).contains(text)
        });
    }

    fn has_published(&self) {
        wait::until("submit.sh to have published", || {
            read(&self.errors).contains("submit: job ")
        });
    }

    fn ctrl_c(&self) {
        kill_process_group(Pid::from_child(&self.process), Signal::INT)
            .expect("submit.sh is running");
    }
}

impl Drop for Submit {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.process), Signal::KILL); // it has ended
        let _ = self.process.wait();
    }
}

/// The directory of the only job on the drive.
fn job_dir(site: &Site) -> PathBuf {
    let drive = site.directory("the \"drive\"");
    wait::until("the job's directory", || !names(&drive).is_empty());
    drive.join(&names(&drive)[0])
}

fn assert_forgotten(site: &Site) {
    let sessions = site
        .broker
        .log()
        .lines()
        .filter(|line| line.contains("submit_") && line.contains("c1,"))
        .count();
    assert!(
        sessions >= 1,
        "the last connection of submit.sh asks for a clean session"
    );
}

#[test]
fn shows_the_log_and_exits_with_zero_for_a_good_job() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let input = site.directory("input");
    fs::write(input.join("who.txt"), "world").unwrap();
    let steps = [
        "echo \"hello $(cat who.txt)\"",
        "printf 'a\\tb\\n'\necho \"second\tline\"",
    ];
    let mut submit = Submit::start(&site, site.broker.port(), &steps, Some(&input));
    submit.exits_with(0);
    worker.exits_with(0);
    let log = read(&job_dir(&site).join("job.log"));
    assert_eq!(read(&submit.output), log, "all of the log, once");
    assert!(
        log.contains("hello world\n") && log.contains("a\tb\nsecond\tline\n"),
        "{log}"
    );
    assert_forgotten(&site);
}

#[test]
fn exits_with_the_exit_code_of_the_job() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    Submit::on(&site, &["true", "exit 7"]).exits_with(7);
    worker.exits_with(0);
}

#[test]
fn follows_the_log_while_the_job_runs() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let mut submit = Submit::on(&site, &["touch gate; echo begun", &while_exists("gate")]);
    submit.shows("\nbegun\n");
    assert!(submit.process.try_wait().unwrap().is_none());
    fs::remove_file(job_dir(&site).join("gate")).unwrap();
    submit.exits_with(0);
    worker.exits_with(0);
}

#[test]
fn a_result_that_comes_at_once_is_not_missed() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut worker = site.idle_worker(|_| {});
    let mut submit = Submit::on(&site, &["true"]);
    // hold the script as soon as its request is out, until the result has been published
    wait::until("the request", || {
        !site.controller.heard("jobs/pending").is_empty()
    });
    kill_process_group(Pid::from_child(&submit.process), Signal::STOP).unwrap();
    worker.exits_with(0);
    kill_process_group(Pid::from_child(&submit.process), Signal::CONT).unwrap();
    submit.exits_with(0);
}

#[test]
fn ctrl_c_cancels_the_job() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let mut submit = Submit::on(&site, &["echo begun; exec sleep 600"]);
    submit.shows("\nbegun\n");
    submit.ctrl_c();
    submit.exits_with(130);
    worker.exits_with(0);
    assert!(
        read(&submit.output).contains("cancelled by the controller"),
        "the log, to its end"
    );
    assert!(read(&submit.errors).contains("\"reason\":\"cancelled\""));
}

#[test]
fn a_job_that_nobody_has_is_cancelled_when_a_worker_comes() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut submit = Submit::on(&site, &["exec sleep 600"]);
    submit.has_published();
    submit.ctrl_c();
    wait::until("a cancel", || {
        !site.controller.heard("jobs/cancel/").is_empty()
    });
    let mut worker = site.worker(|_| {});
    submit.exits_with(130);
    worker.exits_with(0);
}

#[test]
fn a_job_that_is_still_in_the_queue_is_withdrawn_and_a_second_ctrl_c_leaves_at_once() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut submit = Submit::on(&site, &["touch ran"]);
    submit.has_published();
    submit.ctrl_c();
    wait::until("a cancel", || {
        !site.controller.heard("jobs/cancel/").is_empty()
    });
    assert!(read(&submit.errors).contains("submit: cancelled; waiting"));
    submit.ctrl_c();
    submit.exits_with(130);
    assert!(read(&submit.errors).contains("the job will not be started any more"));
    assert_forgotten(&site);
    // nobody waits for it and nobody sends a cancel, and it is not run
    let mut worker = site.worker(|_| {});
    worker.exits_with(0);
    let dir = job_dir(&site);
    assert_eq!(names(&dir), ["job.cancel", "job.json", "job.status.json"]);
    assert!(read(&dir.join("job.status.json")).contains("\"reason\":\"cancelled\""));
}

#[test]
fn a_loss_of_the_broker_in_mid_job_does_not_matter() {
    let mut site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let mut submit = Submit::on(&site, &["touch gate; echo begun", &while_exists("gate")]);
    submit.shows("\nbegun\n");
    site.kill9_broker();
    fs::remove_file(job_dir(&site).join("gate")).unwrap();
    site.restart_broker();
    submit.exits_with(0);
    worker.exits_with(0);
}

#[test]
fn without_a_broker_nothing_is_published() {
    let site = Site::start();
    let port = support::mosquitto::free_port();
    let mut submit = Submit::start(&site, port, &["true"], None);
    submit.exits_with(75);
    assert!(read(&submit.errors).contains("submit: no broker"));
}

#[test]
fn without_steps_it_says_how_to_use_it() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/submit.sh");
    let mut process = Command::new("sh")
        .arg(script)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = String::new();
    process
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(64));
    assert!(
        errors.contains("submit.sh 'npm ci' 'npm test'") && errors.contains("MQTT_TOPIC_ROOT"),
        "{errors}"
    );
}
