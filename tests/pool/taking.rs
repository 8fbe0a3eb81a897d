//! How requests are taken: what is rejected, what waits, what is in progress already, and whose configuration does not fit.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::members::{await_queue, make_pool, member_of, supervised};
use super::support::broker::{Packet, Verdict};
use super::support::controller::Controller;
use super::support::mount::Mount;
use super::support::pool::await_no_claims;
use super::support::site::{Site, await_file, names, read, until_exists};
use super::support::wait;
use super::support::worker::with;

on_both_protocols!(
    what_cannot_be_used_is_rejected_and_the_head_goes_on,
    a_directory_runs_one_job_at_a_time_in_the_order_of_the_queue,
);

fn what_cannot_be_used_is_rejected_and_the_head_goes_on(version: &str) {
    let site = Site::start();
    let mut worker = site.idle_worker(member_of(&site, "a", version));
    site.controller.publish("jobs/pending", "no json");
    site.request(json!({ "id": "bad", "workDir": 7 }));
    site.controller.publish_at_qos_0("jobs/pending", "nothing");
    // it takes a retained request off the broker, and is none itself
    site.controller.publish_at_qos_0("jobs/pending", "");
    site.submit("good", json!({ "steps": ["true"] }));
    // the one at QoS 0 may overtake it: it is rejected on another connection
    let rejected = || {
        let rejected = site.controller.heard("jobs/rejected").into_iter();
        rejected.map(|notice| notice.json()["payload"].clone())
    };
    wait::until("its rejection", || rejected().any(|it| it == "no json"));
    assert_eq!(site.result("bad").json()["reason"], "rejected");
    site.succeeds("good");
    worker.exits_with(0);
    assert_eq!(site.claims(), [""; 0]);
    assert!(rejected().all(|payload| payload != ""));
}

#[test]
fn a_key_in_progress_is_not_run_twice() {
    let site = Site::start();
    let _members = ["a", "b"].map(|name| supervised(&site, name, "5"));
    await_queue(&site);
    let dir = site.directory("keyed");
    let step = format!("echo >> runs; {}", until_exists("gate"));
    let request = |id| json!({ "id": id, "workDir": dir, "key": "k", "steps": [step] });
    site.request(request("keyed"));
    await_file(&dir.join("runs"));
    site.request(request("keyed"));
    // whoever waits for it knows its own id only
    site.request(request("another"));
    site.submit("other", json!({ "steps": ["true"] }));
    site.result("other");
    fs::write(dir.join("gate"), "").unwrap();
    for id in ["keyed", "keyed", "another"] {
        site.succeeds(id);
    }
    assert_eq!(read(&dir.join("runs")).lines().count(), 2);
}

fn a_directory_runs_one_job_at_a_time_in_the_order_of_the_queue(version: &str) {
    let site = Site::start();
    let _members = ["a", "b", "c", "d"].map(|name| supervised(&site, name, version));
    await_queue(&site);
    let dir = site.directory("shared");
    let ids: Vec<String> = (0..12).map(|number| number.to_string()).collect();
    for id in &ids {
        let gate = until_exists("gate");
        let step = format!("mkdir busy && echo {id} >> order && {gate} && rmdir busy");
        site.request(json!({ "id": id, "workDir": dir, "steps": [step] }));
    }
    // the others wait for the directory, and nobody for them
    for id in ["other", "another"] {
        site.submit(id, json!({ "steps": ["true"] }));
        site.result(id);
    }
    fs::write(dir.join("gate"), "").unwrap();
    for id in &ids {
        let result = site.result(id).json();
        let end = (&result["status"], &result["attempt"]);
        assert_eq!(end, (&json!("success"), &json!(1)), "{result}");
    }
    let order = read(&dir.join("order"));
    assert_eq!(order.lines().collect::<Vec<_>>(), ids);
    await_no_claims(site.drive.path());
}

#[test]
fn a_job_is_cancelled() {
    let site = Site::start();
    let mut worker = site.idle_worker(member_of(&site, "a", "5"));
    site.hold("a");
    site.controller.publish("jobs/cancel/a", "");
    assert_eq!(site.result("a").json()["reason"], "cancelled");
    worker.exits_with(0);
}

#[test]
fn a_workdir_around_the_pool_is_rejected() {
    let site = Site::start();
    let _worker = supervised(&site, "a", "5");
    await_queue(&site);
    for dir in [".", ".job-worker", ".job-worker/the-pool"] {
        site.request(json!({ "id": "a", "workDir": dir, "steps": ["touch was-here"] }));
        let result = site.result("a").json();
        assert_eq!(result["reason"], "rejected", "{dir}");
        let error = result["error"].as_str().unwrap();
        assert!(error.contains("the directory of the pool"), "{error}");
    }
}

/// What the head has open is below the drive that is there now: a claim there would be lost.
#[test]
#[ignore = "needs root to mount"]
fn a_drive_that_is_mounted_while_members_wait_is_used() {
    let site = Site::start();
    let mut members = ["a", "b"].map(|name| site.idle_worker(member_of(&site, name, "5")));
    await_queue(&site);
    let before = fs::File::open(site.pool()).unwrap();
    let _mount = Mount::on(site.drive.path(), "size=9m");
    make_pool(&site); // its own place there
    for id in ["first", "second"] {
        site.submit(id, json!({ "steps": ["true"] }));
    }
    for id in ["first", "second"] {
        site.succeeds(id);
    }
    for member in &mut members {
        member.exits_with(0);
    }
    assert_eq!(site.claims(), [""; 0]);
    let below = PathBuf::from(format!("/proc/self/fd/{}", before.as_raw_fd()));
    let is_claim = |name: &String| name.starts_with("c-");
    assert!(!names(&below).iter().any(is_claim));
}

#[test]
#[ignore = "needs root to mount"]
fn a_full_drive_leaves_the_request_with_the_broker() {
    let site = Site::start();
    let drive = site.drive.path().to_owned();
    let mount = Mount::on(&drive, "size=1m");
    let mut worker = site.idle_worker(member_of(&site, "a", "5"));
    let dir = site.prepare("a", json!({ "steps": ["true"] }));
    mount.fill();
    site.request(json!({ "id": "a", "workDir": dir }));
    worker.await_stderr("no claim can be made");
    let says_why = || {
        let said = site.controller.heard("jobs/workers/a");
        let why = &said.last().unwrap().json()["waitingFor"];
        why.as_str()
            .is_some_and(|why| why.contains("no claim can be made"))
    };
    wait::until("its presence to say so", says_why);
    wait::throughout(Duration::from_millis(1500), "nothing is run", || {
        says_why() && site.controller.heard("jobs/results/").is_empty()
    });
    fs::remove_file(drive.join("filler")).unwrap();
    site.succeeds("a");
    worker.exits_with(0);
    assert_eq!(site.claims(), [""; 0]);
}

#[test]
fn members_that_find_the_queue_and_no_directory_for_it_end_and_take_nothing() {
    let site = Site::start();
    site.open_queue(with(&[("WORKER_ID", "the-pool")]));
    site.submit("a", json!({ "steps": ["true"] }));
    let pool = site.pool();
    let mut members = ["m1", "m2", "m3"].map(|name| site.worker(member_of(&site, name, "5")));
    for member in &mut members {
        member.exits_with(78);
        let told = format!("mkdir -p {}", pool.display());
        assert!(member.stderr().contains(&told), "{}", member.stderr());
    }
    assert!(!pool.exists() && site.controller.heard("jobs/results/").is_empty());
    make_pool(&site);
    let _member = supervised(&site, "m", "5");
    assert_eq!(site.result("a").json()["worker"], "m");
}

/// A member that has made the directory may not live to see the session: the next head is no wiser than the first.
#[test]
fn members_on_another_drive_take_nothing_when_the_first_head_is_cut_off() {
    let site = Site::scripted();
    let mut owner = site.idle_worker(with(&[("WORKER_ID", "the-pool")]));
    owner.stop();
    site.submit("a", json!({ "steps": ["true"] }));
    let mut cuts = 1;
    site.broker.set_script(move |step| match step.packet {
        Packet::Connect { client_id, .. } if client_id == "the-pool" && cuts > 0 => {
            cuts -= 1;
            Verdict::CutBefore
        }
        _ => Verdict::Pass,
    });
    let another = site.directory("another");
    let mut members = ["m1", "m2"].map(|name| {
        site.worker(|command| {
            member_of(&site, name, "5")(command);
            command.env("JOB_ROOT", &another);
        })
    });
    for member in &mut members {
        member.exits_with(78);
    }
    assert_eq!(site.broker.queued("the-pool"), 1);
    assert_eq!(names(&another.join(".job-worker")), [""; 0]);
}

/// What it would find in an empty mount point are no directories of jobs: it would reject what is queued.
#[test]
fn members_whose_drive_goes_away_take_nothing() {
    let site = Site::start();
    let [root, away] = ["root", "away"].map(|name| site.drive.path().join(name));
    let member = |name: &str| {
        site.idle_worker(|command| {
            member_of(&site, name, "5")(command);
            command.env("JOB_ROOT", &root);
        })
    };
    fs::create_dir_all(root.join("a")).unwrap();
    let mut members = ["m1", "m2", "m3"].map(member);
    fs::rename(&root, &away).unwrap();
    fs::create_dir(&root).unwrap();
    site.request(json!({ "id": "a", "workDir": "a", "steps": ["true"] }));
    for member in &mut members {
        member.exits_with(78);
        let said = member.stderr();
        assert!(said.contains("is the right drive at JOB_ROOT?"), "{said}");
    }
    assert!(site.controller.heard("jobs/results/").is_empty());
    fs::remove_dir_all(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    let _member = site.worker(|command| {
        member_of(&site, "m4", "5")(command);
        command.env("JOB_ROOT", &root);
    });
    assert_eq!(site.result("a").json()["worker"], "m4");
}

/// A claim of version 0.2 is nothing that this version can run, and nothing that it may lose.
#[test]
fn a_claim_of_version_0_2_is_named_and_kept() {
    let site = Site::start();
    let old = make_pool(&site).join("c-00000192f3a4b5c6-0123456789abcdef");
    fs::write(&old, "{}\n").unwrap();
    let mut member = site.worker(member_of(&site, "a", "5"));
    member.exits_with(78);
    let told = format!("{} is a request that version 0.2 has taken", old.display());
    assert!(member.stderr().contains(&told), "{}", member.stderr());
    assert_eq!(read(&old), "{}\n");
    let is_connected = site.broker.log().contains("as the-pool");
    assert!(!is_connected, "nothing is taken");
}

#[test]
fn a_member_with_another_configuration_ends() {
    let site = Site::start();
    let _first = site.idle_worker(member_of(&site, "a", "5"));
    for (name, value, said) in [
        ("JOB_PAYLOAD_STEPS", "deny", "steps in requests denied"),
        ("MQTT_TOPIC_ROOT", "other", "MQTT_TOPIC_ROOT other"),
        ("JOB_ROOT", "", "JOB_ROOT"),
    ] {
        let mut other = site.worker(|command| {
            member_of(&site, "b", "5")(command);
            command.env(name, value);
        });
        other.exits_with(78);
        assert!(other.stderr().contains(said), "{}", other.stderr());
    }
}

#[test]
fn a_member_leaves_nothing_on_the_broker_but_that_it_is_gone() {
    let site = Site::start();
    let mut member = site.idle_worker(member_of(&site, "a", "5"));
    member.stop();
    let late = Controller::hearing("jobs/workers/+", &site.broker, "late");
    let presence = late.next("jobs/workers/a").json();
    assert_eq!(presence["state"], "offline");
    assert_eq!(presence["pool"]["name"], "the-pool");
}
