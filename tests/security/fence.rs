//! `JOB_ROOT` as a fence, and `JOB_PAYLOAD_STEPS=deny` (docs/reference.md, "JOB_ROOT" and "Configuration").

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::support::site::{Site, WORKER, names, read, shell, verdict};
use crate::support::temp_dir::TempDir;
use crate::support::wait::{self, DEADLINE};
use crate::support::worker::with;
use job_worker::config::Durability;
use job_worker::job::{OpenError, WorkDir};
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use serde_json::{Value, json};

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
        WorkDir::open(path.into(), Some(&self.path("root")), Durability::Cache).map_err(|error| {
            match error {
                OpenError::Missing { what, why, .. } => format!("missing: {what} {why}"),
                OpenError::Unusable(what) => what,
            }
        })
    }

    #[track_caller]
    fn refuses(&self, path: impl Into<PathBuf>) {
        let path = path.into();
        let error = self.open(&path).expect_err(&path.display().to_string());
        let is_told = error.contains("lies outside of JOB_ROOT");
        assert!(is_told, "{}: {error}", path.display());
    }
}

/// Of what lies outside it is not even told whether it exists.
#[test]
fn a_work_dir_must_lie_inside_after_all_symlinks() {
    let drive = Drive::new();
    fs::write(drive.path("outside/file"), "").unwrap();
    drive.link("../outside/job", "root/out");
    drive.link("../outside", "root/beside");
    drive.link("/", "root/slash");
    drive.link("out", "root/chain");
    drive.link("jobs/one", "root/alias");
    drive.link("root/job", "way-in");
    drive.link("../jobs", "root/jobs/back");
    let job = drive.path("root/job");
    drive.link(job.to_str().unwrap(), "root/absolute");
    let outside = "outside/job outside/file outside/nothing outside/nothing/at/all root-but-longer \
                   root/.. root/job/../../outside/job root/out root/chain root/beside/job \
                   root/beside/job/../job root/beside/file root/beside/nothing root/slash/etc \
                   root/alias/../../.. way-in";
    for outside in outside.split(' ') {
        drive.refuses(drive.path(outside));
    }
    drive.refuses("/");
    drive.refuses("/proc/self/cwd");
    let inside = "root/job root/job/../jobs/one root/alias root/alias/../one root/jobs/back/one \
                  root/absolute root/./job//";
    for inside in inside.split(' ') {
        drive.open(drive.path(inside)).expect(inside);
    }
    // a path that leads in says nothing of the places that it only names
    let up = "/..".repeat(20);
    for place in ["/etc", "/no/such/place", "/proc/1", "/proc/0"] {
        let inside = format!("{place}{up}{}", job.display());
        drive.open(inside).expect(place);
    }
    drive.link("loop", "root/loop");
    for endless in ["root/loop", &"root/".repeat(2000)] {
        drive.open(drive.path(endless)).expect_err(endless);
    }
    // inside, it may still come
    let missing = drive.open(drive.path("root/not/yet"));
    let missing = missing.expect_err("nothing is there");
    assert!(missing.starts_with("missing: "), "{missing}");
}

#[test]
fn the_root_itself_may_be_a_symlink() {
    let drive = Drive::new();
    let root = drive.link("root", "name-of-the-root");
    let open = |path: &str| WorkDir::open(drive.path(path), Some(&root), Durability::Cache);
    assert!(open("name-of-the-root/job").is_ok() && open("root/job").is_ok());
    assert!(open("name-of-the-root/../outside/job").is_err());
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
                    dir.replace("written", b"").unwrap();
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
fn what_is_swapped_between_check_and_use_leads_nowhere() {
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
    let root = drive.path("root").display().to_string();
    let script = format!(
        "mount -t tmpfs none '{root}' && mkdir '{root}/job' && cd '{root}/job' && echo outside > marker && exec cat"
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    let mut child = unshare.stdin(Stdio::piped()).spawn().expect("unshare");
    let marker = format!("/proc/{}/cwd/marker", child.id());
    wait::until("their directory", || {
        let ended = child.try_wait().unwrap();
        assert_eq!(ended, None, "no mount namespace can be made here");
        fs::read_to_string(&marker).is_ok_and(|content| content == "outside\n")
    });
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

const WAYS: [OFlags; 2] = [
    OFlags::RDONLY,
    OFlags::RDWR.union(OFlags::CREATE).union(OFlags::APPEND),
];

#[test]
fn no_file_of_the_worker_is_reached_through_a_symlink() {
    let drive = Drive::new();
    let (secret, new) = (drive.path("outside/secret"), drive.path("outside/new"));
    fs::write(&secret, "secret").unwrap();
    let job = drive.path("root/job");
    let dir = drive.open(&job).expect("a good directory");
    for (name, target) in [("there", &secret), ("dangling", &new)] {
        symlink(target, job.join(name)).unwrap();
        for flags in WAYS {
            let error = dir.open_file(name, flags).expect_err(name).to_string();
            let is_told = error.contains("a symlink, which JOB_ROOT forbids");
            assert!(is_told, "{name}: {error}");
        }
        // a link is replaced, not followed, also where a killed worker seems to have left it
        symlink(target, job.join(format!(".{name}.tmp"))).unwrap();
        dir.replace(name, b"ours").unwrap();
        assert_eq!(read(&job.join(name)), "ours");
    }
    assert_eq!(read(&secret), "secret");
    assert!(!new.exists());
}

#[test]
fn nothing_but_a_regular_file_is_opened() {
    let drive = Drive::new();
    let folder = drive.path("root/job");
    // making a device is root's
    shell(
        &folder,
        "mkdir directory; mkfifo fifo; mknod device c 1 3 && mknod disk b 7 200 || true",
    );
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
    let made = names(&folder);
    assert!(made.len() >= 3, "{made:?}");
    for fence in [None, Some(drive.path("root"))] {
        let dir = WorkDir::open(folder.clone(), fence.as_deref(), Durability::Cache)
            .expect("a good directory");
        for name in &made {
            for flags in WAYS {
                assert!(dir.open_file(name, flags).is_err(), "{name} was opened");
            }
        }
    }
}

fn assert_rejected(result: &Value, said: &str) {
    assert_eq!(verdict(result), ("failed", "rejected", 1), "{result}");
    let error = result["error"].as_str().unwrap_or_default();
    assert!(error.contains(said), "{said:?}: {result}");
}

#[test]
fn nothing_of_a_job_outside_of_the_fence_is_believed_or_written() {
    let (site, outside) = (Site::start(), TempDir::new());
    let stored = r#"{"id":"job-2","status":"success","logFile":"/forged","exitCode":0,"worker":"node-worker-01"}"#;
    let file = outside.path().join("file");
    fs::write(&file, stored).unwrap();
    for (dir, target, name) in [
        ("job-0", "file", "job.log"),
        ("job-1", "dangling", "job.log"),
        ("job-2", "file", "job.status.json"),
    ] {
        let link = site.directory(dir).join(name);
        symlink(outside.path().join(target), link).unwrap();
    }
    let swap = format!(
        "cd .. && mv job-3 moved && ln -s {} job-3",
        outside.path().display()
    );
    let env = json!({ "JOB_ROOT": site.drive.path() });
    let (ends, error) = (
        json!(["failed", "internal", 1]),
        "a symlink, which JOB_ROOT forbids",
    );
    let jobs = site.jobs(&json!([
        { "job": { "steps": ["touch ran"] }, "env": env, "ends": ends, "error": error },
        { "job": { "steps": ["touch ran"] }, "env": env, "ends": ends, "error": error },
        { "job": { "steps": ["echo it runs"] }, "env": env, "ends": ["success", "", 0], "output": "it runs\n" },
        // one that swaps its own workDir gets no further
        { "job": { "steps": [swap, "touch ran"] }, "env": env, "ends": ends, "error": "has vanished" },
    ]));
    for job in &jobs[..2] {
        assert_eq!(names(&job.dir), ["job.json", "job.log"], "nothing has run");
    }
    assert!(!jobs[2].dir.join("job.status.json").is_symlink());
    let moved = site.drive.path().join("moved");
    assert_eq!(names(&moved), ["job.json", "job.log", "job.status.json"]);
    let journal = read(&moved.join("job.status.json"));
    assert!(journal.contains("has vanished"), "it is with the job");

    let dir = site.directory("rejected");
    symlink(&file, dir.join("job.json")).unwrap();
    let _worker = site.idle_worker(|command| _ = command.env("JOB_ROOT", site.drive.path()));
    site.request(json!({ "id": "a", "workDir": "rejected" }));
    let result = site.result("a").json();
    assert_rejected(&result, error);
    assert_eq!(names(&dir), ["job.json"], "nor is anything left there");

    assert_eq!(names(outside.path()), ["file"]);
    assert_eq!(read(&file), stored);
}

#[test]
fn denied_payload_steps_leave_everything_that_runs_to_job_json() {
    let site = Site::start();
    let steps = ["echo from the file: $WHO"];
    let dir = site.prepare("a", json!({ "steps": steps, "env": { "WHO": "nobody" } }));
    let worker = site.idle_worker(with(&[("JOB_PAYLOAD_STEPS", "deny")]));
    for (what, value) in [
        ("steps", json!(["touch ran"])),
        ("steps", json!([])),
        ("env", json!({ "PATH": "/attack" })),
        ("env", json!({ "LD_PRELOAD": "" })),
    ] {
        site.request(json!({ "id": "a", "workDir": dir, what: value }));
        let result = site.result("a").json();
        assert_rejected(&result, "JOB_PAYLOAD_STEPS=deny");
        assert_eq!(names(&dir), ["job.json"]);
    }
    let request = json!({ "id": "a", "workDir": dir, "steps": null, "env": {}, "timeoutSeconds": 9, "maxAttempts": 1 });
    let good = site.run_request(worker, dir, request);
    assert_eq!(good.output(), "from the file: nobody\n");
}

/// A drive that is mounted later than the service starts.
#[test]
fn a_missing_job_root_is_waited_for() {
    let site = Site::scripted();
    let root = site.drive.path().join("mnt/jobs");
    for (command, pool) in [("supervise", None), ("", Some("p"))] {
        let _ = fs::remove_dir_all(site.drive.path().join("mnt"));
        let configure = |command: &mut Command| {
            command.env("JOB_ROOT", &root);
            pool.map(|pool| command.env("JOB_POOL", pool).env("WORKER_ID", WORKER));
        };
        let mut check = site.command(["check"]);
        configure(&mut check);
        let output = check.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78));
        assert!(said.contains("does not exist; a worker waits"), "{said}");

        let start = || {
            let mut command = site.command(Some(command).filter(|command| !command.is_empty()));
            configure(&mut command);
            let worker = site.start_as(command);
            worker.await_stderr("does not exist: waiting until it is there");
            worker
        };
        let mut worker = start();
        worker.stop();
        let states = site.mark();
        let mut worker = start();
        fs::create_dir_all(&root).unwrap();
        site.await_idle(states);
        worker.stop();
    }
}
