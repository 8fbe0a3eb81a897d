//! `JOB_ROOT` as a fence, and `JOB_PAYLOAD_STEPS=deny` (docs/reference.md, "JOB_ROOT" and "Configuration").

use crate::support;

use std::fs::{self, File};
use std::io::{self, BufRead};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use job_worker::config::Durability;
use job_worker::job::{OpenError, WorkDir};
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use serde_json::{Value, json};
use support::site::{Site, names, read};
use support::temp_dir::TempDir;
use support::wait::DEADLINE;
use support::worker::with;

/// A drive with a root, a directory `job` inside, and a directory `outside` beside it.
struct Drive(TempDir);

impl Drive {
    fn new() -> Self {
        let drive = Self(TempDir::new());
        for name in [
            "root/job",
            "root/jobs/one",
            "root-but-longer",
            "outside/job",
        ] {
            fs::create_dir_all(drive.path(name)).unwrap();
        }
        drive
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn link(&self, target: &str, name: &str) -> PathBuf {
        let path = self.path(name);
        symlink(target, &path).unwrap();
        path
    }

    fn open(&self, path: impl Into<PathBuf>) -> Result<WorkDir, String> {
        WorkDir::open(path.into(), Some(&self.path("root"))).map_err(|error| match error {
            OpenError::Missing { what, why, .. } => format!("missing: {what} {why}"),
            OpenError::Unusable(what) => what,
        })
    }

    fn refuses(&self, path: impl Into<PathBuf>) {
        let path = path.into();
        let error = self.open(&path).expect_err(&path.display().to_string());
        assert!(
            error.contains("lies outside of JOB_ROOT"),
            "{}: {error}",
            path.display()
        );
    }
}

#[test]
fn a_work_dir_must_lie_inside_after_all_symlinks() {
    let drive = Drive::new();
    drive.link("../outside/job", "root/out");
    drive.link("../outside", "root/beside");
    drive.link("/", "root/slash");
    drive.link("out", "root/chain");
    drive.link("jobs/one", "root/alias");
    drive.link("root/job", "way-in");
    drive.link("../jobs", "root/jobs/back");
    let inside = drive.path("root/job");
    drive.link(inside.to_str().unwrap(), "root/absolute");
    for outside in [
        "outside/job",
        "root-but-longer",
        "root/..",
        "root/job/../../outside/job",
        "root/out",
        "root/chain",
        "root/beside/job",
        "root/beside/job/../job",
        "root/slash/etc",
        "root/alias/../../..",
        "way-in",
    ] {
        drive.refuses(drive.path(outside));
    }
    drive.refuses("/");
    drive.refuses("/proc/self/cwd");
    for inside in [
        "root/job",
        "root/job/../jobs/one",
        "root/alias",
        "root/alias/../one",
        "root/jobs/back/one",
        "root/absolute",
        "root/./job//",
    ] {
        drive.open(drive.path(inside)).expect(inside);
    }
}

#[test]
fn the_root_itself_may_be_a_symlink() {
    let drive = Drive::new();
    let root = drive.link("root", "name-of-the-root");
    let open = |path: &str| WorkDir::open(drive.path(path), Some(&root));
    assert!(open("name-of-the-root/job").is_ok() && open("root/job").is_ok());
    assert!(open("name-of-the-root/../outside/job").is_err());
}

#[test]
fn what_exists_outside_is_not_told() {
    let drive = Drive::new();
    fs::write(drive.path("outside/file"), "").unwrap();
    drive.link("../outside", "root/beside");
    for outside in [
        "outside/file",
        "outside/nothing",
        "outside/nothing/at/all",
        "root/beside/file",
        "root/beside/nothing",
    ] {
        drive.refuses(drive.path(outside));
    }
    // a path that leads in says nothing of the places that it only names
    let up = "/..".repeat(20);
    for place in ["/etc", "/no/such/place", "/proc/1", "/proc/0"] {
        let inside = format!("{place}{up}{}", drive.path("root/job").display());
        drive.open(inside).expect(place);
    }
    drive.link("loop", "root/loop");
    for endless in ["root/loop", &"root/".repeat(2000)] {
        drive.open(drive.path(endless)).expect_err(endless);
    }
    let missing = drive
        .open(drive.path("root/not/yet"))
        .expect_err("nothing is there");
    assert!(
        missing.starts_with("missing: "),
        "inside, it may still come: {missing}"
    );
}

/// Opens `root/way` 10,000 times while `swap` makes it lead inside and outside by turns; only what lies inside is used.
fn race(drive: &Drive, swap: impl Fn() + Sync) {
    for (dir, content) in [("root/job", "inside"), ("outside/job", "outside")] {
        fs::write(drive.path(dir).join("marker"), content).unwrap();
    }
    let (way, over) = (drive.path("root/way"), AtomicBool::new(false));
    let (mut opened, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // not for ever, should the other thread panic
            let end = Instant::now() + DEADLINE;
            while !over.load(Ordering::Relaxed) && Instant::now() < end {
                swap();
            }
        });
        while opened + refused < 10_000 || opened == 0 || refused == 0 {
            match drive.open(&way) {
                Ok(dir) => {
                    opened += 1;
                    let content = dir.read("marker", 100).expect("a file").expect("a file");
                    assert_eq!(String::from_utf8_lossy(&content), "inside");
                    dir.replace("written", b"", Durability::Cache).unwrap();
                    dir.open_file("log", OFlags::RDWR | OFlags::CREATE).unwrap();
                }
                Err(_) => refused += 1,
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(names(&drive.path("outside/job")), ["marker"]);
}

#[test]
fn a_symlink_swapped_between_check_and_use_leads_nowhere() {
    let drive = Drive::new();
    let (way, next) = (drive.path("root/way"), drive.path("root/next"));
    symlink("job", &way).unwrap();
    race(&drive, || {
        for target in ["job", "../outside/job"] {
            symlink(target, &next)
                .and_then(|()| fs::rename(&next, &way))
                .unwrap();
        }
    });
}

#[test]
fn a_directory_swapped_with_a_symlink_leads_nowhere() {
    let drive = Drive::new();
    drive.link("../outside/job", "root/link");
    race_with_directory(&drive);
}

/// [`race`] between a directory inside and the symlink `root/link`.
fn race_with_directory(drive: &Drive) {
    let (way, link) = (drive.path("root/way"), drive.path("root/link"));
    fs::create_dir(&way).unwrap();
    fs::write(way.join("marker"), "inside").unwrap();
    race(drive, || {
        renameat_with(CWD, &way, CWD, &link, RenameFlags::EXCHANGE).expect("both are there");
    });
}

/// Somebody without privileges of their own, who has made a mount namespace in which the root of `drive` is theirs, with
/// a directory `job` in it. Ends with its stdin.
fn other_namespace(drive: &Drive) -> Child {
    let root = drive.path("root");
    let script = format!(
        "mount -t tmpfs none '{0}' && mkdir '{0}/job' && cd '{0}/job' && echo outside > marker && echo ready && exec cat",
        root.display()
    );
    let mut child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare is installed");
    let mut ready = String::new();
    let output = child.stdout.as_mut().expect("it is piped");
    io::BufReader::new(output)
        .read_line(&mut ready)
        .expect("a pipe can be read");
    assert_eq!(ready, "ready\n", "no mount namespace can be made here");
    child
}

#[test]
#[ignore = "needs a mount namespace"]
fn a_directory_of_another_mount_namespace_lies_outside() {
    let drive = Drive::new();
    let mut other = other_namespace(&drive);
    let theirs = format!("/proc/{}", other.id());
    let root = format!("{theirs}/root{}", drive.path("root").display());
    let marker = fs::read_to_string(format!("{root}/job/marker"));
    assert_eq!(marker.expect("we may look"), "outside\n");
    drive.link(&format!("{root}/job"), "root/job-of-theirs");
    drive.link(&format!("{root}/nothing"), "root/nothing-of-theirs");
    for outside in [
        format!("{root}/job"),
        format!("{theirs}/cwd"),
        format!("{theirs}/cwd/../job"),
        format!("{root}/nothing"),
    ] {
        drive.refuses(outside);
    }
    drive.refuses(drive.path("root/job-of-theirs"));
    drive.link(&format!("{root}/job"), "root/link");
    race_with_directory(&drive);
    let theirs = fs::read_dir(format!("{root}/job")).expect("we may look");
    assert_eq!(theirs.count(), 1, "nothing was written there");
    drop(other.stdin.take());
    other.wait().expect("it is our child");
}

#[test]
fn an_open_file_of_a_process_leads_nowhere() {
    let drive = Drive::new();
    let held = |name: &str| File::open(drive.path(name)).expect("the directory is there");
    let link = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let outside = held("outside/job");
    drive.refuses(link(&outside));
    drive.link(&link(&outside), "root/open");
    drive.refuses(drive.path("root/open"));
    // it was inside once: its path still reads so
    fs::create_dir(drive.path("root/gone")).unwrap();
    let gone = held("root/gone");
    fs::remove_dir(drive.path("root/gone")).unwrap();
    drive.refuses(link(&gone));
    fs::create_dir(drive.path("root/gone (deleted)")).unwrap();
    drive.refuses(link(&gone));
}

#[test]
fn no_file_of_the_worker_is_reached_through_a_symlink() {
    let drive = Drive::new();
    let secret = drive.path("outside/secret");
    fs::write(&secret, "secret").unwrap();
    let dir = drive
        .open(drive.path("root/job"))
        .expect("a good directory");
    for (name, target) in [
        ("there", secret.clone()),
        ("dangling", drive.path("outside/new")),
    ] {
        symlink(&target, drive.path("root/job").join(name)).unwrap();
        for flags in [
            OFlags::RDONLY,
            OFlags::RDWR | OFlags::CREATE | OFlags::APPEND,
        ] {
            let error = dir.open_file(name, flags).expect_err(name);
            assert!(
                error
                    .to_string()
                    .contains("a symlink, which JOB_ROOT forbids"),
                "{name}: {error}"
            );
        }
        // a link is replaced, not followed, also where a killed worker seems to have left it
        symlink(&target, drive.path("root/job").join(format!(".{name}.tmp"))).unwrap();
        dir.replace(name, b"ours", Durability::Cache).unwrap();
        assert_eq!(read(&drive.path("root/job").join(name)), "ours");
    }
    assert_eq!(read(&secret), "secret");
    assert!(!drive.path("outside/new").exists());
}

#[test]
fn nothing_but_a_regular_file_is_opened() {
    let drive = Drive::new();
    let folder = drive.path("root/job");
    let mut made = vec!["directory"];
    fs::create_dir(folder.join("directory")).unwrap();
    for (name, program, arguments) in [
        ("fifo", "mkfifo", &[][..]),
        ("device", "mknod", &["c", "1", "3"]),
        ("disk", "mknod", &["b", "7", "200"]),
    ] {
        let done = Command::new(program)
            .arg(folder.join(name))
            .args(arguments)
            .stderr(Stdio::null())
            .status();
        // making a device is root's
        if done.is_ok_and(|status| status.success()) {
            made.push(name);
        }
    }
    assert!(made.contains(&"fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
    made.push("socket");
    for fence in [None, Some(drive.path("root"))] {
        let dir = WorkDir::open(folder.clone(), fence.as_deref()).expect("a good directory");
        for name in &made {
            for flags in [
                OFlags::RDONLY,
                OFlags::RDWR | OFlags::CREATE | OFlags::APPEND,
            ] {
                let opened: io::Result<_> = dir.open_file(name, flags);
                assert!(opened.is_err(), "{name} was opened");
            }
        }
    }
}

/// The job of `dir` on a worker that is fenced in.
fn run_fenced(site: &Site, dir: &str, id: &str) -> support::site::Finished {
    let root = site.directory("root");
    let worker =
        site.idle_worker(|command| _ = command.env("JOB_ROOT", root).env("JOB_DIR_WAIT", "0"));
    let path = site.directory(&format!("root/{dir}"));
    site.request(json!({ "id": id, "workDir": dir }));
    let result = site.result(id);
    // a rejection leaves the worker waiting
    worker.sigterm();
    let mut finished = support::site::Finished {
        dir: path.clone(),
        result: result.json(),
        published: result,
        log: fs::read_to_string(path.join("job.log")).unwrap_or_default(),
        worker,
    };
    finished.worker.exits_with(0);
    finished
}

fn assert_failed(result: &Value, said: &str) {
    assert_eq!(result["status"], "failed", "{result}");
    assert!(
        result["error"]
            .as_str()
            .is_some_and(|error| error.contains(said)),
        "{said:?}: {result}"
    );
}

fn outside_file(site: &Site, content: &str) -> PathBuf {
    let path = site.directory("outside").join("file");
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn a_definition_outside_of_the_fence_is_not_run() {
    let site = Site::start();
    let file = outside_file(&site, r#"{"steps": ["touch ran"]}"#);
    let dir = site.directory("root/job");
    symlink(&file, dir.join("job.json")).unwrap();
    let job = run_fenced(&site, "job", "a");
    assert_failed(&job.result, "a symlink, which JOB_ROOT forbids");
    assert_eq!(job.result["reason"], "rejected");
    assert_eq!(
        names(&dir),
        ["job.json"],
        "a rejected request leaves nothing in the workDir"
    );
}

#[test]
fn a_log_outside_of_the_fence_is_not_written() {
    let site = Site::start();
    let file = outside_file(&site, "precious");
    for (id, target) in [
        ("there", file.clone()),
        ("dangling", site.directory("outside").join("new")),
    ] {
        let dir = site.prepare(&format!("root/{id}"), json!({ "steps": ["touch ran"] }));
        symlink(target, dir.join("job.log")).unwrap();
        let job = run_fenced(&site, id, id);
        assert_failed(&job.result, "a symlink, which JOB_ROOT forbids");
        assert!(!dir.join("ran").exists());
    }
    assert_eq!(read(&file), "precious");
    assert_eq!(names(&site.directory("outside")), ["file"]);
}

#[test]
fn a_status_file_outside_of_the_fence_is_neither_believed_nor_written() {
    let site = Site::start();
    let stored = r#"{"id":"a","status":"success","logFile":"/forged","exitCode":0,"worker":"node-worker-01"}"#;
    let file = outside_file(&site, stored);
    let dir = site.prepare("root/a", json!({ "steps": ["echo it runs"] }));
    symlink(&file, dir.join("job.status.json")).unwrap();
    let job = run_fenced(&site, "a", "a");
    assert_eq!(job.result["status"], "success", "{}", job.result);
    assert!(job.log.contains("it runs"), "{}", job.log);
    assert_eq!(read(&file), stored);
    assert!(!dir.join("job.status.json").is_symlink());
}

#[test]
fn a_job_that_swaps_its_own_work_dir_gets_no_further() {
    let site = Site::start();
    let outside = site.prepare("outside", json!({ "steps": ["touch ran"] }));
    let swap = format!("cd .. && mv a moved && ln -s {} a", outside.display());
    let dir = site.prepare("root/a", json!({ "steps": [swap, "touch ran"] }));
    let job = run_fenced(&site, "a", "a");
    assert_failed(&job.result, "has vanished");
    assert_eq!(names(&outside), ["job.json"]);
    let moved = dir.with_file_name("moved");
    assert_eq!(names(&moved), ["job.json", "job.log", "job.status.json"]);
    assert!(
        read(&moved.join("job.status.json")).contains("has vanished"),
        "the journal is with the job"
    );
}

#[test]
fn a_relative_root_is_one_of_the_workers_current_directory() {
    let site = Site::start();
    let dir = site.prepare("root/a", json!({ "steps": ["true"] }));
    site.prepare("b", json!({ "steps": ["touch ran"] }));
    let worker = site.idle_worker(|command| {
        command
            .current_dir(site.drive.path())
            .env("JOB_ROOT", "./root");
    });
    site.request(json!({ "id": "b", "workDir": "../b" }));
    assert_failed(&site.result("b").json(), "lies outside of JOB_ROOT");
    let good = site.run_request(worker, dir.clone(), json!({ "id": "a", "workDir": "a" }));
    assert_eq!(good.result["status"], "success");
    assert_eq!(good.result["logFile"], json!(dir.join("job.log")));
}

#[test]
fn denied_payload_steps_leave_everything_that_runs_to_job_json() {
    let site = Site::start();
    let dir = site.prepare(
        "a",
        json!({ "steps": ["echo from the file: $WHO"], "env": { "WHO": "nobody" } }),
    );
    let worker = site.idle_worker(with(&[("JOB_PAYLOAD_STEPS", "deny")]));
    for (what, value) in [
        ("steps", json!(["touch ran"])),
        ("steps", json!([])),
        ("env", json!({ "PATH": "/attack" })),
        ("env", json!({ "LD_PRELOAD": "" })),
    ] {
        site.request(json!({ "id": "a", "workDir": dir, what: value }));
        let result = site.result("a").json();
        assert_failed(&result, "JOB_PAYLOAD_STEPS=deny");
        assert_eq!(result["reason"], "rejected", "{result}");
        assert_eq!(names(&dir), ["job.json"]);
    }
    let request = json!({ "id": "a", "workDir": dir, "steps": null, "env": {}, "timeoutSeconds": 9, "maxAttempts": 1 });
    let good = site.run_request(worker, dir, request);
    assert_eq!(good.result["status"], "success");
    assert_eq!(good.output(), "from the file: nobody\n");
}
