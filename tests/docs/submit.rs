//! `examples/submit.sh`, the controller in shell.

use crate::file;
use crate::support::broker::{Broker, Packet, Verdict};
use crate::support::ca::{Authority, Valid};
use crate::support::controller::Controller;
use crate::support::mosquitto::{Mosquitto, free_port, tool};
use crate::support::site::{Hub, Site, names, read, while_exists};
use crate::support::wait;
use crate::support::worker::{Worker, with};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The script with these arguments, in a process group of its own as a terminal would make it.
fn command<B: Hub>(site: &Site<B>, arguments: &[&str]) -> Command {
    command_behind("", site, arguments)
}

/// The same by a shell that has done something before.
fn command_behind<B: Hub>(before: &str, site: &Site<B>, arguments: &[&str]) -> Command {
    tool("mosquitto_sub");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before} exec sh \"$@\""), "sh"]);
    command.arg(file("examples/submit.sh"));
    site.equip(command.args(arguments));
    for variable in ["WORKERS_DIR", "INPUT"] {
        command.env_remove(variable);
    }
    let url = site.broker.url();
    command
        .env("MQTT_HOST", "127.0.0.1")
        .env("MQTT_PORT", url.rsplit_once(':').expect("a port").1)
        .env("JOBS_DIR", drive(site))
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .process_group(0);
    command
}

fn submit<B: Hub>(site: &Site<B>, arguments: &[&str]) -> Worker {
    site.start_as(command(site, arguments))
}

fn drive<B: Hub>(site: &Site<B>) -> PathBuf {
    site.directory("the \"drive\"")
}

fn site() -> Site {
    let site = Site::start();
    site.open_queue(|_| {});
    site
}

fn job_dir(site: &Site) -> PathBuf {
    let drive = drive(site);
    wait::until("the job's directory", || !names(&drive).is_empty());
    drive.join(&names(&drive)[0])
}

/// Locks the log of a job, so that it does not begin.
fn lock_log(dir: &Path) -> File {
    let log = File::create(dir.join("job.log")).unwrap();
    log.lock().unwrap();
    log
}

/// The last connection under the client id of the listener has asked for a clean session.
fn assert_forgotten(site: &Site) {
    let log = site.broker.log();
    let is_listener =
        |line: &&str| line.contains("New client connected") && line.contains(" as submit_");
    let last = log.lines().rfind(is_listener).expect("it has listened");
    assert!(last.contains("c1,"), "a session is left: {last}");
}

/// The end of the line that a mistake in the arguments is told in.
const USAGE: &str = "(submit.sh --help)\n";

/// What a job says and ends with is what the script says and ends with: arguments, exit status, a part of stdout, a part of
/// stderr.
#[test]
fn it_ends_as_its_job_does_or_says_where_help_is() {
    let site = site();
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
        (&[], 64, "", USAGE),
        (&["--id"], 64, "", USAGE),
        (&["--id", "a/b", "true"], 64, "", USAGE),
        (&["--id", "", "true"], 64, "", USAGE),
        (&["--timeout", "1.2.3", "true"], 64, "", USAGE),
        (&["--max-attempts", "-1", "true"], 64, "", USAGE),
        (&["--env", "A", "true"], 64, "", USAGE),
        (&["--no-such-option", "true"], 64, "", USAGE),
        // the worker rejects what the script does not know to be wrong: nothing was run
        (&["--env", "=A=b", "true"], 64, "", "--env takes NAME=VALUE"),
        (&["--timeout", "0", "true"], 75, "", "nothing was run"),
    ];
    for (arguments, code, shown, said) in cases {
        let before = names(&drive(&site));
        let mut worker = site.worker(|_| {});
        let mut submit = submit(&site, arguments);
        submit.exits_with(*code);
        let (out, err) = (submit.stdout(), submit.stderr());
        let is_right = out.contains(shown) && err.contains(said);
        assert!(is_right, "{arguments:?}: {out}{err}");
        if *said == USAGE {
            assert_eq!((err.lines().count(), names(&drive(&site))), (1, before));
        }
        if matches!(code, 64 | 75) {
            worker.sigterm(); // it has run nothing, and waits
        }
        worker.exits_with(0);
        if arguments.contains(&"--json") {
            let result: Value = serde_json::from_str(&out).expect("the result alone");
            assert_eq!(result["exitCode"], 0);
        }
    }
    assert_forgotten(&site);
    let mut help = submit(&site, &["--help"]);
    help.exits_with(0);
    let shown = help.stdout();
    for word in ["--json", "MQTT_TOPIC_ROOT", "WORKERS_DIR", "Ctrl-C", "75"] {
        assert!(shown.contains(word), "no {word} in:\n{shown}");
    }
}

#[test]
fn input_is_copied_first() {
    let site = site();
    let input = site.directory("input");
    fs::write(input.join("job.cancel"), "of another job").unwrap();
    fs::write(input.join(".who"), "world").unwrap();
    fs::create_dir(input.join("sub")).unwrap();
    fs::write(input.join("sub/file"), "!").unwrap();
    let from = |input_is: &str, drive_is: &str, step: &str| {
        fs::create_dir_all(input.join(drive_is)).unwrap();
        let mut command = command(&site, &[step]);
        command.current_dir(&input);
        command.env("INPUT", input_is).env("JOBS_DIR", drive_is);
        site.start_as(command)
    };
    // INPUT and JOBS_DIR, from the directory `input`; the last ones where the drive lies in the input
    for (input_is, drive_is) in [
        (".", "../the drive"),
        ("../input", "."),
        (".", "."),
        (".", "./drive"),
    ] {
        let mut worker = site.worker(|_| {});
        let step = "echo \"hello $(cat .who sub/file)\"; ls -a";
        let mut submit = from(input_is, drive_is, step);
        submit.exits_with(0);
        worker.exits_with(0);
        let shown = submit.stdout();
        let first = shown.contains("\nhello world!\n.\n..\n.who\njob.json\njob.log\n");
        let last = shown.contains("\njob.status.json\nsub\n");
        assert!(first && last, "{shown}");
    }
    let mut submit = from(".", "sub/drive", "true");
    submit.exits_with(75);
    submit.await_stderr("nothing is published");
}

/// As with compose.yaml, where the workers have under /data what the host has elsewhere.
#[test]
fn the_workers_may_have_the_drive_under_another_path() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let theirs = site.drive.path().join("theirs");
    std::os::unix::fs::symlink(drive(&site), &theirs).unwrap();
    let mut command = command(&site, &["pwd -L"]);
    command.env("WORKERS_DIR", &theirs);
    site.start_as(command).exits_with(0);
    worker.exits_with(0);
    let request = site.controller.heard("jobs/pending").remove(0).json();
    let name = &names(&drive(&site))[0];
    assert_eq!(request["workDir"], json!(theirs.join(name)));
}

#[test]
fn what_is_no_result_is_passed_over() {
    let site = site();
    let mut submit = submit(&site, &["--id", "a", "exit 3"]);
    submit.await_stderr("submit: job a");
    for payload in [
        "no JSON",
        "{\"status\":\"success\",\"exitCode\":\"x\"}",
        "{\"status\":\"failed\",\"exitCode\":300}",
    ] {
        site.controller.publish("jobs/results/a", payload);
        submit.await_stderr(&format!("is none, and is passed over: {payload}"));
    }
    site.worker(|_| {}).exits_with(0);
    submit.exits_with(3);
}

#[test]
fn a_result_that_comes_at_once_is_not_missed() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let mut submit = submit(&site, &["true"]);
    // hold the script as soon as its request is out, until the result has been published
    site.controller.next("jobs/pending");
    submit.signal_group(Signal::STOP);
    worker.exits_with(0);
    submit.signal_group(Signal::CONT);
    submit.exits_with(0);
}

/// Two seconds after its start, and every five seconds then.
#[test]
fn says_what_it_waits_for_and_ctrl_c_ends_that() {
    let mut site = site();
    let mut first = submit(&site, &["--id", "first", "touch ran"]);
    first.await_stderr("no worker is there; the broker keeps the job until one comes");
    let second = submit(&site, &["true"]);
    second.await_stderr("submit: job ");
    site.kill9_broker();
    second.await_stderr("the broker does not answer; waiting until it is back");
    site.restart_broker();
    let _log = lock_log(&drive(&site).join("first"));
    let mut worker = site.worker(|_| {});
    site.await_state(&mut worker, 0, "busy");
    let third = submit(&site, &["true"]);
    third.await_stderr("in the queue; worker node-worker-01 is busy with job first\n");
    first.await_stderr("worker node-worker-01 has the job, and waits for ");
    // Ctrl-C ends a job that is not run yet
    first.signal_group(Signal::INT);
    first.exits_with(130);
    worker.exits_with(0);
    assert!(!drive(&site).join("first/ran").exists());
}

#[test]
fn ctrl_c_cancels_the_job_and_a_second_one_leaves_at_once() {
    for (deaf, end) in [
        ("true", "exit code 130: cancelled"),
        ("trap '' TERM", "left without waiting"),
    ] {
        let site = Site::start();
        let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", "60")]));
        let step = format!("{deaf}; touch gate; echo begun; {}", while_exists("gate"));
        let mut submit = submit(&site, &[&step]);
        submit.await_stdout("\nbegun\n");
        submit.signal_group(Signal::INT);
        submit.await_stderr("submit: cancelled; waiting");
        if deaf != "true" {
            submit.signal_group(Signal::INT);
        }
        submit.exits_with(130);
        submit.await_stderr(end);
        assert_forgotten(&site);
        let _ = fs::remove_file(job_dir(&site).join("gate"));
        worker.exits_with(0);
    }
}

#[test]
fn ctrl_c_withdraws_a_job_that_is_still_in_the_queue() {
    let site = site();
    let mut submit = submit(&site, &["touch ran"]);
    submit.await_stderr("submit: job ");
    submit.signal_group(Signal::INT);
    submit.exits_with(130);
    submit.await_stderr("is still in the queue, and will not be run");
    assert_forgotten(&site);
    // nobody waits for it and nobody sends a cancel, and it is not run
    site.worker(|_| {}).exits_with(0);
    let dir = job_dir(&site);
    assert_eq!(names(&dir), ["job.cancel", "job.json", "job.status.json"]);
    assert!(read(&dir.join("job.status.json")).contains("\"reason\":\"cancelled\""));
}

/// Where it does not come back, the drive has the result.
#[test]
fn follows_the_log_while_the_job_runs_and_a_loss_of_the_broker_does_not_matter() {
    for comes_back in [true, false] {
        let mut site = Site::start();
        let _worker = site.idle_worker(|_| {});
        let steps = ["touch gate; echo begun", &while_exists("gate"), "exit 9"];
        let mut submit = submit(&site, &steps);
        submit.await_stdout("\nbegun\n");
        site.kill9_broker();
        fs::remove_file(job_dir(&site).join("gate")).unwrap();
        if comes_back {
            site.restart_broker();
        }
        submit.exits_with(9);
        submit.await_stdout("ended with exit code 9\n");
        let log = read(&job_dir(&site).join("job.log"));
        assert_eq!(submit.stdout(), log, "all of the log, once");
    }
}

/// It exits with 75, says why, and leaves neither a directory nor a request.
#[track_caller]
fn fails(site: &Site, command: Command, why: &str) {
    let mut submit = site.start_as(command);
    submit.exits_with(75);
    let said = submit.stderr();
    let is_right = said.contains(why) && said.contains("nothing is published");
    assert!(is_right, "{why}: {said}");
    assert_eq!(names(&drive(site)), [""; 0]);
    assert!(site.controller.heard("jobs/pending").is_empty(), "{why}");
}

#[test]
fn where_it_cannot_start_nothing_is_published() {
    let site = Site::start();
    let mut nobody = command(&site, &["true"]);
    nobody.env("MQTT_PORT", free_port().to_string());
    fails(&site, nobody, "no broker at 127.0.0.1:");
    for (place, why) in [
        ("/proc", "the job's directory /proc/"),
        (
            "/proc/1/nothing",
            "JOBS_DIR=/proc/1/nothing cannot be entered",
        ),
    ] {
        let mut command = command(&site, &["true"]);
        command.env("JOBS_DIR", place);
        fails(&site, command, why);
    }
    // a limit on the size of files is to a program what a full drive is: a write fails in the middle
    let limit = "trap '' XFSZ; ulimit -f 8;";
    let input = site.directory("input");
    fs::write(input.join("large"), vec![b'x'; 1 << 20]).unwrap();
    let mut limited = command_behind(limit, &site, &["true"]);
    limited.env("INPUT", &input);
    fails(&site, limited, "INPUT cannot be copied");
    let long = format!("echo {}", "x".repeat(100_000));
    let limited = command_behind(limit, &site, &[&long]);
    fails(&site, limited, "job.json cannot be written");
    // MQTT drops in silence what nobody has subscribed to: the job would never be run
    let deserted = Mosquitto::start();
    let mut command = command(&site, &["true"]);
    command.env("MQTT_PORT", deserted.port().to_string());
    let unknown = "no worker has ever been on this broker for jobs/pending";
    fails(&site, command, unknown);
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
    let command = command(&site, &["true"]);
    fails(&site, command, "the broker denies what we publish");
    assert_forgotten(&site);
}

#[test]
fn user_password_and_ca_are_passed_on() {
    let (user, password) = ("me and you", "it's secret");
    let ca = Authority::new("ours");
    let identity = ca.broker("DNS:localhost,IP:127.0.0.1", Valid::Now);
    let port = free_port();
    let mut broker = Mosquitto::prepare()
        .only_user(user, password)
        .config(&format!("listener {port} 127.0.0.1"))
        .config(&format!("certfile {}", identity.certificate.display()))
        .config(&format!("keyfile {}", identity.key.display()));
    broker.restart();
    let controller = Controller::connect_as(&broker, "controller", Some((user, password)));
    let site = Site::with(broker, controller);
    let variables = [("MQTT_USERNAME", user), ("MQTT_PASSWORD", password)];
    let mut worker = site.idle_worker(with(&variables));
    let at = |port: u16, arguments: &[&str]| {
        let mut command = command(&site, arguments);
        command.env("MQTT_PORT", port.to_string());
        site.start_as(command)
    };
    let mut denied = at(site.broker.port(), &["true"]);
    denied.exits_with(75);
    denied.await_stderr(" lets us listen for the result; nothing is published");
    let login = ["-u", user, "-P", password];
    at(port, &[&login[..], &["true"]].concat()).exits_with(75);
    assert_eq!(names(&drive(&site)), [""; 0]);
    let authority = ca.file();
    let secure = ["--cafile", authority.to_str().unwrap(), "exit 3"];
    at(port, &[&login[..], &secure[..]].concat()).exits_with(3);
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
        let site = Site::on(broker);
        let mut worker = site.idle_worker(|_| {});
        submit(&site, &["exit 3"]).exits_with(3);
        worker.exits_with(0);
    }
}
