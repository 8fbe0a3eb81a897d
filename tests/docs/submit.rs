//! `examples/submit.sh`, the controller in shell.

use crate::support;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::broker::{Broker, RefuseV5};
use support::ca::{Authority, Valid};
use support::mosquitto::{Mosquitto, free_port, tool};
use support::site::{Site, names, read, while_exists};
use support::wait;

/// A run of the script, in a process group of its own as a terminal would make it.
struct Submit {
    process: Child,
    output: PathBuf,
    errors: PathBuf,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/submit.sh")
}

/// The script with these arguments for a broker, with none of the configuration of whoever runs the tests.
fn command(port: u16, drive: &Path, arguments: &[&str]) -> Command {
    tool("mosquitto_sub");
    let mut command = Command::new("sh");
    command
        .arg(script())
        .args(arguments)
        .env("MQTT_HOST", "127.0.0.1")
        .env("MQTT_PORT", port.to_string())
        .env("JOBS_DIR", drive)
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .env_remove("MQTT_TOPIC_ROOT")
        .env_remove("WORKERS_DIR")
        .env_remove("INPUT");
    command
}

fn drive(site: &Site) -> PathBuf {
    site.directory("the \"drive\"")
}

impl Submit {
    fn start(site: &Site, arguments: &[&str], configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = command(site.broker.port(), &drive(site), arguments);
        configure(&mut command);
        Self::start_as(command, site.broker.dir())
    }

    fn start_as(mut command: Command, dir: &Path) -> Self {
        let (output, errors) = (dir.join("submit.out"), dir.join("submit.err"));
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

    fn on(site: &Site, arguments: &[&str]) -> Self {
        Self::start(site, arguments, |_| {})
    }

    fn exits_with(&mut self, code: i32) {
        let status = wait::until_some("submit.sh to exit", || self.process.try_wait().unwrap());
        assert_eq!(
            status.code(),
            Some(code),
            "{status}\n{}{}",
            self.shown(),
            self.said()
        );
    }

    /// What it has said on stderr.
    fn said(&self) -> String {
        read(&self.errors)
    }

    /// What it has shown on stdout.
    fn shown(&self) -> String {
        read(&self.output)
    }

    fn shows(&self, text: &str) {
        wait::until(&format!("submit.sh to show {text:?}"), || {
            self.shown().contains(text)
        });
    }

    fn says(&self, text: &str) {
        wait::until(&format!("submit.sh to say {text:?}"), || {
            self.said().contains(text)
        });
    }

    fn has_published(&self) {
        self.says("submit: job ");
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
    let drive = drive(site);
    wait::until("the job's directory", || !names(&drive).is_empty());
    drive.join(&names(&drive)[0])
}

/// The last connection under the client id of the listener has asked for a clean session.
fn assert_forgotten(site: &Site) {
    let log = site.broker.log();
    let mut connections = log
        .lines()
        .filter(|line| line.contains("New client connected") && line.contains(" as submit_"));
    let last = connections.next_back().expect("submit.sh has listened");
    assert!(last.contains("c1,"), "a session is left: {last}");
}

#[test]
fn shows_the_log_and_exits_with_zero_for_a_good_job() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let input = site.directory("input");
    fs::write(input.join("who.txt"), "world").unwrap();
    fs::write(
        input.join("job.cancel"),
        "of the job whose directory this was",
    )
    .unwrap();
    let steps = [
        "echo \"hello $(cat who.txt)\"",
        "printf 'a\\tb\\n'\necho \"second\tline\"",
    ];
    let mut submit = Submit::start(&site, &steps, |command| {
        command.env("INPUT", &input);
    });
    submit.exits_with(0);
    worker.exits_with(0);
    let log = read(&job_dir(&site).join("job.log"));
    assert_eq!(submit.shown(), log, "all of the log, once");
    assert!(
        log.contains("hello world\n") && log.contains("a\tb\nsecond\tline\n"),
        "{log}"
    );
    let said = submit.said();
    let last = said.lines().next_back().unwrap();
    assert!(
        last.contains(": success in ") && last.ends_with(" s, exit code 0"),
        "{said}"
    );
    assert_forgotten(&site);
}

#[test]
fn exits_with_the_exit_code_of_the_job() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let mut submit = Submit::on(&site, &["true", "echo '\"exitCode\":3'; exit 7"]);
    submit.exits_with(7);
    worker.exits_with(0);
    let said = submit.said();
    assert!(
        said.contains(
            "exit code 7: step 2/2 (echo '\"exitCode\":3'; exit 7) ended with exit code 7\n"
        ),
        "{said}"
    );
}

#[test]
fn exit_codes_of_its_own_are_never_those_of_the_job() {
    let site = Site::start();
    site.open_queue(|_| {});
    for code in [64, 75] {
        let mut worker = site.idle_worker(|_| {});
        let mut submit = Submit::on(&site, &["--json", &format!("exit {code}")]);
        submit.exits_with(1);
        worker.exits_with(0);
        let result: Value = serde_json::from_str(&submit.shown()).expect("the result alone");
        assert_eq!(result["exitCode"], code);
        submit.says(&format!("exiting with 1 instead of {code}"));
    }
}

#[test]
fn json_is_the_result_as_published_and_the_log_is_elsewhere() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let mut submit = Submit::on(&site, &["--json", "--id", "a job", "echo hello"]);
    submit.exits_with(0);
    worker.exits_with(0);
    let published = site.result("a job").text();
    assert_eq!(submit.shown(), format!("{published}\n"));
    assert!(submit.said().contains("\nhello\n"), "{}", submit.said());
}

#[test]
fn an_id_may_have_spaces_and_quotes() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let id = "it's \"a\" \\ job $HOME";
    let mut submit = Submit::on(&site, &["--id", id, "echo \"$JOB_ID\""]);
    submit.exits_with(0);
    worker.exits_with(0);
    assert_eq!(names(&drive(&site)), [id]);
    submit.shows(&format!("\n{id}\n"));
    assert_forgotten(&site);
    // the name is taken
    let mut submit = Submit::on(&site, &["--id", id, "true"]);
    submit.exits_with(64);
    assert!(submit.said().contains("is there already"));
    assert!(drive(&site).join(id).join("job.log").exists());
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
fn says_what_it_waits_for() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut first = Submit::on(
        &site,
        &["--id", "first", "touch gate", &while_exists("gate")],
    );
    first.says("no worker is there; the broker keeps the job until one comes");
    let mut worker = site.worker(|_| {});
    let gate = drive(&site).join("first/gate");
    support::site::await_file(&gate);
    // the files of the second one's output are those of the first one
    fs::rename(&first.errors, site.broker.dir().join("first.err")).unwrap();
    fs::rename(&first.output, site.broker.dir().join("first.out")).unwrap();
    let mut second = Submit::on(&site, &["true"]);
    second.says("in the queue; worker node-worker-01 is busy with job first\n");
    fs::remove_file(&gate).unwrap();
    worker.exits_with(0);
    assert!(first.process.wait().unwrap().success());
    let mut worker = site.worker(|_| {});
    worker.exits_with(0);
    second.exits_with(0);
}

#[test]
fn says_that_a_job_waits_for_a_lock() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut submit = Submit::on(&site, &["true"]);
    submit.has_published();
    let log = File::create(job_dir(&site).join("job.log")).unwrap();
    rustix::fs::flock(&log, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut worker = site.worker(|_| {});
    submit.says("worker node-worker-01 has the job, and waits for ");
    drop(log);
    submit.exits_with(0);
    worker.exits_with(0);
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
        submit.shown().contains("cancelled by the controller"),
        "the log, to its end"
    );
    submit.says("failed in ");
    submit.says("exit code 130: cancelled");
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let site = Site::start();
    let mut worker = site.idle_worker(|command| {
        command.env("JOB_STOP_GRACE", "60");
    });
    let steps = ["trap '' TERM; touch gate; echo begun; while [ -e gate ]; do sleep 0.02; done"];
    let mut submit = Submit::on(&site, &steps);
    submit.shows("\nbegun\n");
    submit.ctrl_c();
    submit.says("submit: cancelled; waiting");
    submit.ctrl_c();
    submit.exits_with(130);
    assert!(submit.said().contains("left without waiting"));
    assert_forgotten(&site);
    fs::remove_file(job_dir(&site).join("gate")).unwrap();
    worker.exits_with(0);
}

#[test]
fn ctrl_c_withdraws_a_job_that_is_still_in_the_queue() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut submit = Submit::on(&site, &["touch ran"]);
    submit.has_published();
    submit.ctrl_c();
    submit.exits_with(130);
    submit.says("is still in the queue, and will not be run");
    assert_forgotten(&site);
    assert_eq!(names(&job_dir(&site)), ["job.cancel", "job.json"]);
    // nobody waits for it and nobody sends a cancel, and it is not run
    let mut worker = site.worker(|_| {});
    worker.exits_with(0);
    let dir = job_dir(&site);
    assert_eq!(names(&dir), ["job.cancel", "job.json", "job.status.json"]);
    assert!(read(&dir.join("job.status.json")).contains("\"reason\":\"cancelled\""));
}

/// A worker that has read its queue and is asked for nothing but a cancel while it waits for the directory's lock.
#[test]
fn ctrl_c_ends_a_job_that_a_worker_has_and_does_not_run_yet() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut submit = Submit::on(&site, &["touch ran"]);
    submit.has_published();
    let dir = job_dir(&site);
    let log = File::create(dir.join("job.log")).unwrap();
    rustix::fs::flock(&log, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut worker = site.worker(|_| {});
    submit.says("has the job, and waits for ");
    submit.ctrl_c();
    submit.exits_with(130);
    worker.exits_with(0);
    assert!(!dir.join("ran").exists());
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
fn where_the_broker_does_not_come_back_the_drive_has_the_result() {
    let mut site = Site::start();
    let _worker = site.idle_worker(|_| {});
    let steps = ["touch gate; echo begun", &while_exists("gate"), "exit 9"];
    let mut submit = Submit::on(&site, &steps);
    submit.shows("\nbegun\n");
    site.kill9_broker();
    fs::remove_file(job_dir(&site).join("gate")).unwrap();
    submit.exits_with(9);
    submit.shows("ended with exit code 9\n");
}

#[test]
fn a_broker_that_is_away_while_the_job_is_queued_is_told_of() {
    let mut site = Site::start();
    site.open_queue(|_| {});
    let mut submit = Submit::on(&site, &["true"]);
    submit.has_published();
    site.kill9_broker();
    submit.says("the broker does not answer; waiting until it is back");
    site.restart_broker();
    let mut worker = site.worker(|_| {});
    submit.exits_with(0);
    worker.exits_with(0);
}

/// It exits with 75, says why, and leaves neither a directory nor a session.
fn fails(site: &Site, submit: &mut Submit, why: &str) {
    submit.exits_with(75);
    let said = submit.said();
    assert!(said.contains(why), "{said}");
    assert!(said.contains("nothing is published"), "{said}");
    assert_eq!(names(&drive(site)), [""; 0]);
    assert!(site.controller.heard("jobs/pending").is_empty(), "{why}");
}

#[test]
fn without_a_broker_nothing_is_published() {
    let site = Site::start();
    let command = command(free_port(), &drive(&site), &["true"]);
    let mut submit = Submit::start_as(command, site.broker.dir());
    fails(&site, &mut submit, "Connection refused");
}

/// MQTT drops in silence what nobody has subscribed to: the job would never be run.
#[test]
fn where_no_worker_has_ever_been_nobody_would_keep_the_request() {
    let broker = Mosquitto::start();
    let drive = support::temp_dir::TempDir::new();
    let mut submit = Submit::start_as(
        command(broker.port(), drive.path(), &["true"]),
        broker.dir(),
    );
    submit.exits_with(75);
    submit.says("no worker has ever been on this broker for jobs/pending");
    assert_eq!(names(drive.path()), [""; 0]);
}

#[test]
fn a_request_that_the_broker_denies_is_an_error() {
    let mut broker = Mosquitto::prepare();
    let acl = broker.dir().join("acl");
    fs::write(&acl, "topic read #\ntopic write jobs/workers/#\n").unwrap();
    broker = broker.config(&format!("acl_file {}", acl.display()));
    broker.restart();
    let site = Site::on(broker);
    site.open_queue(|_| {});
    let mut submit = Submit::on(&site, &["true"]);
    fails(&site, &mut submit, "the broker denies what we publish");
    assert_forgotten(&site);
}

#[test]
fn a_drive_that_cannot_be_written_is_an_error() {
    let site = Site::start();
    for place in ["/proc", "/proc/1/nothing"] {
        let mut submit = Submit::start(&site, &["true"], |command| {
            command.env("JOBS_DIR", place);
        });
        fails(&site, &mut submit, "cannot be ");
    }
}

/// A limit on the size of files is to a program what a full drive is: a write fails in the middle.
#[test]
fn a_drive_that_fills_up_is_an_error() {
    let site = Site::start();
    let input = site.directory("input");
    fs::write(input.join("large"), vec![b'x'; 1 << 20]).unwrap();
    let limited = |input: Option<&Path>, steps: &[&str]| {
        let mut command = command(site.broker.port(), &drive(&site), steps);
        if let Some(input) = input {
            command.env("INPUT", input);
        }
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let mut limited = Command::new("sh");
        limited
            .args(["-c", "trap '' XFSZ; ulimit -f 8; exec sh \"$@\"", "sh"])
            .args(arguments);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        Submit::start_as(limited, site.broker.dir())
    };
    fails(
        &site,
        &mut limited(Some(&input), &["true"]),
        "INPUT cannot be copied",
    );
    let long = format!("echo {}", "x".repeat(100_000));
    fails(
        &site,
        &mut limited(None, &[&long]),
        "job.json cannot be written",
    );
}

#[test]
fn user_and_password_are_passed_on() {
    let mut broker = Mosquitto::prepare().only_user("me and you", "it's secret");
    broker.restart();
    let log_in = |command: &mut Command| {
        command
            .env("MQTT_USERNAME", "me and you")
            .env("MQTT_PASSWORD", "it's secret");
    };
    let mut worker = support::worker::Worker::spawn(&broker, log_in);
    worker.await_stderr("waiting for a job on jobs/pending");
    let drive = support::temp_dir::TempDir::new();
    let submit = |arguments: &[&str]| {
        Submit::start_as(
            command(broker.port(), drive.path(), arguments),
            broker.dir(),
        )
    };
    let mut denied = submit(&["true"]);
    denied.exits_with(75);
    denied.says("the broker does not let us listen for the result; nothing is published");
    assert_eq!(names(drive.path()), [""; 0]);
    submit(&["-u", "me and you", "-P", "it's secret", "exit 3"]).exits_with(3);
    worker.exits_with(0);
}

#[test]
fn tls_is_passed_on() {
    let ca = Authority::new("A CA");
    let identity = ca.broker("DNS:localhost,IP:127.0.0.1", Valid::Now);
    let port = free_port();
    let mut broker = Mosquitto::prepare()
        .config(&format!("listener {port} 127.0.0.1"))
        .config(&format!("certfile {}", identity.certificate.display()))
        .config(&format!("keyfile {}", identity.key.display()));
    broker.restart();
    let site = Site::on(broker);
    let mut worker = site.idle_worker(|_| {});
    let secure = |arguments: &[&str]| {
        let command = command(port, &drive(&site), arguments);
        Submit::start_as(command, site.broker.dir())
    };
    secure(&["true"]).exits_with(75);
    let file = ca.file();
    secure(&["--cafile", file.to_str().unwrap(), "exit 3"]).exits_with(3);
    worker.exits_with(0);
}

/// With the scripted broker, since Mosquitto always has version 5.
#[test]
fn a_broker_without_mqtt_5_will_do() {
    for refusal in [RefuseV5::Close, RefuseV5::Answer] {
        let broker = Broker::start();
        broker.configure(|knobs| knobs.refuse_v5 = Some(refusal));
        let port = broker.port();
        let site = Site::with(broker, Default::default());
        let mut worker = site.idle_worker(|_| {});
        let drive = site.directory("drive");
        let command = command(port, &drive, &["exit 3"]);
        Submit::start_as(command, site.drive.path()).exits_with(3);
        worker.exits_with(0);
    }
}

#[test]
fn the_members_of_a_pool_run_it() {
    let site = Site::start();
    let members: Vec<_> = ["a", "b"]
        .iter()
        .map(|name| {
            site.worker(|command| {
                command
                    .env("JOB_POOL", "the-pool")
                    .env("JOB_ROOT", site.drive.path())
                    .env("WORKER_ID", name);
            })
        })
        .collect();
    wait::until("the pool's subscription", || {
        site.broker
            .log()
            .contains("Received SUBSCRIBE from the-pool")
    });
    let mut submit = Submit::on(&site, &["exit 3"]);
    submit.exits_with(3);
    drop(members);
}

/// As with compose.yaml, where the workers have under /data what the host has elsewhere.
#[test]
fn the_workers_may_have_the_drive_under_another_path() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let theirs = site.drive.path().join("theirs");
    std::os::unix::fs::symlink(drive(&site), &theirs).unwrap();
    let mut submit = Submit::start(&site, &["pwd -L"], |command| {
        command.env("WORKERS_DIR", &theirs);
    });
    submit.exits_with(0);
    worker.exits_with(0);
    let request = site.controller.heard("jobs/pending").remove(0).json();
    let name = &names(&drive(&site))[0];
    assert_eq!(request["workDir"], json!(theirs.join(name)));
}

#[test]
fn help_says_what_there_is() {
    let dir = support::temp_dir::TempDir::new();
    let mut help = Submit::start_as(command(1, dir.path(), &["--help"]), dir.path());
    help.exits_with(0);
    assert_eq!(help.said(), "");
    let shown = help.shown();
    for word in [
        "submit.sh 'npm ci' 'npm test'",
        "--json",
        "--id",
        "MQTT_TOPIC_ROOT",
        "WORKERS_DIR",
        "Ctrl-C withdraws",
        "64",
        "75",
        "130",
    ] {
        assert!(shown.contains(word), "no {word} in:\n{shown}");
    }
}

#[test]
fn a_usage_error_is_one_line_and_leaves_nothing() {
    let dir = support::temp_dir::TempDir::new();
    let drive = dir.path().join("drive");
    fs::create_dir(&drive).unwrap();
    for arguments in [
        &[][..],
        &["--id"],
        &["--id", "a/b", "true"],
        &["--id", "", "true"],
        &["--no-such-option", "true"],
    ] {
        let mut submit = Submit::start_as(command(1, &drive, arguments), dir.path());
        submit.exits_with(64);
        let said = submit.said();
        assert!(said.lines().count() == 1, "{said}");
        assert!(said.ends_with("(submit.sh --help)\n"), "{said}");
        assert_eq!(names(&drive), [""; 0]);
    }
}
