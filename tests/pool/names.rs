//! Members of one host have names of their own, also where nobody gives them any: containers with the host's network have its name.

use super::support::pool::Queue;
use super::support::site::Site;
use super::support::wait;
use super::support::worker::Worker;

/// A member of the site's pool, with this `WORKER_ID` or none.
fn member(site: &Site, name: &str) -> Worker {
    site.worker(|command| {
        Queue::Pool.serve(command, site.drive.path());
        command.env("WORKER_ID", name); // an empty one counts as unset
    })
}

fn await_presence(site: &Site, name: &str, state: &str) {
    wait::until(&format!("{name} to be {state}"), || {
        let heard = site.controller.heard("jobs/workers/");
        let last = heard
            .iter()
            .rfind(|message| message.topic.ends_with(&format!("/{name}")));
        last.is_some_and(|message| message.json()["state"] == state)
    });
}

#[test]
fn members_without_a_worker_id_are_numbered_and_a_free_number_is_taken_again() {
    let site = Site::start();
    let host = rustix::system::uname();
    let host = host.nodename().to_str().unwrap();
    let names = [host.to_owned(), format!("{host}-2"), format!("{host}-3")];
    // it has its name before it connects, and says that it is idle up to 2 s later
    let begin = || {
        let member = member(&site, "");
        member.await_stderr("connected to the broker");
        member
    };
    let mut members = [begin(), begin(), begin()];
    for name in &names {
        await_presence(&site, name, "idle");
    }
    members[1].kill9();
    await_presence(&site, &names[1], "offline");
    let _next = begin();
    // a supervisor keeps its name for all its workers, also while the first one is free
    let mut command = site.command(["supervise"]);
    Queue::Pool.serve(&mut command, site.drive.path());
    command.env("WORKER_ID", "");
    let _supervisor = site.start_as(command);
    let kept = format!("{host}-4");
    for name in [&names[1], &kept] {
        await_presence(&site, name, "idle");
    }
    for member in [0, 2] {
        members[member].stop();
    }
    for id in ["a", "b", "c"] {
        site.submit(id, serde_json::json!({ "steps": ["true"] }));
        site.result(id);
    }
    await_presence(&site, &kept, "idle");
}

#[test]
fn a_second_member_with_the_same_worker_id_says_so() {
    let site = Site::start();
    let _first = member(&site, "twin");
    await_presence(&site, "twin", "idle");
    let second = member(&site, "twin");
    second.await_stderr(
        "another member on this host has the name \"twin\": give each its own WORKER_ID",
    );
}
