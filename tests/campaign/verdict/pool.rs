//! What is different where the members of a pool take requests: the claim on the drive is the record, whoever has it.

use super::{
    ABSENCE, Broker, Case, Cause, DOUBTFUL, Evidence, GONE_BACK, Start, Verdict, any_between,
    token_of,
};
use crate::Life;
use crate::claims::Claim;
use crate::wire::{Event, Packet};
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

impl Evidence {
    /// What is wrong with a result that a member publishes. `lives_on`: the process was alive when this was read; what is on its way
    /// when a process ends may be read after others have gone on.
    pub(super) fn wrong_result(
        &self,
        document: &Value,
        claim: Option<&Claim>,
        lives_on: bool,
    ) -> Option<&'static str> {
        match claim {
            Some(claim)
                if token_of(document, &self.requests).is_some_and(|it| it != claim.token) =>
            {
                Some("stale: the result of another request is in its claim")
            }
            None if lives_on => Some("a result that its claim does not have"),
            _ => None,
        }
    }

    /// The claims that were seen, in the order of taking, and their requests.
    pub(super) fn taken(&self) -> BTreeMap<&str, &str> {
        let seen = self.events.iter();
        let seen = seen.filter_map(|event| claim_in(&event.packet));
        let left = self.lives.values().flat_map(|life| &life.left);
        let all = seen.chain(left);
        all.map(|claim| (claim.request.as_str(), claim.token.as_str()))
            .collect()
    }

    /// Whether there was a claim of this request before: it came again, and its claim is another worker's, or done.
    pub(super) fn was_claim(&self, token: &str, before: Instant) -> bool {
        let is_it = |claim: &Claim| claim.token == token;
        let mut earlier = self.events.iter().take_while(|event| event.at < before);
        let mut begun = self.lives.values().filter(|life| life.started < before);
        let has_run = |mark: &str| {
            let mut words = mark.split(' ').skip(1);
            let is_it = words.next() == Some(token);
            let life = words.next().and_then(|life| life.parse().ok());
            let life = life.and_then(|life: usize| self.lives.get(&life));
            is_it && life.is_some_and(|life| life.started < before)
        };
        earlier.any(|event| claim_in(&event.packet).is_some_and(is_it))
            || begun.any(|life| life.left.iter().any(is_it))
            || self.marks.lines().any(has_run)
    }

    /// Requests become claims in the order in which they were published, whoever dies.
    pub(super) fn check_order(
        &self,
        taken: &BTreeMap<&str, &str>,
        starts: &[Start],
        verdict: &mut Verdict,
    ) {
        let once = |token: &str| {
            let published = &self.requests.get(token)?.published;
            let (from, to) = *published.first()?;
            let is_once = published.len() == 1 && !any_between(&self.crashes, from, to);
            is_once.then_some(to)
        };
        let mut latest: Option<(Instant, &str)> = None;
        let mut first = BTreeSet::new();
        for token in taken.values().filter(|token| first.insert(**token)) {
            let Some(published) = once(token) else {
                continue;
            };
            if let Some((_, before)) = latest.filter(|(at, _)| *at > published) {
                let problem = format!("taken after {before}, which was published later");
                self.violation(verdict, &[token, before], &problem);
            }
            latest = latest.max(Some((published, token)));
        }
        self.count_overtaken(starts, once, verdict);
    }

    /// How many requests ran in their directory before one that was published earlier, where neither was interrupted.
    fn count_overtaken(
        &self,
        starts: &[Start],
        once: impl Fn(&str) -> Option<Instant>,
        verdict: &mut Verdict,
    ) {
        let runs = |start: &Start| starts.iter().filter(|it| it.token == start.token).count();
        let mut latest: BTreeMap<&str, Instant> = BTreeMap::new();
        for start in starts.iter().filter(|start| runs(start) == 1) {
            let Some(published) = once(start.token) else {
                continue;
            };
            let id = self.requests[start.token].id.as_str();
            let before = latest.entry(id).or_insert(published);
            if *before > published {
                verdict.count("overtaken in their directory");
            }
            *before = published.max(*before);
        }
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
        // each delivery of this request on its connection
        let own = |event: &&Event| matches!(&event.packet, Packet::Request { token, .. } if token == self.token);
        let deliveries: Vec<&Event> = self.notes.events.iter().filter(own).collect();
        let doubt = |pair: &[&Event]| {
            let (first, again) = (pair[0], pair[1]);
            let is_trapped = |event: &Event| {
                event.connection == first.connection && matches!(event.packet, Packet::Trapped(_))
            };
            let is_between = |times: &[Instant]| any_between(times, first.at, again.at);
            let is_cut =
                || is_between(&self.notes.cuts) || self.notes.events.iter().any(is_trapped);
            match is_between(&self.notes.crashes) {
                true => Some(GONE_BACK),
                false => is_cut().then_some(DOUBTFUL),
            }
        };
        deliveries.windows(2).filter_map(doubt).collect()
    }

    /// What was published again was lost by the broker: what a pool has acknowledged it never loses.
    pub(super) fn check_publications_in_pool(&self) -> Result<(), String> {
        for pair in self.request.published.windows(2) {
            let ((from, _), (next, _)) = (pair[0], pair[1]);
            let events = self.notes.events.iter();
            let claims = events.filter_map(|event| Some((event, claim_in(&event.packet)?)));
            let is_own = |(event, claim): &(&Event, &Claim)| {
                claim.token == self.token && from <= event.at && event.at <= next
            };
            // what has not become a claim in time may still do: what never does was acknowledged without one, which is seen there
            let Some((_, claim)) = claims.clone().find(is_own) else {
                continue;
            };
            // the broker may forget a result that it has acknowledged, and one may come while the controller publishes what it misses
            let is_forgotten_or_heard = self.published(from, next).is_some_and(|event| {
                any_between(&self.notes.crashes, self.since(event), next) || self.has_heard(event)
            });
            let mut later = claims.filter(|(event, _)| event.at > next);
            if !is_forgotten_or_heard && !later.any(|(_, other)| other.request == claim.request) {
                return Err(format!("{} is lost: nothing came of it", claim.request));
            }
        }
        Ok(())
    }

    /// From when on a crash loses this result. Over 3.1.1 a broker does not say that the controller, whom it has forgotten,
    /// is not back yet.
    fn since(&self, result: &Event) -> Instant {
        let is_old = self.wires[&result.life].old_protocol;
        match self.notes.memory {
            Broker::Forgets if is_old => result.at - ABSENCE,
            _ => result.at,
        }
    }

    /// Whether the controller has this very result.
    fn has_heard(&self, event: &Event) -> bool {
        matches!(&event.packet, Packet::Result { document, .. } if self.request.results.contains(document))
    }

    /// The first event by which a result of this request is given to the broker.
    fn published(&self, from: Instant, to: Instant) -> Option<&Event> {
        let is_own = |event: &&Event| match &event.packet {
            Packet::Result { document, claim } => {
                let token = claim.as_ref().map(|claim| claim.token.clone());
                let token = token.or_else(|| token_of(document, &self.notes.requests));
                token.as_deref() == Some(self.token) && from <= event.at && event.at <= to
            }
            _ => false,
        };
        self.notes.events.iter().find(is_own)
    }
}
