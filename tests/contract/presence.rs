//! docs/reference.md, "Topics", `jobs/workers/{workerId}`: what anyone can see of a worker, at any moment.

use crate::support::broker::{Broker, Message};
use crate::support::controller::Controller;
use crate::support::mosquitto::Mosquitto;
use crate::support::site::{Site, WORKER, names, release, shell, until_exists};
use crate::support::wait::{self, DEADLINE};
use crate::support::worker::speaking;
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

const TOPIC: &str = "jobs/workers/node-worker-01";

/// What somebody who subscribes now is told of the worker.
fn retained(broker: &Mosquitto, observer: &str) -> Value {
    let controller = Controller::connect_as(broker, observer, None);
    let message = controller.next(TOPIC);
    assert!(message.retain);
    message.json()
}

/// Waits until the last presence since `mark` says that the worker is busy and waits for `what`.
fn await_waiting_for(site: &Site, mark: usize, what: &str) {
    wait::until(&format!("a worker that waits for {what}"), || {
        let last = site.controller.heard_since(mark, TOPIC).pop();
        last.is_some_and(|last| {
            let last = last.json();
            last["state"] == "busy" && last["job"] == "a" && last["waitingFor"] == what
        })
    });
}

#[test]
fn a_worker_whose_directory_is_gone_rejects_no_relative_one() {
    let site = Site::start();
    let gone = site.directory("gone");
    let mut worker = site.idle_worker(|worker| _ = worker.current_dir(&gone));
    fs::remove_dir(&gone).unwrap();
    let mark = site.controller.mark();
    site.request(json!({ "id": "a", "workDir": "a", "steps": [] }));
    await_waiting_for(&site, mark, "this worker's current directory");
    worker.stop();
}

#[test]
fn a_lock_that_another_run_holds_is_told_once_and_waited_for() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let dir = site.prepare("a", json!({ "steps": ["echo done"] }));
    let log = dir.join("job.log");
    let holder = fs::File::create(&log).unwrap();
    holder.lock().unwrap();
    let mark = site.controller.mark();
    let journal = dir.join("job.status.json");
    shell(&dir, "mkfifo job.status.json");
    site.request(json!({ "id": "a", "workDir": format!("{}/", dir.display()) }));
    await_waiting_for(&site, mark, &format!("the lock on {}", log.display()));
    wait::throughout(Duration::from_secs(1), "each thing is said once", || {
        let said = worker.stderr();
        let warnings = [
            format!("{} is in use by another worker", log.display()),
            format!("{} cannot be read: ", journal.display()),
        ];
        warnings.iter().all(|one| said.matches(one).count() == 1)
    });
    drop(holder);
    site.succeeds("a");
    let told = site.controller.heard_since(mark, TOPIC);
    let runs = |told: &Value| told["state"] == "busy" && told.get("waitingFor").is_none();
    assert!(told.iter().any(|message| runs(&message.json())));
    worker.exits_with(0);
}

#[test]
fn what_comes_late_is_waited_for_and_told_after_a_second() {
    let site = Site::start();
    let root = site.directory("root");
    let mut worker = site.idle_worker(|command| {
        command.env("JOB_DIR_WAIT", "1000").env("JOB_ROOT", &root);
    });
    let away = site.drive.path().join("away");
    fs::rename(&root, &away).unwrap();
    let dir = root.join("a");
    let (mark, asked) = (site.controller.mark(), Instant::now());
    site.request(json!({ "id": "a", "workDir": dir }));
    await_waiting_for(&site, mark, &format!("JOB_ROOT {}", root.display()));
    fs::rename(&away, &root).unwrap();
    await_waiting_for(&site, mark, &format!("workDir {}", dir.display()));
    assert!(asked.elapsed() >= Duration::from_secs(1));
    fs::create_dir(&dir).unwrap();
    let definition = dir.join("job.json");
    await_waiting_for(&site, mark, &definition.display().to_string());
    assert_eq!(names(&dir), [""; 0], "nothing is written before");
    shell(&dir, r#"echo '{"steps": []}' > new; mv new job.json"#);
    site.succeeds("a");
    worker.exits_with(0);
}

#[test]
fn idle_busy_offline_over_the_life_of_a_worker() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let idle = retained(&site.broker, "observer-1");
    let said = json!([idle["worker"], idle["state"], idle["job"], idle["version"]]);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(said, json!([WORKER, "idle", null, version]));
    assert!(humantime::parse_rfc3339(idle["since"].as_str().unwrap()).is_ok());
    site.request(json!({ "id": "bad", "workDir": "/", "steps": 5 }));
    site.result("bad"); // a request that is rejected leaves it idle
    let dir = site.prepare("a", json!({ "steps": [until_exists("gate")] }));
    site.request(json!({ "id": 7, "workDir": dir }));
    site.await_state(&mut worker, 0, "busy");
    let busy = retained(&site.broker, "observer-2");
    let said = json!([busy["state"], busy["job"]]);
    assert_eq!(said, json!(["busy", 7]), "in the JSON type of the request");
    release(&dir);
    worker.exits_with(0);
    wait::until("the worker to be offline", || {
        site.states(0)
            .last()
            .is_some_and(|state| state == "offline")
    });
    let offline = retained(&site.broker, "observer-3");
    let said = json!([offline["state"], offline["job"]]);
    assert_eq!(said, json!(["offline", null]));
    assert_eq!(site.states(0), ["idle", "busy", "offline"], "each once");
    // nothing else of a job is retained
    let latecomer = Controller::connect_as(&site.broker, "latecomer", None);
    latecomer.next(TOPIC);
    let heard = latecomer.heard("jobs/");
    assert_eq!(heard.len(), 1, "{heard:?}");
}

/// What a site's worker has said of itself, once it has said it so often.
fn told(site: &Site<Broker>, count: usize) -> Vec<Value> {
    let all = site.broker.wait_for_message(TOPIC, count, DEADLINE);
    let kept = |message: &Message| message.qos == 0 && message.retain;
    assert!(all.iter().all(kept), "{all:?}");
    let json = |message: &Message| serde_json::from_slice(&message.payload).unwrap();
    all.iter().map(json).collect()
}

#[test]
fn on_each_new_connection_the_present_state_follows_the_last_will() {
    for version in ["5", "4"] {
        let site = Site::scripted();
        let mut worker = site.idle_worker(speaking(version));
        site.broker.kick(WORKER);
        told(&site, 3);
        let dir = site.hold("a");
        told(&site, 4);
        site.broker.kick(WORKER);
        told(&site, 6);
        release(&dir);
        worker.exits_with(0);
        let all = told(&site, 7);
        let expected = [
            "idle", "offline", "idle", "busy", "offline", "busy", "offline",
        ];
        assert_eq!(site.states(0), expected);
        for (one, other) in [(0, 2), (3, 5)] {
            let since = [one, other].map(|number: usize| &all[number]["since"]);
            assert_eq!(since[0], since[1], "connected or not");
        }
        assert_eq!(all[5]["job"], "a");
    }
}

#[test]
fn after_a_take_over_the_last_word_is_the_truth() {
    let site = Site::scripted();
    let mut busy = site.idle_worker(|_| {});
    let dir = site.hold("a");
    told(&site, 2);
    let mut other = site.worker(|_| {});
    told(&site, 4);
    let states = site.states(0);
    assert_eq!(states[2], "offline", "the last will of the first");
    assert_ne!(states[3], "offline", "the second says that it is there");
    release(&dir);
    busy.exits_with(0);
    other.exits_with(0);
    site.broker.wait_for_connected(WORKER, false, DEADLINE);
    let last = site.broker.retained(TOPIC).unwrap().text();
    assert!(last.contains(r#""state":"offline""#), "{last}");
}
