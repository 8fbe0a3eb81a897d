//! What is different where the members of a pool take requests: the claim on the drive is the record, whoever has it.

use super::{Case, Cause, Evidence, Start, Verdict, Wire, any_between, token_of};
use crate::claims::Claim;
use crate::wire::{Event, Packet};
use crate::{End, Life};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

pub fn claim_in(packet: &Packet) -> Option<&Claim> {
    match packet {
        Packet::RequestAck { claim, .. }
        | Packet::Result { claim, .. }
        | Packet::ResultAck { claim, .. } => claim.as_ref(),
        _ => None,
    }
}

impl Evidence<'_> {
    /// Checks that a member acknowledges what is a claim, publishes what the claim has, and keeps the claim until the broker has
    /// that.
    pub(super) fn read_member(&self, life: usize, verdict: &mut Verdict) -> Wire {
        let mut wire = Wire::default();
        let how = &self.lives[&life];
        let mut given: BTreeMap<(usize, u16), &str> = BTreeMap::new();
        for event in self.events.iter().filter(|event| event.life == life) {
            // what is on its way when a process ends may be read after others have gone on
            let lives_on = how.end != End::Killed && event.at <= how.ended;
            let (token, problem) = match &event.packet {
                Packet::Request {
                    packet_id, token, ..
                } => {
                    given.insert((event.connection, *packet_id), token);
                    continue;
                }
                Packet::RequestAck { packet_id, claim } => {
                    let token = given.get(&(event.connection, *packet_id)).copied();
                    let token = token.unwrap_or_default();
                    wire.acknowledged = Some(event.at);
                    let problem = match claim {
                        // it came again, and its claim is another worker's, or done
                        _ if self.was_claim(token, event.at) => None,
                        None => Some("acknowledged, and it is no claim"),
                        Some(claim) if !claim.is_locked && lives_on => {
                            Some("acknowledged, and its claim is not locked")
                        }
                        Some(_) => None,
                    };
                    (token.to_owned(), problem)
                }
                Packet::Result {
                    document, claim, ..
                } => {
                    wire.results += 1;
                    wire.identified = document["origin"].is_string();
                    let token = match claim {
                        Some(claim) => Some(claim.token.clone()),
                        None => token_of(document, self.requests),
                    };
                    let problem = match claim {
                        Some(claim) if self.is_of_another(document, claim) => {
                            verdict.stale += 1;
                            Some("the result of another request is in its claim")
                        }
                        // one that is over is taken without a word in it
                        Some(claim) if lives_on && !claim.is_locked => {
                            Some("a result whose claim is not locked")
                        }
                        None if lives_on => Some("a result that its claim does not have"),
                        _ => None,
                    };
                    let token = token.unwrap_or_default();
                    if !wire.held.contains(&token) {
                        wire.held.push(token.clone());
                    }
                    (token, problem)
                }
                Packet::ResultAck {
                    of_result: Some(document),
                    claim: None,
                    ..
                } if lives_on => (
                    token_of(document, self.requests).unwrap_or_default(),
                    Some("its claim is removed, and the broker does not have its result"),
                ),
                Packet::ResultAck { .. } => continue,
                Packet::Connect { level } => {
                    wire.old_protocol |= *level == 4;
                    continue;
                }
                Packet::End | Packet::Subscribed | Packet::Trapped(_) => continue,
            };
            if let Some(problem) = problem {
                let problem = format!("{problem} (process {life})");
                self.violation(verdict, &token, &problem);
            }
        }
        // it says so when it takes one
        let took = |claim: &&Claim| how.stderr.contains(&claim.request);
        let taken = self.all_claims().filter(took);
        wire.held.extend(taken.map(|claim| claim.token.clone()));
        if how.end == End::Done && wire.results == 0 {
            let problem = format!("process {life} ended with 0 and no result");
            self.violation(verdict, &wire.held.join(" "), &problem);
        }
        wire
    }

    /// The claims that were seen, each as often as it was.
    fn all_claims(&self) -> impl Iterator<Item = &Claim> {
        let seen = self
            .events
            .iter()
            .filter_map(|event| claim_in(&event.packet));
        seen.chain(self.lives.values().flat_map(|life| &life.left))
    }

    fn is_of_another(&self, document: &Value, claim: &Claim) -> bool {
        token_of(document, self.requests).is_some_and(|token| token != claim.token)
    }

    /// Whether there was a claim of this request before.
    fn was_claim(&self, token: &str, before: Instant) -> bool {
        let is_it = |claim: &Claim| claim.token == token;
        let earlier = self.events.iter().take_while(|event| event.at < before);
        earlier
            .filter_map(|event| claim_in(&event.packet))
            .any(is_it)
            || self
                .lives
                .values()
                .any(|life| life.started < before && life.left.iter().any(is_it))
            || self.marks.lines().any(|mark| {
                let mut words = mark.split(' ').skip(1);
                let is_it = words.next() == Some(token);
                let life = words.next().and_then(|life| life.parse().ok());
                let life = life.and_then(|life: usize| self.lives.get(&life));
                is_it && life.is_some_and(|life| life.started < before)
            })
    }

    /// Requests become claims in the order in which they were published, whoever dies.
    pub(super) fn check_order(&self, starts: &[Start], verdict: &mut Verdict) {
        let once = |token: &str| {
            let published = &self.requests.get(token)?.published;
            let (from, to) = *published.first()?;
            let is_once = published.len() == 1 && !any_between(self.crashes, from, to);
            is_once.then_some(to)
        };
        // by the identities of the claims, which are in the order of taking
        let taken: BTreeMap<&str, &str> = self
            .all_claims()
            .map(|claim| (claim.request.as_str(), claim.token.as_str()))
            .collect();
        let mut latest: Option<(Instant, &str)> = None;
        let mut first = BTreeSet::new();
        for token in taken.values().filter(|token| first.insert(**token)) {
            let Some(published) = once(token) else {
                continue;
            };
            if let Some((_, before)) = latest.filter(|(at, _)| *at > published) {
                let problem = format!("taken after {before}, which was published later");
                self.violation(verdict, &format!("{token} {before}"), &problem);
            }
            latest = latest.max(Some((published, token)));
        }
        verdict.overtaken = self.count_overtaken(starts, once);
    }

    /// How many requests ran in their directory before one that was published earlier, where neither was interrupted.
    fn count_overtaken(&self, starts: &[Start], once: impl Fn(&str) -> Option<Instant>) -> usize {
        let is_alone = |start: &&Start| {
            let own = starts.iter().filter(|other| other.token == start.token);
            own.count() == 1
        };
        let mut latest: BTreeMap<&str, Instant> = BTreeMap::new();
        let mut overtaken = 0;
        for start in starts.iter().filter(is_alone) {
            let Some(published) = once(start.token) else {
                continue;
            };
            let id = self.requests[start.token].id.as_str();
            let before = latest.entry(id).or_insert(published);
            overtaken += usize::from(*before > published);
            *before = published.max(*before);
        }
        overtaken
    }

    /// All that has to do with some requests, one line a moment.
    pub fn timeline(&self, tokens: &str) -> String {
        let about = |token: &str| tokens.split(' ').any(|one| one == token);
        let mut lines: Vec<(Instant, String)> = Vec::new();
        let mut lives: BTreeSet<usize> = BTreeSet::new();
        for token in tokens.split(' ') {
            let Some(request) = self.requests.get(token) else {
                continue;
            };
            for (from, to) in &request.published {
                let (id, key) = (&request.id, &request.key);
                let line = format!("controller: publishes {token} for {id}, {key:?}");
                lines.push((*from, line));
                lines.push((*to, format!("controller: the broker has {token}")));
            }
        }
        // what else ran in the directory may have taken the place of the journal
        let id_of = |token: &str| self.requests.get(token).map(|request| &request.id);
        let ids: BTreeSet<_> = tokens.split(' ').filter_map(id_of).collect();
        let marks = self.marks.lines().filter(|mark| {
            let token = mark.split(' ').nth(1);
            token.and_then(id_of).is_some_and(|id| ids.contains(id))
        });
        let marks: Vec<&str> = marks.collect();
        let runs = marks
            .iter()
            .filter(|mark| mark.split(' ').nth(1).is_some_and(about));
        let runs = runs.filter_map(|mark| mark.split(' ').nth(2)?.parse::<usize>().ok());
        lives.extend(runs);
        let mut identifiers: BTreeSet<(usize, u16)> = BTreeSet::new();
        for event in self.events {
            let is_about = match &event.packet {
                Packet::Request {
                    token, packet_id, ..
                } if about(token) => identifiers.insert((event.connection, *packet_id)),
                Packet::RequestAck { packet_id, .. } => {
                    identifiers.contains(&(event.connection, *packet_id))
                }
                Packet::Result { document, .. }
                | Packet::ResultAck {
                    of_result: Some(document),
                    ..
                } => token_of(document, self.requests).is_some_and(|token| about(&token)),
                _ => false,
            };
            let is_about =
                is_about || claim_in(&event.packet).is_some_and(|claim| about(&claim.token));
            if is_about {
                lives.insert(event.life);
            }
            let is_fault = matches!(event.packet, Packet::Trapped(_) | Packet::End);
            if is_about || is_fault && lives.contains(&event.life) {
                let who = self.lives.get(&event.life).map_or("?", |life| life.worker);
                let line = format!(
                    "{who}, process {}, connection {}: {}",
                    event.life,
                    event.connection,
                    shown(event)
                );
                lines.push((event.at, line));
            }
        }
        for (number, life) in self.lives {
            lives.extend(left_by(life, about).then_some(*number));
        }
        for number in &lives {
            let Some(life) = self.lives.get(number) else {
                continue;
            };
            let who = format!("{}, process {number}", life.worker);
            lines.push((life.started, format!("{who}: starts")));
            let left: Vec<String> = life.left.iter().map(describe).collect();
            let end = format!(
                "{who}: {:?}, {} marks so far, left {left:?}",
                life.end, life.marks
            );
            lines.push((life.ended, end));
        }
        let faults = self.crashes.iter().map(|at| (*at, "the broker is killed"));
        let faults = faults.chain(self.cuts.iter().map(|at| (*at, "a link is cut")));
        lines.extend(faults.map(|(at, what)| (at, format!("-- {what}"))));
        lines.sort_by_key(|(at, _)| *at);
        let begin = lines.first().map(|(at, _)| *at);
        let first = self.lives.values().map(|life| life.started).min();
        let (Some(begin), Some(zero)) = (begin, first) else {
            return String::new();
        };
        let mut story = format!(
            "\n  its timeline, from {} ms on:",
            begin.saturating_duration_since(zero).as_millis()
        );
        for (at, line) in lines {
            let ms = at.saturating_duration_since(zero).as_micros() as f64 / 1000.0;
            story += &format!("\n  {ms:10.1} ms  {line}");
        }
        story += &format!("\n  marks of its directory: {}", marks.join("; "));
        for number in lives {
            if let Some(life) = self.lives.get(&number) {
                story += &format!("\n  log of {}, process {number}:", life.worker);
                for line in life.stderr.lines() {
                    story += &format!("\n    | {line}");
                }
            }
        }
        story
    }
}

fn left_by(life: &Life, about: impl Fn(&str) -> bool) -> bool {
    life.left.iter().any(|claim| about(&claim.token))
}

fn describe(claim: &Claim) -> String {
    let final_one = match &claim.document {
        Some(document) => format!(", final: {}", document["status"]),
        None => String::new(),
    };
    let lock = if claim.is_locked { "locked" } else { "free" };
    let (request, rest) = (&claim.request, &claim.rest);
    format!("{request}-{rest} of {} {lock}{final_one}", claim.token)
}

fn shown(event: &Event) -> String {
    let claim = match claim_in(&event.packet) {
        Some(claim) => describe(claim),
        None => "no claim".to_owned(),
    };
    match &event.packet {
        Packet::Request {
            packet_id,
            dup,
            token,
        } => format!("is given {token}, identifier {packet_id}, dup {dup}"),
        Packet::RequestAck { packet_id, .. } => {
            format!("acknowledges identifier {packet_id}; {claim}")
        }
        Packet::Result { document, .. } => format!(
            "publishes {} of attempt {}, begun {}; {claim}",
            document["status"], document["attempt"], document["startedAt"]
        ),
        Packet::ResultAck { reason, .. } => format!("the broker has it, reason {reason}; {claim}"),
        other => format!("{other:?}"),
    }
}

impl Case<'_> {
    /// Whether the claim of a run had its result before another one began, whoever has died meanwhile.
    pub(super) fn was_over(&self, life: &Life, later: &Start) -> bool {
        let own = life.left.iter().filter(|claim| claim.token == self.token);
        let own: Vec<&String> = own.map(|claim| &claim.request).collect();
        self.notes.lives.values().any(|life| {
            let mut claims = life.left.iter();
            let is_over = |claim: &Claim| claim.document.is_some() && own.contains(&&claim.request);
            claims.any(is_over) && life.marks <= later.place
        })
    }

    /// For how many further claims of a request there is a cause: the broker went back to a save before the acknowledgement, or a
    /// connection that was cut looked to the head as if the broker had ended it in order.
    pub(super) fn doubts(&self) -> Vec<Cause> {
        let deliveries = self.deliveries();
        let doubt = |pair: &[(Instant, usize)]| {
            let ((first, connection), (again, _)) = (pair[0], pair[1]);
            let is_trapped = |event: &Event| {
                event.connection == connection && matches!(event.packet, Packet::Trapped(_))
            };
            match any_between(self.notes.crashes, first, again) {
                true => Some(Cause::GoneBack),
                false
                    if any_between(self.notes.cuts, first, again)
                        || self.notes.events.iter().any(is_trapped) =>
                {
                    Some(Cause::Doubtful)
                }
                false => None,
            }
        };
        deliveries.windows(2).filter_map(doubt).collect()
    }

    /// The deliveries of this request, each once on its connection.
    fn deliveries(&self) -> Vec<(Instant, usize)> {
        let own = |event: &&Event| matches!(&event.packet, Packet::Request { token, .. } if token == self.token);
        let deliveries = self.notes.events.iter().filter(own);
        deliveries
            .map(|event| (event.at, event.connection))
            .collect()
    }

    /// What was published again was lost by the broker: what a pool has acknowledged it never loses.
    pub(super) fn check_publications_in_pool(&self) -> Result<(), String> {
        for pair in self.request.published.windows(2) {
            let ((from, _), (next, _)) = (pair[0], pair[1]);
            let during = |event: &&Event| from <= event.at && event.at <= next;
            let own = |event: &&Event| {
                claim_in(&event.packet).is_some_and(|claim| claim.token == self.token)
            };
            let mut events = self.notes.events.iter().filter(during).filter(own);
            // what has not become a claim in time may still do: what never does was acknowledged without one, which is seen there
            let Some(claim) = events.find_map(|event| claim_in(&event.packet)) else {
                continue;
            };
            // the broker may forget a result that it has acknowledged
            let is_forgotten = self
                .published_at(from, next)
                .is_some_and(|at| any_between(self.notes.crashes, at, next));
            let later = self.notes.events.iter().filter(|event| event.at > next);
            let mut later = later.filter_map(|event| claim_in(&event.packet));
            if !is_forgotten && !later.any(|other| other.request == claim.request) {
                return Err(format!("{} is lost: nothing came of it", claim.request));
            }
        }
        Ok(())
    }

    /// When a result of this request was given to the broker for the first time.
    fn published_at(&self, from: Instant, to: Instant) -> Option<Instant> {
        let mut events = self.notes.events.iter();
        let is_own = |event: &&Event| match &event.packet {
            Packet::Result {
                document, claim, ..
            } => {
                let token = claim.as_ref().map(|claim| claim.token.clone());
                let token = token.or_else(|| token_of(document, self.notes.requests));
                token.as_deref() == Some(self.token)
            }
            _ => false,
        };
        let during = |event: &&Event| from <= event.at && event.at <= to;
        events
            .find(|event| during(event) && is_own(event))
            .map(|event| event.at)
    }
}
