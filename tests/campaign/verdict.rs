//! What the notes of a campaign say of each promise: nothing lost, nothing stale, nothing run twice without cause.

mod pool;

use super::wire::{Event, Packet};
use super::{Broker, Crowd, End, LAST, Life, MAX_ATTEMPTS, Request, Requests};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

/// How long after a crash of the broker a worker may not have subscribed yet.
const ABSENCE: Duration = Duration::from_secs(5);

/// The request that a result says it belongs to.
pub fn token_of(result: &Value, requests: &Requests) -> Option<String> {
    let key = result["key"].as_str();
    let key = key.and_then(|key| key.strip_prefix("key of "));
    let step = result["steps"][0]["name"].as_str();
    let token = step.or(key)?;
    assert!(
        key.is_none_or(|key| key == token),
        "the key of one request and the step of another: {result}"
    );
    requests.contains_key(token).then(|| token.to_owned())
}

/// The request of the process that published a result which names none: nothing was run for it.
pub fn token_held(result: &Value, events: &[Event]) -> Option<String> {
    let event = events.iter().find(
        |event| matches!(&event.packet, Packet::Result { document, .. } if document == result),
    )?;
    if let Packet::Result {
        claim: Some(claim), ..
    } = &event.packet
    {
        return Some(claim.token.clone());
    }
    let mut given = events.iter().filter(|other| other.life == event.life);
    given.find_map(|event| match &event.packet {
        Packet::Request { token, .. } => Some(token.clone()),
        _ => None,
    })
}

/// The requests that were claims of a pool when something went over the wire.
pub fn claimed(events: &[Event]) -> BTreeSet<String> {
    let claims = events
        .iter()
        .filter_map(|event| pool::claim_in(&event.packet));
    claims.map(|claim| claim.token.clone()).collect()
}

/// All that was noted.
pub struct Evidence<'a> {
    pub crowd: Crowd,
    pub requests: &'a Requests,
    pub lives: &'a BTreeMap<usize, Life>,
    pub events: &'a [Event],
    pub marks: &'a str,
    /// When the broker was killed.
    pub crashes: &'a [Instant],
    /// When a link was cut.
    pub cuts: &'a [Instant],
    pub memory: Broker,
}

/// Why a request was run once more.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Cause {
    /// A kill or a stop had ended the run before.
    Interrupted,
    /// The controller had published the request again.
    PublishedAgain,
    /// The acknowledgement got lost, and the redelivery could not be known to be one (MQTT 3.1.1).
    Doubtful,
    /// The acknowledgement got lost, and another request had run in the directory, where the result would be.
    Overwritten,
    /// The broker had lost the acknowledgement in a crash.
    GoneBack,
}

/// The campaign in numbers.
#[derive(Default)]
pub struct Verdict {
    succeeded: usize,
    given_up: usize,
    /// Requests that were given up for what happened to another one, which could not be told from it (MQTT 3.1.1).
    given_up_for_others: usize,
    runs: usize,
    again: BTreeMap<Cause, usize>,
    repeated_results: usize,
    /// Ended as failed since its step was killed.
    step_killed: usize,
    /// A request that ran in a directory before one for it that was published earlier.
    overtaken: usize,
    stale: usize,
    pub violations: Vec<String>,
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let again = |cause| self.again.get(&cause).copied().unwrap_or(0);
        write!(
            f,
            "{} succeeded, {} given up after {MAX_ATTEMPTS} attempts, {} after those of another request, {} failed by a killed step, \
             {} runs, of these after a kill or stop in mid-run {}, published again by the controller {}, \
             doubtful redelivery {}, redelivery after another run in the directory {}, after the broker had gone back {}; \
             {} results twice; {} overtaken in their directory; {} stale; {} violations",
            self.succeeded,
            self.given_up,
            self.given_up_for_others,
            self.step_killed,
            self.runs,
            again(Cause::Interrupted),
            again(Cause::PublishedAgain),
            again(Cause::Doubtful),
            again(Cause::Overwritten),
            again(Cause::GoneBack),
            self.repeated_results,
            self.overtaken,
            self.stale,
            self.violations.len()
        )
    }
}

/// A start of a step.
#[derive(Clone, Copy, Debug)]
struct Start<'a> {
    /// Its place among all marks.
    place: usize,
    token: &'a str,
    life: usize,
    attempt: u64,
}

fn any_between(times: &[Instant], from: Instant, to: Instant) -> bool {
    times.iter().any(|time| from <= *time && *time <= to)
}

/// What went over the wire for one process of a worker.
#[derive(Debug, Default)]
struct Wire {
    /// The first request on each connection: the one that the process may hold.
    held: Vec<String>,
    results: usize,
    /// Some connection spoke MQTT 3.1.1.
    old_protocol: bool,
    /// The result says which request it belongs to. It does not either where the request was queued for a subscription
    /// that was made over 3.1.1, as by a worker that took a connection which was cut in its greeting for such a broker.
    identified: bool,
    /// When it acknowledged.
    acknowledged: Option<Instant>,
}

impl Evidence<'_> {
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let wires: BTreeMap<usize, Wire> = self
            .lives
            .keys()
            .map(|life| {
                let wire = match self.crowd {
                    Crowd::Loners => self.read_wire(*life, &mut verdict),
                    Crowd::Pool => self.read_member(*life, &mut verdict),
                };
                (*life, wire)
            })
            .collect();
        let starts = self.read_marks(&mut verdict);
        verdict.runs = starts.len();
        if self.crowd == Crowd::Pool {
            self.check_order(&starts, &mut verdict);
        }
        for (token, request) in self.requests {
            let case = Case {
                notes: self,
                wires: &wires,
                starts: &starts,
                token,
                request,
            };
            if let Err(problem) = case.judge(&mut verdict) {
                self.violation(&mut verdict, token, &problem);
            }
        }
        verdict
    }

    fn violation(&self, verdict: &mut Verdict, token: &str, problem: &str) {
        // the first ones in full
        let story = match verdict.violations.len() {
            0..3 => self.timeline(token),
            _ => String::new(),
        };
        let violation = format!("{token}: {problem}{story}");
        verdict.violations.push(violation);
    }

    /// Checks that a process publishes the result of the request that it holds, and acknowledges that one and then.
    fn read_wire(&self, life: usize, verdict: &mut Verdict) -> Wire {
        let mut wire = Wire::default();
        let mut given: BTreeMap<(usize, u16), &str> = BTreeMap::new();
        let mut published: Option<String> = None;
        let mut arrived = false;
        for event in self.events.iter().filter(|event| event.life == life) {
            match &event.packet {
                Packet::Request {
                    packet_id, token, ..
                } => {
                    if given.keys().all(|(other, _)| *other != event.connection) {
                        wire.held.push(token.clone());
                    }
                    given.insert((event.connection, *packet_id), token);
                }
                Packet::Result { document, .. } => {
                    wire.results += 1;
                    wire.identified = document["origin"].is_string();
                    // where nothing was run the result may name nothing
                    let token = token_of(document, self.requests)
                        .or_else(|| wire.held.first().cloned())
                        .unwrap_or_default();
                    if !wire.held.contains(&token) {
                        verdict.stale += 1;
                        let problem = format!(
                            "stale: process {life} was given {:?} and published the result of {token}",
                            wire.held
                        );
                        self.violation(verdict, &wire.held.join(" "), &problem);
                    }
                    published = Some(token);
                }
                Packet::ResultAck { .. } => arrived = true,
                Packet::RequestAck { packet_id, .. } => {
                    let acknowledged = given.get(&(event.connection, *packet_id)).copied();
                    let token = acknowledged.unwrap_or_default();
                    wire.acknowledged = Some(event.at);
                    if !arrived || published.as_deref() != Some(token) {
                        let problem = format!(
                            "acknowledged by process {life}, which had published {published:?}"
                        );
                        self.violation(verdict, token, &problem);
                    }
                }
                Packet::Connect { level } => wire.old_protocol |= *level == 4,
                Packet::End | Packet::Subscribed | Packet::Trapped(_) => {}
            }
        }
        if self.lives[&life].end == End::Done && wire.results == 0 {
            let problem = format!("process {life} ended with 0 and no result");
            self.violation(verdict, &wire.held.join(" "), &problem);
        }
        wire
    }

    fn read_marks(&self, verdict: &mut Verdict) -> Vec<Start<'_>> {
        let mut starts = Vec::new();
        for (place, line) in self.marks.lines().enumerate() {
            let mut words = line.split(' ');
            let (kind, token) = (words.next(), words.next().unwrap_or_default());
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            match (kind, number(), number()) {
                (Some("start"), Some(life), Some(attempt)) => starts.push(Start {
                    place,
                    token,
                    life: life as usize,
                    attempt,
                }),
                (Some("end"), Some(_), None) => {}
                (Some("journal"), Some(_), None) => {
                    let problem = format!("another journal in its directory while it ran: {line}");
                    self.violation(verdict, token, &problem);
                }
                (Some("overlap"), ..) => {
                    self.violation(verdict, token, &format!("two runs at once: {line}"));
                }
                _ => self.violation(verdict, token, &format!("a mark: {line}")),
            }
        }
        starts
    }
}

/// One request, and all that was noted.
struct Case<'a> {
    notes: &'a Evidence<'a>,
    wires: &'a BTreeMap<usize, Wire>,
    starts: &'a [Start<'a>],
    token: &'a str,
    request: &'a Request,
}

impl Case<'_> {
    fn judge(&self, verdict: &mut Verdict) -> Result<(), String> {
        let results = &self.request.results;
        let Some(last) = results.last() else {
            return Err("no result".into());
        };
        if self.request.id.starts_with(LAST) {
            return Ok(());
        }
        let own: Vec<&Start> = self
            .starts
            .iter()
            .filter(|start| start.token == self.token)
            .collect();
        let mut copies = self.copies();
        let mut doubts = match self.notes.crowd {
            Crowd::Loners => Vec::new(),
            Crowd::Pool => self.doubts(),
        };
        let mut anew = 0;
        for pair in own.windows(2) {
            let cause = self.explain(pair[0], pair[1], &mut copies, &mut doubts)?;
            anew += usize::from(cause != Cause::Interrupted);
            *verdict.again.entry(cause).or_default() += 1;
        }

        let (mut runs, mut given_up) = (BTreeSet::new(), BTreeSet::new());
        for result in results {
            self.check_result(result, &own, verdict)?;
            let identity = |field: &str| result[field].as_str().unwrap_or_default().to_owned();
            match result["startedAt"].is_null() {
                true => given_up.insert(identity("finishedAt")),
                false => runs.insert(identity("startedAt")),
            };
        }
        verdict.repeated_results += results.len() - runs.len() - given_up.len();
        // a request that is run anew has another result; so has one that was given up, over 3.1.1, or where another run has
        // taken the place of the journal that said so
        let anew = anew + self.request.published.len() - 1;
        let given_up = given_up.len();
        let overwritten = own
            .windows(2)
            .filter(|pair| self.is_overwritten(pair[0], pair[1]))
            .count();
        let most = 1 + anew + overwritten;
        if runs.len() > most
            || given_up > most
            || runs.len() + given_up > 1 + anew && !self.unknown() && overwritten == 0
        {
            return Err(format!("results of several runs: {results:#?}"));
        }
        match (last["status"].as_str(), last["reason"].as_str()) {
            (Some("success"), _) => verdict.succeeded += 1,
            (_, Some("step")) => verdict.step_killed += 1,
            _ => verdict.given_up += 1,
        }
        match self.notes.crowd {
            Crowd::Loners => self.check_publications(),
            Crowd::Pool => self.check_publications_in_pool(),
        }
    }

    /// How many copies of the request the broker may have had beside the first.
    fn copies(&self) -> usize {
        // what was published on either side of a crash may be there twice
        let published = &self.request.published;
        let doubtful = published
            .iter()
            .filter(|(from, to)| any_between(self.notes.crashes, *from, *to))
            .count();
        published.len() - 1 + doubtful
    }

    fn explain(
        &self,
        earlier: &Start,
        later: &Start,
        copies: &mut usize,
        doubts: &mut Vec<Cause>,
    ) -> Result<Cause, String> {
        let life = &self.notes.lives[&earlier.life];
        let results = self.wires[&earlier.life].results;
        let story = format!(
            "run by process {} ({:?}, {results} results) and again by process {}",
            earlier.life, life.end, later.life
        );
        if earlier.life == later.life {
            return Err(format!("{story}: twice in one process"));
        }
        if results == 0 && life.end != End::Done && !self.was_over(life, later) {
            return Ok(Cause::Interrupted);
        }
        let overwritten = self.is_overwritten(earlier, later);
        let had_result = self.request.key.is_some() && !overwritten;
        let is_member = self.notes.crowd == Crowd::Pool;
        if had_result && !is_member {
            return Err(format!("{story}: its key had a result"));
        }
        if *copies > 0 {
            *copies -= 1;
            return Ok(Cause::PublishedAgain);
        }
        if is_member {
            return match doubts.pop() {
                Some(cause) if !had_result => Ok(cause),
                Some(_) => Err(format!("{story}: its key had a result")),
                None => Err(format!("{story}: without cause")),
            };
        }
        let (from, to) = (life.started, self.notes.lives[&later.life].started);
        let crashed = any_between(self.notes.crashes, from, to);
        let redelivered = self
            .wires
            .range(earlier.life + 1..)
            .find(|(_, wire)| wire.held.iter().any(|held| held == self.token))
            .map_or(to, |(life, _)| self.notes.lives[life].started);
        let (earlier, later) = (&self.wires[&earlier.life], &self.wires[&later.life]);
        // the acknowledgement of a process that ends may be on its way when the next one connects
        let on_its_way = earlier.acknowledged.is_none_or(|at| at >= redelivered);
        let lost = life.end != End::Done
            || crashed
            || on_its_way
            || any_between(self.notes.cuts, from, to);
        let unknown = later.old_protocol || !earlier.identified;
        match lost {
            true if unknown => Ok(Cause::Doubtful),
            true if overwritten => Ok(Cause::Overwritten),
            true if crashed => Ok(Cause::GoneBack),
            _ => Err(format!("{story}: without cause")),
        }
    }

    /// Whether another run in the directory has taken the place of the journal between these two.
    fn is_overwritten(&self, earlier: &Start, later: &Start) -> bool {
        let requests = self.notes.requests;
        let is_other = |token: &str| {
            let other = requests.get(token).filter(|_| token != self.token);
            other.is_some_and(|other| other.id == self.request.id)
        };
        let mut between = self.starts.iter();
        let has_left_a_mark = between.any(|start| {
            earlier.place < start.place && start.place < later.place && is_other(start.token)
        });
        // one that ends between its journal and its step leaves none
        let lives = &self.notes.lives;
        let (from, to) = (lives[&earlier.life].started, lives[&later.life].ended);
        has_left_a_mark
            || self.wires.iter().any(|(life, wire)| {
                let life = &lives[life];
                let is_between = life.started <= to && from <= life.ended;
                is_between && life.end != End::Done && wire.held.iter().any(|it| is_other(it))
            })
    }

    fn check_result(
        &self,
        result: &Value,
        own: &[&Start],
        verdict: &mut Verdict,
    ) -> Result<(), String> {
        if result["id"] != self.request.id.as_str() {
            return Err(format!("a result of another id: {result}"));
        }
        if self.request.key.is_some() && result["key"].is_null() {
            return Err(format!("a result without the key: {result}"));
        }
        let attempt = result["attempt"].as_u64().unwrap_or_default();
        match (result["status"].as_str(), result["reason"].as_str()) {
            (Some("success"), _) => {
                let ended = |start: &&Start| {
                    let end = format!("end {} {}", self.token, start.life);
                    start.attempt == attempt && self.notes.marks.lines().any(|line| line == end)
                };
                match own.iter().any(ended) {
                    true => Ok(()),
                    false => Err(format!("success of a run that has no end: {result}")),
                }
            }
            (Some("failed"), Some("step"))
                if result["steps"][0]["signal"] == "SIGKILL" && self.is_of_killed_step(result) =>
            {
                Ok(())
            }
            // without a number where even giving up has failed
            (Some("failed"), Some("interrupted"))
                if attempt == MAX_ATTEMPTS
                    || self.notes.crowd == Crowd::Pool && result["attempt"].is_null() =>
            {
                let kills = self.kills();
                match kills < MAX_ATTEMPTS {
                    true if !self.unknown() => {
                        return Err(format!("given up after {kills} kills: {result}"));
                    }
                    true => verdict.given_up_for_others += 1,
                    false => {}
                }
                Ok(())
            }
            _ => Err(format!("ended as {result}")),
        }
    }

    /// Whether the worker of a result is one of which a step was killed.
    fn is_of_killed_step(&self, result: &Value) -> bool {
        let held = |life: &usize| self.wires[life].held.iter().any(|held| held == self.token);
        let mut lives = self.notes.lives.iter();
        lives.any(|(life, how)| how.step_killed && result["worker"] == how.worker && held(life))
    }

    /// Whether some worker could not tell requests apart.
    fn unknown(&self) -> bool {
        self.request.key.is_none() && self.wires.values().any(|wire| wire.old_protocol)
    }

    /// How many processes that held the request were killed.
    fn kills(&self) -> u64 {
        let ran = |life: &usize| {
            let own = |start: &&Start| start.token == self.token && start.life == *life;
            self.starts.iter().any(|start| own(&start))
        };
        let killed = self.notes.lives.iter().filter(|(life, how)| {
            let held = &self.wires[*life].held;
            how.end == End::Killed && (held.iter().any(|held| held == self.token) || ran(life))
        });
        killed.count() as u64
    }

    /// Had no broker crashed, nothing would have been published again.
    fn check_publications(&self) -> Result<(), String> {
        let published = &self.request.published;
        // a broker that forgets keeps nothing until the worker has subscribed anew
        let before = match self.notes.memory {
            Broker::Remembers => Duration::ZERO,
            Broker::Forgets => ABSENCE,
        };
        for (from, _) in &published[..published.len() - 1] {
            let lost = |crash: &Instant| *crash + before >= *from;
            if !self.notes.crashes.iter().any(lost) {
                return Err("lost though the broker did not crash".into());
            }
        }
        Ok(())
    }
}
