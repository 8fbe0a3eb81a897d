//! A drive that is full or read-only (docs/reference.md, "What is on the disk").

use crate::support;

use serde_json::json;
use std::fs;
use std::process::Command;
use std::time::Duration;
use support::cut_drive::{CutDrive, DiskCache, FILE_SYSTEMS};
use support::mount::{Mount, mount};
use support::site::{Site, await_file, until_exists};
use support::wait;

#[test]
#[ignore = "needs root to mount"]
fn on_a_full_drive_nothing_is_run_or_lost_and_presence_says_why() {
    for job_log in [None, Some("of an earlier attempt\n")] {
        let site = Site::start();
        let mut worker = site.idle_worker(|worker| _ = worker.env("JOB_DIR_WAIT", "0"));
        let drive = Mount::on(&site.directory("full"), "size=64k");
        let dir = site.prepare("full", json!({ "steps": ["echo ran"] }));
        if let Some(text) = job_log {
            let journal = json!({ "id": "full", "status": "running", "attempt": 1 });
            fs::write(dir.join("job.status.json"), journal.to_string()).unwrap();
            fs::write(dir.join("job.log"), text).unwrap();
        }
        drive.fill();
        site.request(json!({ "id": "full", "workDir": dir }));
        let says_why = || {
            let said = site.controller.heard("jobs/workers/").pop().unwrap().json();
            said["waitingFor"] == format!("room on the drive of {}", dir.display())
        };
        wait::until("presence to say so", says_why);
        wait::throughout(Duration::from_millis(1500), "nothing is run", || {
            says_why() && site.controller.heard("jobs/results/").is_empty()
        });
        let said = worker.stderr();
        assert_eq!(said.matches("No space left").count(), 1, "{said}");
        fs::remove_file(dir.join("filler")).unwrap();
        assert_eq!(site.result("full").json()["status"], "success");
        worker.exits_with(0);
        let log = fs::read_to_string(dir.join("job.log")).unwrap();
        assert!(
            log.starts_with(job_log.unwrap_or("Job ID: full\n")),
            "{log}"
        );
        assert_eq!(log.matches(", job-worker ").count(), 1, "{log}");
    }
}

#[test]
#[ignore = "needs root to mount"]
fn a_drive_that_fills_up_in_mid_job_does_not_change_the_result() {
    let site = Site::start();
    let _drive = Mount::on(&site.directory("filling"), "size=256k");
    let steps = json!(["cat /dev/zero > filler 2>/dev/null || true", "exit 3"]);
    let finished = site.run("filling", json!({ "steps": steps }));
    assert_eq!(
        (&finished.result["status"], &finished.result["exitCode"]),
        (&json!("failed"), &json!(3))
    );
    assert_eq!(finished.result["reason"], "step");
    let said = finished.worker.stderr();
    assert!(
        said.contains("job.status.json cannot be written: No space left"),
        "{said}"
    );
}

#[test]
#[ignore = "needs root to mount"]
fn a_drive_that_fills_up_in_mid_job_is_no_success() {
    let site = Site::start();
    let _drive = Mount::on(&site.directory("filling"), "size=256k");
    let steps = json!(["cat /dev/zero > filler 2>/dev/null || true"]);
    let finished = site.run("filling", json!({ "steps": steps }));
    assert_eq!(
        (
            &finished.result["status"],
            &finished.result["reason"],
            &finished.result["exitCode"]
        ),
        (&json!("failed"), &json!("internal"), &json!(1))
    );
    let error = finished.result["error"].as_str().unwrap_or_default();
    assert!(error.contains("No space left"), "{error}");
}

#[test]
#[ignore = "needs root to mount"]
fn in_a_read_only_directory_nothing_is_run_and_the_result_says_why() {
    let site = Site::start();
    let _drive = Mount::on(&site.directory("frozen"), "size=64k");
    let dir = site.prepare("frozen", json!({ "steps": ["true"] }));
    assert!(mount(&["-o", "remount,ro"], &dir));
    let worker = site.idle_worker(|_| {});
    let finished = site.run_request(
        worker,
        dir.clone(),
        json!({ "id": "frozen", "workDir": dir }),
    );
    assert_eq!(
        (&finished.result["status"], &finished.result["reason"]),
        (&json!("failed"), &json!("internal"))
    );
    assert_eq!(finished.result["logFile"], json!(null));
    assert!(
        finished.result["error"]
            .as_str()
            .is_some_and(|error| error.contains("Read-only")),
        "{}",
        finished.result
    );
}

/// The kernel makes a drive with an error read-only, or its device is gone. A claim that cannot be ended is taken again.
#[test]
#[ignore = "needs root and loop devices"]
fn a_drive_that_fails_in_mid_job_is_no_success() {
    let verdicts = [(0, ("failed", "internal", 1)), (3, ("failed", "step", 3))];
    let cases = [(false, false), (false, true), (true, false), (true, true)];
    for ((is_gone, in_pool), (exit, expected)) in
        cases.map(|case| verdicts.map(|v| (case, v))).concat()
    {
        let drive = CutDrive::start(FILE_SYSTEMS[0], "fails").expect("a drive");
        let site = Site::start();
        let member = |command: &mut Command| {
            command.env("WORKER_ID", "w");
            if in_pool {
                command
                    .env("JOB_POOL", "the-pool")
                    .env("JOB_ROOT", drive.path());
            }
        };
        let worker = site.idle_worker(member);
        let [up, gate] = ["up", "gate"].map(|name| site.drive.path().join(name));
        let dir = drive.path().join("a");
        fs::create_dir(&dir).unwrap();
        let step = format!(
            "touch {}; {}; exit {exit}",
            up.display(),
            until_exists(&gate.to_string_lossy())
        );
        site.request(json!({ "id": "a", "workDir": dir, "steps": [step] }));
        await_file(&up);
        match is_gone {
            true => drive.cut(DiskCache::Lost),
            false => drive.turn_read_only(),
        }
        fs::write(&gate, "").expect("a file elsewhere");
        let finished = site.finish(worker, dir.clone(), "a");
        assert_eq!(finished.verdict(), expected, "{}", finished.result);
        let warning = finished.result["warning"].as_str().unwrap_or_default();
        assert!(
            warning.contains("job.status.json cannot be written"),
            "{warning}"
        );
        if is_gone && in_pool {
            drive.restore(false).expect("it has its power again");
            let again = site.finish(site.worker(member), dir, "a");
            assert_eq!(
                (&again.result["attempt"], &again.result["exitCode"]),
                (&json!(2), &json!(exit))
            );
        }
    }
}
