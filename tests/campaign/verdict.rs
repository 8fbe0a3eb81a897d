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
    let is_it = |event: &&Event| matches!(&event.packet, Packet::Result { document, .. } if document == result);
    let event = events.iter().find(is_it)?;
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
    let claims = events.iter();
    let claims = claims.filter_map(|event| pool::claim_in(&event.packet));
    claims.map(|claim| claim.token.clone()).collect()
}

/// All that was noted.
#[derive(Clone)]
pub struct Evidence {
    pub crowd: Crowd,
    pub memory: Broker,
    pub requests: Requests,
    pub lives: BTreeMap<usize, Life>,
    pub events: Vec<Event>,
    pub marks: String,
    /// When the broker was killed.
    pub crashes: Vec<Instant>,
    /// When a link was cut.
    pub cuts: Vec<Instant>,
}

/// Why a request was run once more.
type Cause = &'static str;

/// A kill or a stop had ended the run before.
const INTERRUPTED: Cause = "run again after a kill or stop in mid-run";
/// The controller had published the request again.
const PUBLISHED_AGAIN: Cause = "run again as the controller had published again";
/// The acknowledgement got lost, and the redelivery could not be known to be one (MQTT 3.1.1).
const DOUBTFUL: Cause = "run again in doubt";
/// The acknowledgement got lost, and another request had run in the directory, where the result would be.
const OVERWRITTEN: Cause = "run again after another run in the directory";
/// The broker had lost the acknowledgement in a crash.
const GONE_BACK: Cause = "run again after the broker had gone back";

/// The campaign in numbers, and what must not be.
#[derive(Default)]
pub struct Verdict {
    counts: BTreeMap<&'static str, usize>,
    pub violations: Vec<String>,
}

impl Verdict {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.counts {
            write!(f, "{count} {what}, ")?;
        }
        write!(f, "{} violations", self.violations.len())
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

impl Evidence {
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let taken = self.taken();
        let mut read = |life: &usize| (*life, self.read_wire(*life, &taken, &mut verdict));
        let wires: BTreeMap<usize, Wire> = self.lives.keys().map(&mut read).collect();
        let starts = self.read_marks(&mut verdict);
        verdict.counts.insert("runs", starts.len());
        if self.crowd == Crowd::Pool {
            self.check_order(&taken, &starts, &mut verdict);
        }
        for (token, request) in &self.requests {
            let case = Case {
                notes: self,
                wires: &wires,
                starts: &starts,
                token,
                request,
            };
            if let Err(problem) = case.judge(&mut verdict) {
                self.violation(&mut verdict, &[token], &problem);
            }
        }
        verdict
    }

    /// The same with something in it that must not be, and the words in which a verdict tells that: one that cannot fail is worth nothing.
    pub fn forged(&self) -> Vec<(&'static str, Self)> {
        let forge = |words, change: &dyn Fn(&mut Self)| {
            let mut forged = self.clone();
            change(&mut forged);
            (words, forged)
        };
        let lose = |it: &mut Self| it.requests.values_mut().for_each(|it| it.results.clear());
        let run_again = |it: &mut Self| {
            // more often than faults can be the cause of
            let again = |(number, mark): (usize, &str)| {
                let words: Vec<&str> = mark.split(' ').collect();
                let lives = match words[..] {
                    ["end", _, life] if number < 100 => 1 + life.parse::<usize>().unwrap()..,
                    _ => usize::MAX..,
                };
                let later = self.lives.range(lives).take(30);
                let later = later.map(|(life, _)| format!("start {} {life} 1\n", words[1]));
                format!("{mark}\n{}", later.collect::<String>())
            };
            it.marks = self.marks.lines().enumerate().map(again).collect();
        };
        let mix_up = |it: &mut Self| {
            let mut before = Value::Null;
            for event in &mut it.events {
                if let Packet::Result { document, .. } = &mut event.packet {
                    std::mem::swap(document, &mut before);
                }
            }
        };
        let turn_around = |it: &mut Self| {
            let published = self.requests.values().rev().map(|it| it.published.clone());
            let requests = it.requests.values_mut().zip(published);
            requests.for_each(|(request, published)| request.published = published);
        };
        let mut all = vec![
            forge("no result", &lose),
            forge("and again by process", &run_again),
            forge("stale", &mix_up),
        ];
        if self.crowd == Crowd::Pool {
            all.push(forge("published later", &turn_around));
        }
        all
    }

    /// Notes what must not be with requests. The first ones come in full.
    fn violation(&self, verdict: &mut Verdict, tokens: &[&str], problem: &str) {
        let story = match verdict.violations.len() {
            0..3 => self.timeline(tokens),
            _ => String::new(),
        };
        let violation = format!("{tokens:?}: {problem}{story}");
        verdict.violations.push(violation);
    }

    /// Checks that a process publishes the result of the request that it holds, and acknowledges that one and then. A member
    /// acknowledges what is a claim, publishes what the claim has, and keeps the claim until the broker has that.
    fn read_wire(&self, life: usize, taken: &BTreeMap<&str, &str>, verdict: &mut Verdict) -> Wire {
        let (how, is_member) = (&self.lives[&life], self.crowd == Crowd::Pool);
        let mut wire = Wire::default();
        let (mut published, mut has_arrived) = (None, false);
        let mut connections = BTreeSet::new();
        for event in self.events.iter().filter(|event| event.life == life) {
            let lives_on = how.end != End::Killed && event.at <= how.ended;
            let (token, problem) = match &event.packet {
                Packet::Connect { level } => {
                    wire.old_protocol |= *level == 4;
                    continue;
                }
                Packet::Request { token, .. } => {
                    if connections.insert(event.connection) && !is_member {
                        wire.held.push(token.clone());
                    }
                    continue;
                }
                Packet::Result { document, claim } => {
                    wire.results += 1;
                    wire.identified = document["origin"].is_string();
                    let claimed = claim.as_ref().map(|claim| claim.token.clone());
                    let token = claimed.or_else(|| token_of(document, &self.requests));
                    // where nothing was run the result may name nothing
                    let token = token.or_else(|| wire.held.first().cloned());
                    let token = token.unwrap_or_default();
                    let is_held = wire.held.contains(&token);
                    let problem = match is_member {
                        true => self.wrong_result(document, claim.as_ref(), lives_on),
                        false => (!is_held).then_some("stale: the process was not given it"),
                    };
                    if is_member && !is_held {
                        wire.held.push(token.clone());
                    }
                    published = Some(token.clone());
                    (token, problem)
                }
                Packet::ResultAck {
                    of_result: Some(document),
                    claim: None,
                    ..
                } if is_member && lives_on => (
                    token_of(document, &self.requests).unwrap_or_default(),
                    Some("its claim is removed, and the broker does not have its result"),
                ),
                Packet::ResultAck { .. } => {
                    has_arrived = true;
                    continue;
                }
                Packet::RequestAck { token, claim } => {
                    wire.acknowledged = Some(event.at);
                    let is_due = has_arrived && published.as_ref() == Some(token);
                    let problem = match is_member {
                        true => (claim.is_none() && !self.was_claim(token, event.at))
                            .then_some("acknowledged, and it is no claim"),
                        false => (!is_due).then_some("acknowledged before it had its result"),
                    };
                    (token.clone(), problem)
                }
                Packet::End | Packet::Subscribed | Packet::Trapped(_) => continue,
            };
            if let Some(problem) = problem {
                if problem.starts_with("stale") {
                    verdict.count("stale");
                }
                let problem = format!("{problem} (process {life})");
                self.violation(verdict, &[&token], &problem);
            }
        }
        if is_member {
            // it says so when it takes one
            let taken = taken
                .iter()
                .filter(|(claim, _)| how.stderr.contains(**claim));
            wire.held
                .extend(taken.map(|(_, token)| (*token).to_owned()));
        }
        if how.end == End::Done && wire.results == 0 {
            let held: Vec<&str> = wire.held.iter().map(String::as_str).collect();
            let problem = format!("process {life} ended with 0 and no result");
            self.violation(verdict, &held, &problem);
        }
        wire
    }

    /// All that has to do with some requests, one line a moment.
    pub fn timeline(&self, tokens: &[&str]) -> String {
        let about = |text: &str| tokens.iter().any(|token| text.contains(token));
        // what else ran in the directory may have taken the place of the journal
        let id_of = |token: &str| Some(&self.requests.get(token)?.id);
        let ids: BTreeSet<_> = tokens.iter().filter_map(|token| id_of(token)).collect();
        let of_directory = |mark: &&str| {
            let id = mark.split(' ').nth(1).and_then(id_of);
            id.is_some_and(|id| ids.contains(id))
        };
        let marks: Vec<&str> = self.marks.lines().filter(of_directory).collect();

        // when, by which process, and what
        let mut lines: Vec<(Instant, Option<usize>, String)> = Vec::new();
        for (token, request) in self.requests.iter().filter(|(token, _)| about(token)) {
            let (id, key) = (&request.id, &request.key);
            for (from, to) in &request.published {
                let line = format!("controller: publishes {token} for {id}, {key:?}");
                lines.push((*from, None, line));
                lines.push((*to, None, format!("controller: the broker has {token}")));
            }
        }
        let crashes = self.crashes.iter().map(|at| (*at, "the broker is killed"));
        let faults = crashes.chain(self.cuts.iter().map(|at| (*at, "a link is cut")));
        lines.extend(faults.map(|(at, what)| (at, None, format!("-- {what}"))));
        for (number, life) in &self.lives {
            let (name, end, left) = (life.worker, life.end, &life.left);
            let who = format!("{name}, process {number}");
            lines.push((life.started, Some(*number), format!("{who}: starts")));
            let line = format!("{who}: {end:?}, {} marks so far, left {left:?}", life.marks);
            lines.push((life.ended, Some(*number), line));
        }
        lines.extend(self.events.iter().map(|event| {
            let (life, connection, packet) = (event.life, event.connection, &event.packet);
            let line = format!("process {life}, connection {connection}: {packet:?}");
            (event.at, Some(life), line)
        }));
        let mentions = lines.iter().filter(|(.., line)| about(line));
        let mut lives: BTreeSet<usize> = mentions.filter_map(|(_, life, _)| *life).collect();
        let runs = marks.iter().filter(|mark| about(mark));
        lives.extend(runs.filter_map(|mark| mark.split(' ').nth(2)?.parse::<usize>().ok()));
        lines.retain(|(_, life, _)| life.is_none_or(|life| lives.contains(&life)));
        lines.sort_by_key(|(at, ..)| *at);

        let zero = self.lives.values().map(|life| life.started).min();
        let mut story = String::from("\n  its timeline:");
        for (at, _, line) in lines {
            let after = at.saturating_duration_since(zero.unwrap_or(at));
            story += &format!("\n  {:10.1} ms  {line}", after.as_secs_f64() * 1000.0);
        }
        story += &format!("\n  marks of its directory: {}", marks.join("; "));
        for (number, life) in self.lives.iter().filter(|(it, _)| lives.contains(it)) {
            let log = life.stderr.replace('\n', "\n    | ");
            story += &format!("\n  log of {}, process {number}:\n    | {log}", life.worker);
        }
        story
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
                    self.violation(verdict, &[token], &problem);
                }
                (Some("overlap"), ..) => {
                    self.violation(verdict, &[token], &format!("two runs at once: {line}"));
                }
                _ => self.violation(verdict, &[token], &format!("a mark: {line}")),
            }
        }
        starts
    }
}

/// One request, and all that was noted.
struct Case<'a> {
    notes: &'a Evidence,
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
        let own = self.starts.iter().filter(|start| start.token == self.token);
        let own: Vec<&Start> = own.collect();
        let mut copies = self.copies();
        let mut doubts = match self.notes.crowd {
            Crowd::Loners => Vec::new(),
            Crowd::Pool => self.doubts(),
        };
        let mut anew = 0;
        for pair in own.windows(2) {
            let cause = self.explain(pair[0], pair[1], &mut copies, &mut doubts)?;
            anew += usize::from(cause != INTERRUPTED);
            verdict.count(cause);
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
        for _ in runs.len() + given_up.len()..results.len() {
            verdict.count("results twice");
        }
        // a request that is run anew has another result; so has one that was given up, over 3.1.1, and perhaps once more, or where
        // another run has taken the place of the journal that said so
        let anew = anew + self.request.published.len() - 1;
        let given_up = given_up.len();
        let overwritten = own
            .windows(2)
            .filter(|pair| self.is_overwritten(pair[0], pair[1]))
            .count();
        let most = 1 + anew + overwritten;
        if runs.len() > most
            || given_up > most && !self.unknown()
            || runs.len() + given_up > 1 + anew && !self.unknown() && overwritten == 0
        {
            return Err(format!("results of several runs: {results:#?}"));
        }
        verdict.count(match (last["status"].as_str(), last["reason"].as_str()) {
            (Some("success"), _) => "succeeded",
            _ => "given up",
        });
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
            .filter(|(from, to)| any_between(&self.notes.crashes, *from, *to))
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
            return Ok(INTERRUPTED);
        }
        let overwritten = self.is_overwritten(earlier, later);
        let had_result = self.request.key.is_some() && !overwritten;
        let is_member = self.notes.crowd == Crowd::Pool;
        if had_result && !is_member {
            return Err(format!("{story}: its key had a result"));
        }
        if *copies > 0 {
            *copies -= 1;
            return Ok(PUBLISHED_AGAIN);
        }
        if is_member {
            return match doubts.pop() {
                Some(cause) if !had_result => Ok(cause),
                Some(_) => Err(format!("{story}: its key had a result")),
                None => Err(format!("{story}: without cause")),
            };
        }
        let comes = |event: &&Event| {
            event.life == later.life
                && matches!(&event.packet, Packet::Request { token, .. } if token == self.token)
        };
        let from = life.started;
        // a broker may go back while the later process is connecting
        let to = match self.notes.events.iter().find(comes) {
            Some(event) => event.at,
            None => self.notes.lives[&later.life].started,
        };
        let crashed = any_between(&self.notes.crashes, from, to);
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
            || any_between(&self.notes.cuts, from, to);
        let unknown = later.old_protocol || !earlier.identified;
        match lost {
            true if unknown => Ok(DOUBTFUL),
            true if overwritten => Ok(OVERWRITTEN),
            true if crashed => Ok(GONE_BACK),
            _ => Err(format!("{story}: without cause")),
        }
    }

    /// Whether another run in the directory has taken the place of the journal between these two.
    fn is_overwritten(&self, earlier: &Start, later: &Start) -> bool {
        let requests = &self.notes.requests;
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
            // without a number where even giving up has failed
            (Some("failed"), Some("interrupted"))
                if attempt == MAX_ATTEMPTS
                    || self.notes.crowd == Crowd::Pool && result["attempt"].is_null() =>
            {
                let kills = self.kills();
                if kills < MAX_ATTEMPTS && !self.unknown() {
                    return Err(format!("given up after {kills} kills: {result}"));
                }
                if kills < MAX_ATTEMPTS {
                    verdict.count("given up for what happened to another request"); // MQTT 3.1.1
                }
                Ok(())
            }
            _ => Err(format!("ended as {result}")),
        }
    }

    /// Whether some worker could not tell requests apart: over 3.1.1, and on its own queue the first of a session.
    fn unknown(&self) -> bool {
        let is_first = |event: &Event| match &event.packet {
            Packet::Request {
                packet_id, token, ..
            } => *packet_id == 1 && token == self.token,
            _ => false,
        };
        let is_old = || self.wires.values().any(|wire| wire.old_protocol);
        let events = &self.notes.events;
        let came_first = || self.notes.crowd == Crowd::Loners && events.iter().any(is_first);
        self.request.key.is_none() && (is_old() || came_first())
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
