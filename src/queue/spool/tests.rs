//! The directory alone: heads that die between any two steps, brokers that deliver again, claims in every state.

use super::description::NAME as DESCRIPTION;
use super::*;
use crate::contract::{Attempt, Document, Follows, JobId, Reason};
use crate::job::{Kept, RequestRecord};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    /// After how many steps the head dies.
    static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    /// After how many steps the head loses its lock, and does not know; the lock.
    static LOSES_LOCK: RefCell<Option<(u32, PathBuf)>> = const { RefCell::new(None) };
}

/// A dead head does nothing more: neither does one that returns this error.
pub fn step() -> io::Result<()> {
    LOSES_LOCK.with_borrow_mut(|loses| {
        *loses = loses.take().and_then(|(left, lock)| match left {
            // its name leads to the file of another head, as over a network it would
            0 => std::fs::remove_file(lock).map_or(None, |()| None),
            left => Some((left - 1, lock)),
        });
    });
    match STEPS_LEFT.get() {
        Some(0) => Err(io::Error::other("died")),
        left => {
            STEPS_LEFT.set(left.map(|left| left - 1));
            Ok(())
        }
    }
}

fn dies_after(steps: Option<u32>) {
    STEPS_LEFT.set(steps);
}

/// Waits for a lock that is free or about to be: a child that another test starts has ours, until it executes its program.
fn until_some<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "it stays locked");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("job-worker-spool-{}-{number}", std::process::id());
        let path = std::env::temp_dir().canonicalize().unwrap().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn try_open(&self, root: &str, steps: PayloadSteps) -> Result<Spool, String> {
        let config = PoolConfig {
            name: "p".to_owned(),
            root: self.0.clone(),
        };
        Spool::open(&config, root, steps, "w", Durability::Cache)
    }

    fn spool(&self) -> Spool {
        self.try_open("jobs", PayloadSteps::Allow).unwrap()
    }

    /// A worker that is the head.
    fn head(&self) -> Spool {
        let mut spool = self.spool();
        until_some(|| (spool.try_head().unwrap() == Try::Ours).then_some(()));
        spool
    }

    fn pool(&self) -> PathBuf {
        self.0.join(POOLS).join("p")
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        self.spool().names(prefix).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn message(text: &str, packet_id: u16, subscription: Option<u32>, redelivered: bool) -> Message {
    Message {
        topic: "jobs/pending".to_owned(),
        payload: text.to_owned().into(),
        packet_id: Some(packet_id),
        redelivered,
        subscription,
        retained: false,
    }
}

const TEXT: &str = r#"{"id":"a","workDir":"x"}"#;
const KEYED: &str = r#"{"id":"a","workDir":"x","key":"k"}"#;

fn take(spool: &mut Spool, message: &Message) -> io::Result<Taking> {
    spool.take(message, &Request::parse(&message.payload).unwrap())
}

fn take_claim(spool: &mut Spool, message: &Message) -> Claim {
    match take(spool, message).unwrap() {
        Taking::Claim(claim) => *claim,
        other => panic!("{other:?}"),
    }
}

fn name_of(claim: &Claim) -> String {
    let path = claim.path();
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn becomes_a_claim(spool: &mut Spool, message: &Message) {
    let taking = take(spool, message).unwrap();
    assert!(
        matches!(taking, Taking::Claim(_) | Taking::Waits),
        "{taking:?}"
    );
}

fn orphan(spool: &mut Spool) -> Option<Claim> {
    match spool.take_orphan(|_| false).unwrap() {
        Some(Orphan::Claim(claim)) => Some(*claim),
        None => None,
        other => panic!("{other:?}"),
    }
}

fn result() -> Document {
    let id = JobId::from_text("a").unwrap();
    Document::not_run(id, "w", Reason::Internal, "e".to_owned())
}

/// A life of a head that takes the next request of the broker, or dies on the way. `acknowledged`: what the broker removes.
fn turn(place: &Place, broker: &mut Vec<Message>, dies: Option<u32>) -> Option<Taking> {
    let mut spool = place.spool();
    dies_after(dies);
    let taking = spool.try_head().and_then(|_| take(&mut spool, &broker[0]));
    dies_after(None);
    broker[0].redelivered = true;
    let taking = taking.ok()?;
    broker.remove(0);
    Some(taking)
}

#[test]
fn a_request_becomes_a_claim_once_wherever_heads_die() {
    let mut stories = 0;
    for subscription in [Some(5), None] {
        for first in 0..12 {
            for second in 0..12 {
                let place = Place::new();
                let mut broker = vec![
                    message(TEXT, 2, subscription, false),
                    message(TEXT, 3, subscription, false),
                ];
                let mut alive = Vec::new();
                for dies in [Some(first), Some(second), None, None, None] {
                    if broker.is_empty() {
                        break;
                    }
                    alive.extend(turn(&place, &mut broker, dies));
                }
                assert!(broker.is_empty());
                drop(alive);
                let claims = place.names("c-");
                assert_eq!(claims.len(), 2, "{subscription:?} {first} {second}");
                // nothing is left that does not count
                let mut head = place.head();
                assert_eq!(place.names("n-"), [""; 0]);
                let taken: Vec<String> = std::iter::from_fn(|| orphan(&mut head))
                    .map(|claim| {
                        claim.remove().unwrap();
                        name_of(&claim)
                    })
                    .collect();
                assert_eq!(taken, claims, "in their order");
                stories += 1;
            }
        }
    }
    assert_eq!(stories, 288);
}

#[test]
fn an_acknowledgement_that_was_lost_is_given_again() {
    for subscription in [Some(5), None] {
        let place = Place::new();
        let mut first = place.head();
        let claim = take_claim(&mut first, &message(TEXT, 2, subscription, false));
        claim.remove().unwrap();
        first.free_head();
        let mut second = place.head();
        let again = take(&mut second, &message(TEXT, 2, subscription, true)).unwrap();
        assert!(matches!(again, Taking::Before), "{again:?}");
        // published afresh, also under the same identifier
        becomes_a_claim(&mut second, &message(TEXT, 2, subscription, false));
    }
}

#[test]
fn with_identities_an_acknowledged_request_is_known_for_long() {
    let place = Place::new();
    let mut head = place.head();
    for packet_id in 2..=1501 {
        let claim = take_claim(&mut head, &message(TEXT, packet_id, Some(5), false));
        head.confirm().unwrap();
        claim.remove().unwrap();
    }
    for turns in 0..3 {
        for (packet_id, known) in [(1501, true), (502, true), (501, false)] {
            let again = message(TEXT, packet_id, Some(5), true);
            let taken = head.head.as_ref().unwrap();
            assert_eq!(taken.has(&again), known, "{packet_id} after {turns} turns");
            let other_session = message(TEXT, packet_id, Some(6), true);
            assert!(!taken.has(&other_session));
        }
        head.free_head();
        assert_eq!(head.try_head().unwrap(), Try::Ours);
    }
}

#[test]
fn without_identities_only_an_unconfirmed_request_is_known() {
    let place = Place::new();
    let mut head = place.head();
    becomes_a_claim(&mut head, &message(TEXT, 2, None, false));
    head.confirm().unwrap();
    head.free_head();
    let mut head = place.head();
    becomes_a_claim(&mut head, &message(TEXT, 2, None, true));
}

#[test]
fn identifiers_that_do_not_grow_tell_nothing() {
    let place = Place::new();
    let mut head = place.head();
    becomes_a_claim(&mut head, &message(TEXT, 2, None, false));
    head.confirm().unwrap();
    // each connection counts from 1: this one is another request with the same text
    becomes_a_claim(&mut head, &message(TEXT, 2, None, true));
    head.free_head();
    let mut head = place.head();
    becomes_a_claim(&mut head, &message(TEXT, 2, None, true));
}

#[test]
fn packet_identifier_1_tells_nothing() {
    for subscription in [Some(5), None] {
        let place = Place::new();
        let mut head = place.head();
        becomes_a_claim(&mut head, &message(TEXT, 1, subscription, false));
        // HiveMQ gives it to each request in turn: this may be another one
        becomes_a_claim(&mut head, &message(TEXT, 1, subscription, true));
    }
}

#[test]
fn a_new_session_forgets_what_was_taken() {
    for subscription in [Some(5), None] {
        let place = Place::new();
        let mut head = place.head();
        becomes_a_claim(&mut head, &message(TEXT, 2, subscription, false));
        head.new_session().unwrap();
        becomes_a_claim(&mut head, &message(TEXT, 2, subscription, true));
    }
}

#[test]
fn a_line_that_was_cut_short_is_none() {
    let place = Place::new();
    let mut head = place.head();
    let claim = take_claim(&mut head, &message(TEXT, 2, Some(5), false));
    claim.cancel();
    let name = name_of(&claim);
    drop(claim);
    head.free_head();
    let append = |name: &str, text: &str| {
        let path = place.pool().join(name);
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append("taken", "0000000000000001 5 3 00");
    append(&name, r#"{"res"#);
    let mut head = place.head();
    let claim = until_some(|| orphan(&mut head));
    assert_eq!(
        (claim.history.attempt.number, claim.is_cancelled()),
        (2, true)
    );
    becomes_a_claim(&mut head, &message(TEXT, 3, Some(5), false));
    head.free_head();
    let mut head = place.head();
    let again = take(&mut head, &message(TEXT, 3, Some(5), true)).unwrap();
    assert!(matches!(again, Taking::Before), "{again:?}");
}

#[test]
fn a_claim_counts_deaths_and_stops_by_itself() {
    let place = Place::new();
    let mut head = place.head();
    drop(take_claim(&mut head, &message(TEXT, 2, Some(5), false)));
    let attempt = |claim: &Claim| {
        let attempt = claim.history.attempt;
        (attempt.number, attempt.stops, attempt.follows)
    };
    let claim = until_some(|| orphan(&mut head));
    assert_eq!(attempt(&claim), (2, 0, Follows::Crash));
    claim.stopped(true);
    drop(claim);
    let claim = until_some(|| orphan(&mut head));
    assert_eq!(attempt(&claim), (2, 1, Follows::Stop));
    claim.given_back(Why::Stop);
    drop(claim);
    let claim = until_some(|| orphan(&mut head));
    assert_eq!(attempt(&claim), (2, 1, Follows::Stop));
    drop(claim);
    let claim = until_some(|| orphan(&mut head));
    assert_eq!(attempt(&claim), (3, 1, Follows::Crash));
}

#[test]
fn a_claim_whose_lock_is_held_belongs_to_somebody() {
    let place = Place::new();
    let mut head = place.head();
    let claim = take_claim(&mut head, &message(TEXT, 2, Some(5), false));
    assert!(orphan(&mut place.spool()).is_none());
    claim.let_steps_inherit().unwrap();
    let mut step = Command::new("sleep")
        .arg("60")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    drop(claim);
    assert!(orphan(&mut head).is_none(), "a step of a dead worker lives");
    step.kill().unwrap();
    step.wait().unwrap();
    // what other tests start at this moment may have inherited it, too
    let give_up = Instant::now() + Duration::from_secs(20);
    while orphan(&mut head).is_none() {
        assert!(Instant::now() < give_up, "nobody holds the lock");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_claim_that_waits_for_a_lock_waits_until_it_is_free() {
    let place = Place::new();
    let mut head = place.head();
    take_claim(&mut head, &message(TEXT, 2, Some(5), false)).given_back(Why::Lock);
    assert!(head.take_orphan(|_| true).unwrap().is_none());
    let Some(Orphan::Claim(claim)) = head.take_orphan(|_| false).unwrap() else {
        panic!("the lock is free");
    };
    assert_eq!(claim.history.attempt.number, 1);
    drop(claim);
    assert!(
        head.take_orphan(|_| true).unwrap().is_some(),
        "it died, and waits for nothing"
    );
}

#[test]
fn claims_of_one_directory_are_taken_in_their_order() {
    let place = Place::new();
    let mut head = place.head();
    let request = |id: &str, dir: &str| format!(r#"{{"id":"{id}","workDir":"{dir}"}}"#);
    let running = take_claim(&mut head, &message(&request("a", "x"), 2, None, false));
    for (packet_id, id) in [(3, "b"), (4, "c")] {
        let waiting = message(&request(id, "./x/"), packet_id, None, false);
        assert!(matches!(take(&mut head, &waiting).unwrap(), Taking::Waits));
    }
    let elsewhere = message(&request("d", "y"), 5, None, false);
    take_claim(&mut head, &elsewhere).remove().unwrap();
    assert!(orphan(&mut head).is_none());
    running.keep(&result());
    assert!(
        orphan(&mut head).is_none(),
        "it may still have its directory"
    );
    running.remove().unwrap();
    for id in ["b", "c"] {
        let claim = until_some(|| orphan(&mut head));
        assert_eq!(claim.history.request.id.as_str(), id);
        assert_eq!(claim.history.attempt, Attempt::FIRST);
        assert!(orphan(&mut head).is_none());
        // a request that comes now does not get ahead of them
        if id == "b" {
            let late = message(&request("e", "x"), 6, None, false);
            assert!(matches!(take(&mut head, &late).unwrap(), Taking::Waits));
        }
        claim.remove().unwrap();
    }
    assert_eq!(
        until_some(|| orphan(&mut head)).history.request.id.as_str(),
        "e"
    );
}

#[test]
fn a_claim_that_cannot_be_read_keeps_no_other_waiting() {
    let place = Place::new();
    let mut head = place.head();
    let name = name("c-", 1, &place.0.join("x"));
    std::fs::write(place.pool().join(name), "{\"version\":99}\n").unwrap();
    drop(take_claim(&mut head, &message(TEXT, 2, None, false)));
    until_some(|| orphan(&mut head));
}

#[test]
fn a_final_document_is_kept_and_found() {
    let place = Place::new();
    let mut head = place.head();
    let claim = take_claim(&mut head, &message(TEXT, 2, Some(5), false));
    assert_eq!(claim.keep(&result()), Kept::Yes);
    drop(claim);
    let claim = until_some(|| orphan(&mut head));
    let kept: serde_json::Value =
        serde_json::from_slice(claim.history.result.as_ref().unwrap()).unwrap();
    assert_eq!(
        (kept["id"].as_str(), kept["error"].as_str()),
        (Some("a"), Some("e"))
    );
    assert_eq!(claim.history.attempt.number, 1, "publishing is no attempt");
    claim.remove().unwrap();
    assert!(orphan(&mut head).is_none());
}

#[test]
fn a_claim_that_was_published_and_not_removed_is_not_published_again() {
    let place = Place::new();
    let mut head = place.head();
    let claim = take_claim(&mut head, &message(TEXT, 2, Some(5), false));
    claim.keep(&result());
    let path = claim.path();
    drop(claim);
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(b"\"published\"\n").unwrap();
    assert!(orphan(&mut head).is_none());
    assert!(!path.exists());
}

#[test]
fn a_claim_that_another_worker_has_is_left_to_it() {
    let place = Place::new();
    let mut head = place.head();
    let claim = take_claim(&mut head, &message(TEXT, 2, Some(5), false));
    // as a network drive does that was away for long: the lock is another's
    let path = claim.path();
    let copy = place.pool().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert!(!claim.is_ours());
    assert_eq!(claim.keep(&result()), Kept::Lost);
    assert!(claim.remove().is_err());
    assert!(path.exists());
}

#[test]
fn a_claim_that_was_taken_over_and_freed_is_not_ours() {
    let place = Place::new();
    let mut head = place.head();
    let claim = take_claim(&mut head, &message(TEXT, 2, Some(5), false));
    let path = claim.path();
    let mut file = File::options().append(true).open(path).unwrap();
    file.write_all(b"{\"taken\":\"another\"}\n").unwrap();
    assert!(!claim.is_ours());
}

#[test]
fn damaged_claims_stop_nobody() {
    let place = Place::new();
    let mut head = place.head();
    head.free_head();
    for name in ["c-000", "n-000"] {
        std::fs::create_dir(place.pool().join(name)).unwrap();
    }
    assert_eq!(head.try_head().unwrap(), Try::Ours);
    for (number, text) in ["", "{", "no json\n", "{\"version\":1}\n"]
        .iter()
        .enumerate()
    {
        std::fs::write(place.pool().join(format!("c-{number:016x}")), text).unwrap();
    }
    let good = take_claim(&mut head, &message(TEXT, 2, Some(5), false));
    drop(good);
    for _ in 0..4 {
        let damaged = head.take_orphan(|_| false).unwrap();
        assert!(
            matches!(damaged, Some(Orphan::Damaged { .. })),
            "{damaged:?}"
        );
    }
    until_some(|| orphan(&mut head));
    assert_eq!(place.names("bad-").len(), 4);
}

#[test]
fn a_damaged_claim_that_cannot_be_put_aside_stops_nobody() {
    let place = Place::new();
    let mut head = place.head();
    std::fs::write(place.pool().join("c-0000000000000001-x"), "junk").unwrap();
    std::fs::create_dir(place.pool().join("bad-0000000000000001-x")).unwrap();
    drop(take_claim(&mut head, &message(TEXT, 2, None, false)));
    until_some(|| orphan(&mut head));
}

#[test]
fn a_claim_from_the_end_of_time_makes_no_two_names_equal() {
    let place = Place::new();
    let mut head = place.head();
    let stray = place.pool().join("c-ffffffffffffffff-x");
    std::fs::write(stray, "{\"version\":9}\n").unwrap();
    for packet_id in [2, 3, 4] {
        becomes_a_claim(&mut head, &message(TEXT, packet_id, None, false));
    }
    assert_eq!(place.names("c-").len(), 4);
}

#[test]
fn a_claim_of_another_version_is_left_alone() {
    let place = Place::new();
    let mut head = place.head();
    let path = place.pool().join("c-0000000000000001");
    let text = "{\"version\":2,\"what\":\"ever\"}\n";
    std::fs::write(&path, text).unwrap();
    assert!(orphan(&mut head).is_none());
    assert_eq!(std::fs::read_to_string(path).unwrap(), text);
}

#[test]
fn a_key_in_progress_makes_no_second_claim() {
    let place = Place::new();
    let mut head = place.head();
    let claim = take_claim(&mut head, &message(KEYED, 2, Some(5), false));
    let again = take(&mut head, &message(KEYED, 3, Some(5), false)).unwrap();
    assert!(matches!(again, Taking::InProgress), "{again:?}");
    // its controller waits for a result under another id
    let other_id = KEYED.replace(r#""id":"a""#, r#""id":"b""#);
    becomes_a_claim(&mut head, &message(&other_id, 4, Some(5), false));
    // its answer may have been published by now, so the next one gets an answer of its own
    claim.keep(&result());
    becomes_a_claim(&mut head, &message(KEYED, 5, Some(5), false));
}

#[test]
fn one_worker_is_the_head() {
    let place = Place::new();
    let head = place.head();
    let holder = Holder {
        worker: "w".to_owned(),
        host: host::name().to_owned(),
    };
    assert_eq!(place.spool().try_head().unwrap(), Try::Held(holder));
    drop(head);
    place.head();
    // whoever has locked a file that is gone has locked nothing
    let mut head = place.head();
    std::fs::remove_file(place.pool().join(LOCK)).unwrap();
    assert!(take(&mut head, &message(TEXT, 2, Some(5), false)).is_err());
    place.head();
}

#[test]
fn who_watches_is_told_when_the_head_leaves_and_not_before() {
    let place = Place::new();
    let mut head = place.head();
    let mut other = place.spool();
    let (tell, told) = std::sync::mpsc::channel();
    let watch = other.watch(move || tell.send(()).unwrap()).unwrap();
    assert!(matches!(other.try_head().unwrap(), Try::Held(_)));
    assert!(told.try_recv().is_err());
    for _ in 0..100 {
        head.free_head();
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        // the one try that it is worth must not come too early
        assert_eq!(other.try_head().unwrap(), Try::Ours);
        other.free_head();
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(head.try_head().unwrap(), Try::Ours);
    }
    drop(watch);
    head.free_head();
    let error = told.recv_timeout(Duration::from_secs(10)).unwrap_err();
    assert_eq!(error, std::sync::mpsc::RecvTimeoutError::Disconnected);
}

#[test]
fn a_head_that_loses_its_lock_while_it_takes_a_request_does_not_count_it() {
    for steps in 0..4 {
        let place = Place::new();
        let mut hung = place.head();
        LOSES_LOCK.set(Some((steps, place.pool().join(LOCK))));
        let request = message(TEXT, 2, Some(5), false);
        let taken = take(&mut hung, &request);
        assert!(taken.is_err(), "after {steps} steps: {taken:?}");
        // the broker gives it to the other head
        becomes_a_claim(&mut place.head(), &message(TEXT, 2, Some(5), true));
    }
    LOSES_LOCK.set(None);
}

#[test]
fn members_must_agree() {
    let place = Place::new();
    let first = place.spool();
    assert_eq!(place.spool().id(), first.id());
    let error = place.try_open("other", PayloadSteps::Allow).unwrap_err();
    assert!(error.contains("MQTT_TOPIC_ROOT \"jobs\""), "{error}");
    let error = place.try_open("jobs", PayloadSteps::Deny).unwrap_err();
    assert!(error.contains("JOB_PAYLOAD_STEPS \"allow\""), "{error}");
    let text = std::fs::read_to_string(place.pool().join(DESCRIPTION)).unwrap();
    let newer = text.replace("\"version\":1", "\"version\":2");
    std::fs::write(place.pool().join(DESCRIPTION), newer).unwrap();
    let error = place.try_open("jobs", PayloadSteps::Allow).unwrap_err();
    assert!(error.contains("version 2"), "{error}");
}

#[test]
fn many_members_come_at_once_and_agree_on_one_pool() {
    let place = Place::new();
    let ids: BTreeSet<String> = std::thread::scope(|scope| {
        let members: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| place.spool().id().to_owned()))
            .collect();
        members
            .into_iter()
            .map(|member| member.join().unwrap())
            .collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
}
