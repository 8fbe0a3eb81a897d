//! docs/reference.md, "Delivery" on a real Mosquitto: nothing lost, nothing run twice without cause.

use crate::support;

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::log::untimed;
use support::mosquitto::Mosquitto;
use support::processes::survivors;
use support::site::{Site, release, runs};
use support::wait;
use support::worker::speaking;

fn next_job_succeeds(site: &Site, configure: impl Fn(&mut Command)) {
    site.runs_a_job(&mut site.idle_worker(configure));
}

fn jobs_queued_while_the_worker_is_away_run_once_each_in_order(version: &str) {
    const COUNT: usize = 22; // more than 3.1.1 has in flight at once
    let site = Site::start();
    site.open_queue(speaking(version));
    let expected: Vec<String> = (0..COUNT)
        .map(|number| format!("job-{number:02}"))
        .collect();
    let submit = |id: &String| site.submit(id, json!({ "steps": ["echo $PPID >> runs"] }));
    let dirs: Vec<_> = expected.iter().map(submit).collect();

    let mut pids = HashSet::new();
    for dir in &dirs {
        let mut worker = site.worker(speaking(version));
        worker.exits_with(0);
        assert_eq!(runs(dir), [worker.pid().to_string()]);
        assert!(pids.insert(worker.pid()), "a process of its own");
    }
    let results = || site.controller.heard("jobs/results/");
    wait::until("the last result", || results().len() >= COUNT);
    let ids = results().into_iter().map(|it| it.json()["id"].to_string());
    assert!(ids.eq(expected.iter().map(|id| format!("{id:?}"))));
    assert!(results().iter().all(|it| it.json()["status"] == "success"));

    // Nothing is left in the queue: a further worker stays idle until there is a further job.
    next_job_succeeds(&site, speaking(version));
    assert_eq!(results().len(), COUNT + 1);
    assert!(dirs.iter().all(|dir| runs(dir).len() == 1));
}

/// Its orphan ends by itself, which the next worker waits for, or is killed, too.
fn a_job_interrupted_by_a_crash_runs_again_as_the_next_attempt(version: &str) {
    let everything = ["start 1", "end 1", "start 2", "end 2"];
    for kills_orphan in [false, true] {
        let site = Site::start();
        let mut first = site.idle_worker(speaking(version));
        let dir = site.hold("crashed");
        first.kill9();
        if kills_orphan {
            for pid in survivors(&site.label()) {
                let _ = kill_process(Pid::from_raw(pid).expect("not 0"), Signal::KILL); // the shell's `sleep` may be over
            }
        }
        let mut second = site.worker(speaking(version));
        if !kills_orphan {
            let a_while = Duration::from_millis(500);
            wait::throughout(a_while, "the successor waits", || runs(&dir) == ["start 1"]);
            assert_eq!(second.ended(), None);
        }
        release(&dir);
        let finished = site.finish(second, dir, "crashed");
        assert_eq!(finished.verdict(), ("success", "", 0));
        assert_eq!(finished.result["attempt"], 2);
        let mut expected = everything.to_vec();
        expected.retain(|line| !kills_orphan || *line != "end 1");
        assert_eq!(runs(&finished.dir), expected, "never two at once");
        let attempts = finished.log.split_once("attempt 2 of 3");
        let (earlier, later) = attempts.expect("a line says that this is another attempt");
        let is_kept = earlier.starts_with("Job ID: crashed\n");
        assert!(
            is_kept && untimed(earlier).contains("==> step 1/1"),
            "{earlier}"
        );
        assert!(later.contains(" step 1/1"), "{later}");
        next_job_succeeds(&site, speaking(version));
        assert_eq!(site.controller.heard("jobs/results/crashed").len(), 1);
    }
}

on_both_protocols!(
    jobs_queued_while_the_worker_is_away_run_once_each_in_order,
    a_job_interrupted_by_a_crash_runs_again_as_the_next_attempt,
);

/// A broker that forgets what it has when it is killed.
pub fn forgetful() -> Mosquitto {
    let mut broker = Mosquitto::prepare().without_persistence();
    broker.restart();
    broker
}
