//! A drive that is full or read-only (docs/reference.md, "What is on the disk").

use crate::support;

use serde_json::json;
use std::fs;
use std::process::Command;
use std::time::Duration;
use support::cut_drive::{CutDrive, DiskCache, FILE_SYSTEMS};
use support::mount::{Mount, mount};
use support::pool::Queue;
use support::site::{Finished, Site, await_file, read, until_exists};
use support::wait;

fn says(finished: &Finished, field: &str, text: &str) {
    let said = finished.result[field].as_str().unwrap_or_default();
    assert!(said.contains(text), "no {text:?} in {}", finished.result);
}

#[test]
#[ignore = "needs root to mount"]
fn on_a_full_drive_nothing_is_run_or_lost_and_presence_says_why() {
    for job_log in [None, Some("of an earlier attempt\n")] {
        let site = Site::start();
        let mut worker = site.idle_worker(|_| {});
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
        site.succeeds("full");
        worker.exits_with(0);
        let log = read(&dir.join("job.log"));
        let is_kept = log.starts_with(job_log.unwrap_or("Job ID: full\n"));
        assert!(
            is_kept && log.matches(", job-worker ").count() == 1,
            "{log}"
        );
    }
}

#[test]
#[ignore = "needs root to mount"]
fn in_a_read_only_directory_nothing_is_run_and_the_result_says_why() {
    let site = Site::start();
    let _drive = Mount::on(&site.directory("frozen"), "size=64k");
    let dir = site.prepare("frozen", json!({ "steps": ["true"] }));
    assert!(mount(&["-o", "remount,ro"], &dir));
    let request = json!({ "id": "frozen", "workDir": dir });
    let finished = site.run_request(site.idle_worker(|_| {}), dir, request);
    assert_eq!(finished.verdict(), ("failed", "internal", 1));
    assert!(finished.result["logFile"].is_null());
    says(&finished, "error", "Read-only");
}

#[test]
#[ignore = "needs root to mount"]
fn a_drive_that_fills_up_in_mid_job_is_no_success_and_does_not_change_another_result() {
    for (exit, expected) in [(3, ("failed", "step", 3)), (0, ("failed", "internal", 1))] {
        let site = Site::start();
        let _drive = Mount::on(&site.directory("filling"), "size=256k");
        let fills = "cat /dev/zero > filler 2>/dev/null || true";
        let steps = json!([fills, format!("exit {exit}")]);
        let finished = site.run("filling", json!({ "steps": steps }));
        assert_eq!(finished.verdict(), expected);
        let said = finished.worker.stderr();
        let told = "job.status.json cannot be written: No space left";
        assert!(said.contains(told), "{said}");
        if exit == 0 {
            says(&finished, "error", "No space left");
        }
    }
}

/// The kernel makes a drive with an error read-only, or its device is gone. A claim that cannot be ended is taken again.
#[test]
#[ignore = "needs root and loop devices"]
fn a_drive_that_fails_in_mid_job_is_no_success() {
    let verdicts = [(0, ("failed", "internal", 1)), (3, ("failed", "step", 3))];
    let cases = [false, true]
        .map(|gone| [(gone, Queue::Own), (gone, Queue::Pool)])
        .concat();
    for ((is_gone, queue), (exit, expected)) in cases
        .into_iter()
        .flat_map(|case| verdicts.map(|v| (case, v)))
    {
        let Some(drive) = CutDrive::start_or_leave_out(FILE_SYSTEMS[0], "fails") else {
            return;
        };
        let site = Site::start();
        let member = |command: &mut Command| queue.serve(command, &drive.path());
        let worker = site.idle_worker(member);
        let [up, gate] = ["up", "gate"].map(|name| site.drive.path().join(name));
        let dir = drive.path().join("a");
        fs::create_dir(&dir).unwrap();
        let wait = until_exists(&gate.to_string_lossy());
        let step = format!("touch {}; {wait}; exit {exit}", up.display());
        site.request(json!({ "id": "a", "workDir": dir, "steps": [step] }));
        await_file(&up);
        match is_gone {
            true => drive.cut(DiskCache::Lost),
            false => drive.turn_read_only(),
        }
        fs::write(&gate, "").expect("a file elsewhere");
        let finished = site.finish(worker, dir.clone(), "a");
        assert_eq!(finished.verdict(), expected, "{}", finished.result);
        says(&finished, "warning", "job.status.json cannot be written");
        if is_gone && queue == Queue::Pool {
            drive.restore().expect("it has its power again");
            let again = site.finish(site.worker(member), dir, "a").result;
            assert_eq!(again["attempt"], 2);
            assert_eq!(again["exitCode"], exit);
        }
    }
}
