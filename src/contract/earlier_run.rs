//! What `job.status.json` says of an earlier run in this directory, and what follows from it for a request: a first run,
//! a further attempt, or the result that is there already.

use super::json::{self, Object};
use super::request::BY_HAND;
use super::status::JobState;
use super::{JobId, RequestOrigin};
use serde_json::value::RawValue;

/// How often a job may be interrupted by a stop of its worker. More than that is a job that stops its own worker.
pub const MAX_STOPS: u32 = 10;

/// An earlier run of a job, as its directory tells of it.
#[derive(Debug, PartialEq)]
pub struct EarlierRun {
    /// Running: it was begun and has no end, since its worker died.
    status: JobState,
    /// The attempts of that run, from 1.
    attempt: u32,
    /// How many times it was interrupted by a stop of its worker.
    stops: u32,
    worker: Option<String>,
    /// Its request: see [`Document::key`](super::Document::key) and [`Document::origin`](super::Document::origin).
    key: Option<String>,
    origin: Option<String>,
}

/// What is to be done about a request.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// The job runs, as this attempt.
    Run(Attempt),
    /// The job ends here without another attempt; the sentence says why.
    GiveUp(Attempt, String),
    /// The stored result is the result of this request.
    Stored,
}

/// A run of a job, and how it came to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// See [`Document::stops`](super::Document::stops).
    pub stops: u32,
    /// How the attempt before has ended, if there was one: it runs still, since its worker died, or a stop has interrupted it.
    pub follows: Option<JobState>,
}

impl Attempt {
    /// The first attempt of a request.
    pub const FIRST: Self = Self {
        number: 1,
        stops: 0,
        follows: None,
    };
}

fn died(attempts: u32) -> String {
    format!("interrupted: the worker died in each attempt (maxAttempts: {attempts})")
}

impl EarlierRun {
    /// Reads `job.status.json` for the job `id`; `None` where it speaks of another job.
    ///
    /// A document that cannot be understood counts as begun and died: something of ours was there, and the careful reading
    /// is that a step may have run.
    pub fn read(content: &[u8], id: &JobId) -> Option<Self> {
        match Self::understand(content) {
            Some((owner, run)) => (owner.as_str() == id.as_str()).then_some(run),
            None => Some(Self {
                status: JobState::Running,
                attempt: 1,
                stops: 0,
                worker: None,
                key: None,
                origin: None,
            }),
        }
    }

    fn understand(bytes: &[u8]) -> Option<(JobId, Self)> {
        let mut object = Object::parse(bytes).ok()?;
        let owner = object.take("id", JobId::from_json)?;
        let status = |raw: &RawValue| json::read(raw).map_err(|e| e.to_string());
        let run = Self {
            status: object.take("status", status)?,
            attempt: object.take("attempt", json::count).unwrap_or(1),
            stops: object.take("stops", json::count).unwrap_or(0),
            worker: object.take("worker", json::string),
            key: object.take("key", json::string),
            origin: object.take("origin", json::string),
        };
        object.faults.is_empty().then_some((owner, run))
    }

    /// What is to be done about a request that finds this earlier run in its directory, or none.
    ///
    /// An old result is never the result of a new request: a second run is better than that. But an attempt that died is
    /// counted wherever it may be the request's own, or a job that takes its host down would do so for ever.
    pub fn decide(
        earlier: Option<&Self>,
        key: Option<&str>,
        origin: &RequestOrigin,
        max_attempts: u32,
    ) -> Decision {
        let mut attempt = Attempt::FIRST;
        let same = earlier.map(|run| (run, run.is_of(key, origin)));
        if let Some((run, same)) = same.filter(|(_, same)| *same != Some(false)) {
            let before = Attempt {
                number: run.attempt,
                stops: run.stops,
                follows: Some(run.status),
            };
            attempt = match run.status {
                JobState::Success | JobState::Failed if same == Some(true) => {
                    return Decision::Stored;
                }
                JobState::Success | JobState::Failed => Attempt::FIRST,
                JobState::Running if run.attempt >= max_attempts => {
                    return Decision::GiveUp(before, died(run.attempt));
                }
                JobState::Running => Attempt {
                    number: run.attempt.saturating_add(1),
                    ..before
                },
                JobState::Interrupted if run.stops >= MAX_STOPS => {
                    let why = format!(
                        "interrupted: the worker was stopped {MAX_STOPS} times during this job"
                    );
                    return Decision::GiveUp(before, why);
                }
                JobState::Interrupted => before,
            };
        }
        // its claim was taken more often than the directory tells: a step may have removed the journal
        if let RequestOrigin::Pool { taken, .. } = origin
            && *taken > attempt.number
        {
            if *taken > max_attempts {
                // a worker that gives up and dies is counted, and has made no attempt
                let number = (taken - 1).min(max_attempts);
                return Decision::GiveUp(Attempt { number, ..attempt }, died(number));
            }
            attempt.number = *taken;
            attempt.follows = Some(JobState::Running);
        }
        Decision::Run(attempt)
    }

    /// Whether this was a run of the same request; `None` where that cannot be told: MQTT 3.1.1, or a document that cannot be read.
    ///
    /// A `key` decides wherever there is one. Without it, the delivery decides: DUP = 0 is a new request whatever else it
    /// has in common with an earlier one, and DUP = 1 says only that the broker has sent it before, to whomever.
    fn is_of(&self, key: Option<&str>, origin: &RequestOrigin) -> Option<bool> {
        if self.key.is_some() || key.is_some() {
            return Some(self.key.as_deref() == key);
        }
        let ours = self.origin.as_deref();
        match origin {
            RequestOrigin::ByHand => ours.filter(|ours| *ours != BY_HAND).and(Some(false)),
            RequestOrigin::Pool { identity, .. } => ours.map(|ours| ours == identity),
            RequestOrigin::Queue {
                worker,
                redelivered,
                identity,
            } => {
                let is_of_another = self.worker.as_ref().is_some_and(|w| w != worker);
                let is_by_hand = ours == Some(BY_HAND);
                match is_of_another || is_by_hand || ours? != identity.as_deref()? {
                    true => Some(false),
                    false => redelivered.then_some(true),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(redelivered: bool, identity: Option<&str>) -> RequestOrigin {
        RequestOrigin::Queue {
            worker: "w".to_owned(),
            redelivered,
            identity: identity.map(str::to_owned),
        }
    }

    fn earlier(json: &str) -> EarlierRun {
        EarlierRun::read(json.as_bytes(), &JobId::from_text("a").unwrap()).unwrap()
    }

    impl EarlierRun {
        fn decides(&self, key: Option<&str>, origin: &RequestOrigin, max: u32) -> Decision {
            Self::decide(Some(self), key, origin, max)
        }
    }

    fn run(number: u32, follows: Option<JobState>) -> Decision {
        Decision::Run(Attempt {
            number,
            stops: 0,
            follows,
        })
    }

    const CRASH: Option<JobState> = Some(JobState::Running);
    const STOP: Option<JobState> = Some(JobState::Interrupted);
    const FIRST: Decision = Decision::Run(Attempt::FIRST);

    #[test]
    fn a_document_is_read_for_what_it_says() {
        let read = |json: &str| {
            EarlierRun::read(json.as_bytes(), &JobId::from_text("a").unwrap())
                .map(|run| (run.status, run.attempt, run.stops))
        };
        let died = |attempt| Some((JobState::Running, attempt, 0));
        for (content, expected) in [
            (r#"{"id":"a","status":"running","attempt":2}"#, died(2)),
            (
                r#"{"id":"a","status":"interrupted","attempt":2,"stops":3}"#,
                Some((JobState::Interrupted, 2, 3)),
            ),
            (
                r#"{"id":"a","status":"failed","attempt":2,"stops":null}"#,
                Some((JobState::Failed, 2, 0)),
            ),
            (r#"{"id":"b","status":"running","attempt":2}"#, None),
            (r#"{"id":"b","status":"success"}"#, None),
            ("", died(1)),
            ("{\"id\":\"a\",\"sta", died(1)),
            ("\0\0\0\0", died(1)),
            ("[]", died(1)),
            (r#"{"colour":"red"}"#, died(1)),
            (r#"{"id":"a"}"#, died(1)),
            (r#"{"id":"a","status":"green"}"#, died(1)),
            (r#"{"id":"a","status":"running","attempt":-5}"#, died(1)),
            (r#"{"id":"a","status":"success","origin":7}"#, died(1)),
        ] {
            assert_eq!(read(content), expected, "{content}");
        }
    }

    #[test]
    fn an_id_is_the_same_job_as_a_number_and_as_its_text() {
        let number = JobId::from_json(&serde_json::value::to_raw_value(&7).unwrap()).unwrap();
        let stored = br#"{"id":"7","status":"interrupted","attempt":1}"#;
        assert!(EarlierRun::read(stored, &number).is_some());
    }

    #[test]
    fn a_stored_result_is_the_result_of_its_own_request_only() {
        let done = earlier(r#"{"id":"a","status":"success","origin":"w 5 7 ab"}"#);
        let decide = |origin: &RequestOrigin| done.decides(None, origin, 3);
        assert_eq!(
            decide(&from(true, Some("w 5 7 ab"))),
            Decision::Stored,
            "the very request, redelivered"
        );
        for (origin, why) in [
            (from(false, Some("w 5 7 ab")), "DUP = 0 is always new"),
            (from(true, Some("w 5 8 ab")), "another packet identifier"),
            (from(true, Some("w 6 7 ab")), "another session"),
            (from(true, Some("v 5 7 ab")), "another worker"),
            (from(true, Some("w 5 7 cd")), "another text"),
            (from(true, None), "nobody can tell"),
            (RequestOrigin::ByHand, "a hand-made run"),
        ] {
            assert_eq!(decide(&origin), FIRST, "{why}");
        }
        for by_hand in ["success", "running"] {
            let by_hand = format!(r#"{{"id":"a","status":"{by_hand}","origin":"run"}}"#);
            for origin in [from(true, Some("w 5 7 ab")), from(true, None)] {
                assert_eq!(earlier(&by_hand).decides(None, &origin, 3), FIRST);
            }
        }
        let died = earlier(r#"{"id":"a","status":"running","origin":"run"}"#);
        assert_eq!(died.decides(None, &RequestOrigin::ByHand, 3), run(2, CRASH));
    }

    #[test]
    fn a_key_decides_wherever_there_is_one() {
        let done =
            earlier(r#"{"id":"a","status":"failed","attempt":2,"key":"k","origin":"w 5 7 ab"}"#);
        for origin in [
            from(false, None),
            from(true, Some("v 1 1 cd")),
            RequestOrigin::ByHand,
        ] {
            assert_eq!(done.decides(Some("k"), &origin, 3), Decision::Stored);
            assert_eq!(done.decides(Some("l"), &origin, 3), FIRST);
        }
        let redelivered = from(true, Some("w 5 7 ab"));
        assert_eq!(done.decides(None, &redelivered, 3), FIRST);
        assert_eq!(done.decides(Some("l"), &redelivered, 3), FIRST);
        let died = earlier(r#"{"id":"a","status":"running","attempt":3,"key":"k"}"#);
        assert_eq!(died.decides(Some("l"), &redelivered, 3), FIRST);
        assert_eq!(
            died.decides(Some("k"), &from(false, None), 4),
            run(4, CRASH)
        );
    }

    #[test]
    fn a_crash_counts_wherever_it_may_be_the_requests_own() {
        let died = |attempt: u32| {
            earlier(&format!(
                r#"{{"id":"a","status":"running","attempt":{attempt},"origin":"w 5 7 ab"}}"#
            ))
        };
        for own in [
            from(true, Some("w 5 7 ab")),
            from(true, None),
            // a broker that went back to an older state sends a request again with DUP = 0
            from(false, Some("w 5 7 ab")),
            from(false, None),
        ] {
            assert_eq!(died(1).decides(None, &own, 3), run(2, CRASH), "{own:?}");
            assert_eq!(died(2).decides(None, &own, 3), run(3, CRASH));
            for (attempts, max) in [(3, 3), (1, 1), (4, 3)] {
                let decision = died(attempts).decides(None, &own, max);
                assert!(
                    matches!(&decision, Decision::GiveUp(Attempt { number, .. }, why)
                        if *number == attempts && why.contains(&format!("maxAttempts: {attempts}"))),
                    "{decision:?}"
                );
            }
        }
        for other in [
            from(false, Some("w 6 7 ab")),
            from(true, Some("v 5 7 ab")),
            RequestOrigin::ByHand,
        ] {
            assert_eq!(died(3).decides(None, &other, 3), FIRST, "{other:?}");
        }
        let of_another = earlier(r#"{"id":"a","status":"running","attempt":3,"worker":"v"}"#);
        assert_eq!(
            of_another.decides(None, &from(true, None), 3),
            FIRST,
            "each worker has a queue of its own"
        );
        let by_hand = earlier(r#"{"id":"a","status":"running","attempt":1}"#);
        assert_eq!(
            by_hand.decides(None, &RequestOrigin::ByHand, 3),
            run(2, CRASH)
        );
        let unreadable = earlier("garbage");
        assert_eq!(
            unreadable.decides(None, &from(false, Some("w 5 7 ab")), 3),
            run(2, CRASH)
        );
    }

    #[test]
    fn a_stop_does_not_count_ten_times() {
        let stopped = |stops: u32| {
            earlier(&format!(
                r#"{{"id":"a","status":"interrupted","attempt":2,"stops":{stops}}}"#
            ))
        };
        let again = |stops| {
            Decision::Run(Attempt {
                number: 2,
                stops,
                follows: STOP,
            })
        };
        for stops in [1, 9] {
            assert_eq!(
                stopped(stops).decides(None, &from(true, None), 1),
                again(stops)
            );
        }
        for stops in [10, 11] {
            let decision = stopped(stops).decides(None, &from(true, None), 3);
            assert!(
                matches!(&decision, Decision::GiveUp(_, why) if why.contains("stopped 10 times")),
                "{decision:?}"
            );
        }
        let after_crash = earlier(r#"{"id":"a","status":"running","attempt":1,"stops":4}"#);
        let expected = Attempt {
            number: 2,
            stops: 4,
            follows: Some(JobState::Running),
        };
        assert_eq!(
            after_crash.decides(None, &from(true, None), 3),
            Decision::Run(expected)
        );
    }

    #[test]
    fn a_claim_that_was_taken_more_often_than_the_directory_tells_is_a_further_attempt() {
        let taken = |taken| RequestOrigin::Pool {
            identity: "p 7-ab".into(),
            taken,
        };
        let own = |status: &str, attempt: u32| {
            let json = format!(
                r#"{{"id":"a","status":"{status}","attempt":{attempt},"origin":"p 7-ab"}}"#
            );
            earlier(&json)
        };
        let other = earlier(r#"{"id":"a","status":"running","attempt":3,"origin":"p 6-cd"}"#);
        for (found, times, expected) in [
            (None, 1, FIRST),
            (None, 2, run(2, CRASH)),
            (None, 3, run(3, CRASH)),
            (Some(own("running", 1)), 2, run(2, CRASH)),
            (Some(own("interrupted", 2)), 2, run(2, STOP)),
            (Some(own("success", 1)), 9, Decision::Stored),
            (Some(other), 1, FIRST),
        ] {
            let decision = EarlierRun::decide(found.as_ref(), None, &taken(times), 3);
            assert_eq!(decision, expected, "{found:?} {times}");
        }
        for times in [4, 6] {
            let decision = EarlierRun::decide(None, None, &taken(times), 3);
            assert!(
                matches!(&decision, Decision::GiveUp(a, why) if a.number == 3 && why.contains("maxAttempts: 3")),
                "{decision:?}"
            );
        }
    }
}
