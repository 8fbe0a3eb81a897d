//! `examples/submit.sh`, the controller in shell.

use crate::support;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::broker::{Broker, Packet, Verdict};
use support::ca::{Authority, Valid};
use support::mosquitto::{Mosquitto, free_port, tool};
use support::site::{Site, names, read, while_exists};
use support::temp_dir::TempDir;
use support::wait;
use support::worker::with;

/// A run of the script, in a process group of its own as a terminal would make it.
struct Submit {
    process: Child,
    output: PathBuf,
    errors: PathBuf,
}

/// The script with these arguments for a broker, with none of the configuration of whoever runs the tests.
fn command(port: u16, drive: &Path, arguments: &[&str]) -> Command {
    tool("mosquitto_sub");
    let mut command = Command::new("sh");
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/submit.sh"))
        .args(arguments)
        .env("MQTT_HOST", "127.0.0.1")
        .env("MQTT_PORT", port.to_string())
        .env("JOBS_DIR", drive)
        .env("XDG_CONFIG_HOME", "/nonexistent");
    for variable in ["MQTT_TOPIC_ROOT", "WORKERS_DIR", "INPUT"] {
        command.env_remove(variable);
    }
    command
}

fn drive(site: &Site) -> PathBuf {
    site.directory("the \"drive\"")
}

impl Submit {
    fn start(mut command: Command, dir: &Path) -> Self {
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
        let command = command(site.broker.port(), &drive(site), arguments);
        Self::start(command, site.broker.dir())
    }

    #[track_caller]
    fn exits_with(&mut self, code: i32) {
        let status = wait::until_some("submit.sh to exit", || self.process.try_wait().unwrap());
        let (shown, said) = (self.shown(), self.said());
        assert_eq!(status.code(), Some(code), "{status}\n{shown}{said}");
    }

    /// What it has said on stderr.
    fn said(&self) -> String {
        read(&self.errors)
    }

    /// What it has shown on stdout.
    fn shown(&self) -> String {
        read(&self.output)
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        let what = format!("submit.sh to show {text:?}");
        wait::until(&what, || self.shown().contains(text));
    }

    #[track_caller]
    fn says(&self, text: &str) {
        let what = format!("submit.sh to say {text:?}");
        wait::until(&what, || self.said().contains(text));
    }

    fn signal(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.process), signal).expect("submit.sh is running");
    }

    fn ctrl_c(&self) {
        self.signal(Signal::INT);
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

/// What a job says and ends with is what the script says and ends with: arguments, exit status, a part of stdout, a part of
/// stderr.
#[test]
fn it_ends_as_its_job_does() {
    let site = Site::start();
    site.open_queue(|_| {});
    let odd = "it's \"a\" \\ job $HOME";
    let cases: &[(&[&str], i32, &str, &str)] = &[
        (&["true"], 0, ": exit 0 in ", ": success in "),
        (
            &["true", "echo '\"exitCode\":3'; exit 7"],
            7,
            "\"exitCode\":3\n",
            "exit code 7: step 2/2 (echo '\"exitCode\":3'; exit 7) ended with exit code 7\n",
        ),
        (&["exit 64"], 1, "", "exiting with 1 instead of 64"),
        (&["exit 75"], 1, "", "exiting with 1 instead of 75"),
        (&["--json", "echo hello"], 0, "{\"id\":", "\nhello\n"),
        (
            &["--id", odd, "echo \"<$JOB_ID>\""],
            0,
            &format!("\n<{odd}>\n"),
            "",
        ),
        (&["--id", odd, "true"], 64, "", "is there already"),
        (&["printf 'a\\tb\\n'\necho \"c\td\""], 0, "a\tb\nc\td\n", ""),
        (
            &["echo '\u{1}\u{8}\u{1b}[0m\r\u{7f}é'"],
            0,
            "\n\u{1}\u{8}\u{1b}[0m\r\u{7f}é\n",
            "",
        ),
        (
            &["--env", "A=b=\"c\"\t\\", "--env", "B=", "echo \"<$A|$B>\""],
            0,
            "\n<b=\"c\"\t\\|>\n",
            "",
        ),
        (&["--timeout", ".2", "exec sleep 600"], 124, "", "timed out"),
        (&["--max-attempts", "007", "true"], 0, "attempt 1 of ", ""),
        // the worker rejects what the script does not know to be wrong: nothing was run
        (&["--env", "=A=b", "true"], 64, "", "--env takes NAME=VALUE"),
        (&["--timeout", "0", "true"], 75, "", "nothing was run"),
    ];
    for (arguments, code, shown, said) in cases {
        let mut worker = site.worker(|_| {});
        let mut submit = Submit::on(&site, arguments);
        submit.exits_with(*code);
        assert!(
            submit.shown().contains(shown),
            "{arguments:?}: {}",
            submit.shown()
        );
        assert!(
            submit.said().contains(said),
            "{arguments:?}: {}",
            submit.said()
        );
        if matches!(code, 64 | 75) {
            worker.sigterm(); // it has run nothing, and waits
        }
        worker.exits_with(0);
        if arguments[0] == "--json" {
            let result: Value = serde_json::from_str(&submit.shown()).expect("the result alone");
            assert_eq!(result["exitCode"], 0);
        }
    }
    assert_forgotten(&site);
}

#[test]
fn input_is_copied_first() {
    let site = Site::start();
    site.open_queue(|_| {});
    let input = site.directory("input");
    fs::write(input.join("job.cancel"), "of another job").unwrap();
    fs::write(input.join(".who"), "world").unwrap();
    fs::create_dir(input.join("sub")).unwrap();
    fs::write(input.join("sub/file"), "!").unwrap();
    // INPUT and JOBS_DIR, from the directory `input`; the last ones where the drive lies in the input
    for (input_is, drive_is) in [
        (".", "../the drive"),
        ("../input", "."),
        (".", "."),
        (".", "./drive"),
    ] {
        fs::create_dir_all(input.join(drive_is)).unwrap();
        let mut worker = site.worker(|_| {});
        let arguments = ["echo \"hello $(cat .who sub/file)\"; ls -a"];
        let mut command = command(site.broker.port(), Path::new(drive_is), &arguments);
        command.current_dir(&input).env("INPUT", input_is);
        let mut submit = Submit::start(command, site.broker.dir());
        submit.exits_with(0);
        worker.exits_with(0);
        let shown = submit.shown();
        assert!(
            shown.contains("\nhello world!\n.\n..\n.who\njob.json\njob.log\n"),
            "{shown}"
        );
        assert!(shown.contains("\njob.status.json\nsub\n"), "{shown}");
    }
    fs::create_dir_all(input.join("sub/drive")).unwrap();
    let mut command = command(site.broker.port(), Path::new("sub/drive"), &["true"]);
    command.current_dir(&input).env("INPUT", ".");
    let mut submit = Submit::start(command, site.broker.dir());
    submit.exits_with(75);
    submit.says("nothing is published");
}

/// As with compose.yaml, where the workers have under /data what the host has elsewhere.
#[test]
fn the_workers_may_have_the_drive_under_another_path() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let theirs = site.drive.path().join("theirs");
    std::os::unix::fs::symlink(drive(&site), &theirs).unwrap();
    let mut command = command(site.broker.port(), &drive(&site), &["pwd -L"]);
    command.env("WORKERS_DIR", &theirs);
    Submit::start(command, site.broker.dir()).exits_with(0);
    worker.exits_with(0);
    let request = site.controller.heard("jobs/pending").remove(0).json();
    let name = &names(&drive(&site))[0];
    assert_eq!(request["workDir"], json!(theirs.join(name)));
}

#[test]
fn what_is_no_result_is_passed_over() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut submit = Submit::on(&site, &["--id", "a", "exit 3"]);
    submit.says("submit: job a");
    for payload in [
        "no JSON",
        "{\"status\":\"success\",\"exitCode\":\"x\"}",
        "{\"status\":\"failed\",\"exitCode\":300}",
    ] {
        site.controller.publish("jobs/results/a", payload);
        submit.says(&format!("is none, and is passed over: {payload}"));
    }
    site.worker(|_| {}).exits_with(0);
    submit.exits_with(3);
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
    let log = read(&job_dir(&site).join("job.log"));
    assert_eq!(submit.shown(), log, "all of the log, once");
}

#[test]
fn a_result_that_comes_at_once_is_not_missed() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut worker = site.idle_worker(|_| {});
    let mut submit = Submit::on(&site, &["true"]);
    // hold the script as soon as its request is out, until the result has been published
    let requests = || site.controller.heard("jobs/pending");
    wait::until("the request", || !requests().is_empty());
    submit.signal(Signal::STOP);
    worker.exits_with(0);
    submit.signal(Signal::CONT);
    submit.exits_with(0);
}

#[test]
fn says_what_it_waits_for() {
    let mut site = Site::start();
    site.open_queue(|_| {});
    let steps = ["touch gate", &while_exists("gate")];
    let mut first = Submit::on(&site, &[&["--id", "first"], &steps[..]].concat());
    first.says("no worker is there; the broker keeps the job until one comes");
    site.kill9_broker();
    first.says("the broker does not answer; waiting until it is back");
    site.restart_broker();
    let log = File::create(drive(&site).join("first/job.log")).unwrap();
    rustix::fs::flock(&log, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut worker = site.worker(|_| {});
    first.says("worker node-worker-01 has the job, and waits for ");
    drop(log);
    let gate = drive(&site).join("first/gate");
    support::site::await_file(&gate);
    // the files of the second one's output are those of the first one
    for file in [&mut first.errors, &mut first.output] {
        fs::rename(&file, file.with_extension("first")).unwrap();
        *file = file.with_extension("first");
    }
    let mut second = Submit::on(&site, &["true"]);
    second.says("in the queue; worker node-worker-01 is busy with job first\n");
    fs::remove_file(&gate).unwrap();
    worker.exits_with(0);
    first.exits_with(0);
    site.worker(|_| {}).exits_with(0);
    second.exits_with(0);
}

#[test]
fn ctrl_c_cancels_the_job_and_a_second_one_leaves_at_once() {
    for presses in [1, 2] {
        let site = Site::start();
        let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", "60")]));
        let deaf = if presses == 2 { "trap '' TERM" } else { "true" };
        let step = format!("{deaf}; touch gate; echo begun; {}", while_exists("gate"));
        let mut submit = Submit::on(&site, &[&step]);
        submit.shows("\nbegun\n");
        submit.ctrl_c();
        submit.says("submit: cancelled; waiting");
        if presses == 2 {
            submit.ctrl_c();
        }
        submit.exits_with(130);
        match presses {
            1 => submit.says("exit code 130: cancelled"),
            _ => submit.says("left without waiting"),
        }
        assert_forgotten(&site);
        let _ = fs::remove_file(job_dir(&site).join("gate"));
        worker.exits_with(0);
    }
}

#[test]
fn ctrl_c_withdraws_a_job_that_is_still_in_the_queue() {
    let site = Site::start();
    site.open_queue(|_| {});
    let mut submit = Submit::on(&site, &["touch ran"]);
    submit.says("submit: job ");
    submit.ctrl_c();
    submit.exits_with(130);
    submit.says("is still in the queue, and will not be run");
    assert_forgotten(&site);
    // nobody waits for it and nobody sends a cancel, and it is not run
    site.worker(|_| {}).exits_with(0);
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
    submit.says("submit: job ");
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

/// Where it does not come back, the drive has the result.
#[test]
fn a_loss_of_the_broker_in_mid_job_does_not_matter() {
    for comes_back in [true, false] {
        let mut site = Site::start();
        let _worker = site.idle_worker(|_| {});
        let steps = ["touch gate; echo begun", &while_exists("gate"), "exit 9"];
        let mut submit = Submit::on(&site, &steps);
        submit.shows("\nbegun\n");
        site.kill9_broker();
        fs::remove_file(job_dir(&site).join("gate")).unwrap();
        if comes_back {
            site.restart_broker();
        }
        submit.exits_with(9);
        submit.shows("ended with exit code 9\n");
    }
}

/// It exits with 75, says why, and leaves neither a directory nor a request.
#[track_caller]
fn fails(site: &Site, command: Command, why: &str) {
    let mut submit = Submit::start(command, site.broker.dir());
    submit.exits_with(75);
    let said = submit.said();
    assert!(said.contains(why), "{said}");
    assert!(said.contains("nothing is published"), "{said}");
    assert_eq!(names(&drive(site)), [""; 0]);
    assert!(site.controller.heard("jobs/pending").is_empty(), "{why}");
}

#[test]
fn where_it_cannot_start_nothing_is_published() {
    let site = Site::start();
    let (drive, port) = (drive(&site), site.broker.port());
    fails(
        &site,
        command(free_port(), &drive, &["true"]),
        "no broker at 127.0.0.1:",
    );
    for (place, why) in [
        ("/proc", "the job's directory /proc/"),
        (
            "/proc/1/nothing",
            "JOBS_DIR=/proc/1/nothing cannot be entered",
        ),
    ] {
        fails(&site, command(port, Path::new(place), &["true"]), why);
    }
    // a limit on the size of files is to a program what a full drive is: a write fails in the middle
    let limited = |input: Option<&Path>, step: &str| {
        let command = command(port, &drive, &[step]);
        let mut limited = Command::new("sh");
        limited
            .args(["-c", "trap '' XFSZ; ulimit -f 8; exec sh \"$@\"", "sh"])
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        input.map(|input| limited.env("INPUT", input));
        limited
    };
    let input = site.directory("input");
    fs::write(input.join("large"), vec![b'x'; 1 << 20]).unwrap();
    fails(
        &site,
        limited(Some(&input), "true"),
        "INPUT cannot be copied",
    );
    let long = format!("echo {}", "x".repeat(100_000));
    fails(&site, limited(None, &long), "job.json cannot be written");
    // MQTT drops in silence what nobody has subscribed to: the job would never be run
    let deserted = Mosquitto::start();
    let command = command(deserted.port(), &drive, &["true"]);
    let mut submit = Submit::start(command, deserted.dir());
    submit.exits_with(75);
    submit.says("no worker has ever been on this broker for jobs/pending");
    assert_eq!(names(&drive), [""; 0]);
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
    let command = command(site.broker.port(), &drive(&site), &["true"]);
    fails(&site, command, "the broker denies what we publish");
    assert_forgotten(&site);
}

#[test]
fn user_password_and_ca_are_passed_on() {
    let (user, password) = ("me and you", "it's secret");
    let ca = Authority::new("A CA");
    let identity = ca.broker("DNS:localhost,IP:127.0.0.1", Valid::Now);
    let port = free_port();
    let mut broker = Mosquitto::prepare()
        .only_user(user, password)
        .config(&format!("listener {port} 127.0.0.1"))
        .config(&format!("certfile {}", identity.certificate.display()))
        .config(&format!("keyfile {}", identity.key.display()));
    broker.restart();
    let mut worker = support::worker::Worker::spawn(&broker, |command| {
        command
            .env("MQTT_USERNAME", user)
            .env("MQTT_PASSWORD", password);
    });
    worker.await_stderr("waiting for a job on jobs/pending");
    let drive = TempDir::new();
    let submit = |port: u16, arguments: &[&str]| {
        let command = command(port, drive.path(), arguments);
        Submit::start(command, broker.dir())
    };
    let mut denied = submit(broker.port(), &["true"]);
    denied.exits_with(75);
    denied.says(" lets us listen for the result; nothing is published");
    let login = ["-u", user, "-P", password];
    submit(port, &[&login[..], &["true"]].concat()).exits_with(75);
    assert_eq!(names(drive.path()), [""; 0]);
    let file = ca.file();
    let secure = ["--cafile", file.to_str().unwrap(), "exit 3"];
    submit(port, &[&login[..], &secure[..]].concat()).exits_with(3);
    worker.exits_with(0);
}

/// With the scripted broker, since Mosquitto always has version 5.
#[test]
fn a_broker_without_mqtt_5_will_do() {
    let answer = Verdict::Answer(Packet::Raw(vec![0x20, 2, 0, 1]));
    for refusal in [Verdict::CutBefore, answer] {
        let broker = Broker::scripted(move |step| match step.packet {
            Packet::Connect { version: 5, .. } => refusal.clone(),
            _ => Verdict::Pass,
        });
        let port = broker.port();
        let site = Site::on(broker);
        let mut worker = site.idle_worker(|_| {});
        let command = command(port, &site.directory("drive"), &["exit 3"]);
        Submit::start(command, site.drive.path()).exits_with(3);
        worker.exits_with(0);
    }
}

#[test]
fn help_says_what_there_is_and_a_usage_error_is_one_line() {
    let dir = TempDir::new();
    let drive = dir.path().join("drive");
    fs::create_dir(&drive).unwrap();
    let submit = |arguments: &[&str]| Submit::start(command(1, &drive, arguments), dir.path());
    let mut help = submit(&["--help"]);
    help.exits_with(0);
    assert_eq!(help.said(), "");
    let shown = help.shown();
    for word in [
        "--json",
        "--timeout",
        "MQTT_TOPIC_ROOT",
        "WORKERS_DIR",
        "Ctrl-C withdraws",
        "75",
    ] {
        assert!(shown.contains(word), "no {word} in:\n{shown}");
    }
    for arguments in [
        &[][..],
        &["--id"],
        &["--id", "a/b", "true"],
        &["--id", "", "true"],
        &["--timeout", "1.2.3", "true"],
        &["--max-attempts", "-1", "true"],
        &["--env", "A", "true"],
        &["--no-such-option", "true"],
    ] {
        let mut submit = submit(arguments);
        submit.exits_with(64);
        let said = submit.said();
        assert!(said.lines().count() == 1, "{said}");
        assert!(said.ends_with("(submit.sh --help)\n"), "{said}");
        assert_eq!(names(&drive), [""; 0]);
    }
}
