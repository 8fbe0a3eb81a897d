//! Each rule by itself; in [`walk`], two members, a broker and a drive, through every order of events.

mod late;
mod walk;

use super::*;
use crate::queue::ResultMessage;

const SECOND: Duration = Duration::from_secs(1);

fn request(packet_id: u16) -> Message {
    Message {
        topic: "jobs/pending".to_owned(),
        payload: "a".into(),
        packet_id: Some(packet_id),
        redelivered: false,
        subscription: Some(5),
        retained: false,
    }
}

fn at_qos_0() -> Message {
    Message {
        packet_id: None,
        ..request(0)
    }
}

fn result(after: AfterResult) -> ResultMessage {
    ResultMessage {
        topic: "jobs/results/a".to_owned(),
        payload: b"{}".to_vec(),
        after,
        wait_for_subscriber: false,
    }
}

const CONNECTED: Input = Input::Connected {
    tells_subscribers: true,
};

/// A machine and a clock, for tests that read as a story.
struct Story {
    machine: Machine,
    now: Instant,
}

impl Story {
    /// Connected, and the first try for the head was made.
    fn new() -> Self {
        let mut story = Self {
            machine: Machine::default(),
            now: Instant::now(),
        };
        assert_eq!(story.hears(CONNECTED), [Action::TryHead]);
        story
    }

    /// The head, with the subscription in place.
    fn as_the_head() -> Self {
        let mut story = Self::new();
        assert_eq!(story.hears(Input::Tried(Tried::Ours)), [Action::Look]);
        assert_eq!(
            story.hears(Input::Looked(Looked::Nothing)),
            [Action::OpenHead]
        );
        assert_eq!(
            story.hears(Input::HeadConnected { resumed: true }),
            [Action::Subscribe { new_session: false }]
        );
        assert_eq!(story.hears(Input::HeadReady), []);
        story
    }

    fn confirming() -> Self {
        let mut story = Self::as_the_head();
        assert_eq!(
            story.hears(Input::Request(request(1))),
            [Action::Take(request(1))]
        );
        assert_eq!(
            story.hears(Input::Took(Took::Claimed)),
            [Action::Acknowledge(1), Action::Confirm]
        );
        story
    }

    fn working() -> Self {
        let mut story = Self::confirming();
        assert_eq!(
            story.hears(Input::HeadPublished),
            [Action::CloseHead, Action::Confirmed]
        );
        assert_eq!(
            story.hears(Input::HeadClosed),
            [Action::AbandonHead, Action::FreeHead, Action::Run]
        );
        story
    }

    fn hears(&mut self, input: Input) -> Vec<Action> {
        self.machine.handle(input, self.now)
    }

    /// Waits for the deadline, and tells for how long.
    fn waits(&mut self) -> (Duration, Vec<Action>) {
        let deadline = self.machine.deadline().expect("a deadline");
        let waited = deadline - self.now;
        self.now = deadline;
        (waited, self.hears(Input::Expired))
    }
}

#[test]
fn from_the_lock_to_the_end() {
    let mut story = Story::working();
    assert_eq!(
        story.hears(Input::Result(result(AfterResult::Leave))),
        [Action::Publish(result(AfterResult::Leave))]
    );
    assert_eq!(
        story.hears(Input::Published(Subscribers::None)),
        [Action::Remove, Action::Disconnect]
    );
    assert_eq!(story.hears(Input::Closed), [Action::Exit]);
}

#[test]
fn a_new_session_is_told_before_the_subscription() {
    let mut story = Story::new();
    story.hears(Input::Tried(Tried::Ours));
    story.hears(Input::Looked(Looked::Nothing));
    assert_eq!(
        story.hears(Input::HeadConnected { resumed: false }),
        [Action::Subscribe { new_session: true }]
    );
}

#[test]
fn a_lock_that_is_held_is_tried_each_second_and_soon_when_a_head_leaves() {
    let mut story = Story::new();
    assert_eq!(story.hears(Input::Tried(Tried::Held)), []);
    assert_eq!(story.waits(), (SECOND, vec![Action::TryHead]));
    story.hears(Input::Tried(Tried::Held));
    story.hears(Input::HeadLeaves);
    for pause in HURRIED_PAUSES.into_iter().chain([SECOND, SECOND]) {
        assert_eq!(story.waits(), (pause, vec![Action::TryHead]));
        story.hears(Input::Tried(Tried::Held));
    }
}

#[test]
fn a_lock_that_is_free_is_tried_at_once_if_it_is_wanted() {
    let mut story = Story::new();
    story.hears(Input::Tried(Tried::Held));
    assert_eq!(story.hears(Input::HeadFree), [Action::TryHead]);
    // another one was faster, and is heard when it leaves
    story.hears(Input::Tried(Tried::Held));
    assert_eq!(story.waits(), (SECOND, vec![Action::TryHead]));
    story.hears(Input::Lost);
    assert_eq!(story.hears(Input::HeadFree), []);
    story.hears(CONNECTED);
    story.hears(Input::DriveFailed);
    assert_eq!(story.hears(Input::HeadFree), []);
    assert_eq!(Story::working().hears(Input::HeadFree), []);
}

#[test]
fn a_claim_that_nobody_has_goes_before_the_next_request() {
    let mut story = Story::new();
    story.hears(Input::Tried(Tried::Ours));
    assert_eq!(
        story.hears(Input::Looked(Looked::Claimed)),
        [Action::FreeHead, Action::Run]
    );
    // whoever waits for its result may have lost the connection, as its worker has
    story.hears(Input::Result(result(AfterResult::Leave)));
    assert_eq!(
        story.hears(Input::Published(Subscribers::None)).len(),
        1,
        "a warning"
    );
    assert!(matches!(story.waits().1[..], [Action::Publish(_)]));
}

#[test]
fn a_waiting_head_looks_for_claims_that_nobody_has() {
    let mut story = Story::as_the_head();
    let mut waited = Duration::ZERO;
    while waited < LAST_LOOK_PAUSE {
        let (pause, actions) = story.waits();
        assert_eq!(actions, [Action::Look]);
        assert_eq!(story.hears(Input::Looked(Looked::Nothing)), []);
        waited = pause;
    }
    assert_eq!(waited, LAST_LOOK_PAUSE);
    assert_eq!(story.hears(Input::ClaimsFreed), [Action::Look]);
    assert_eq!(
        story.hears(Input::Looked(Looked::Claimed)),
        [Action::CloseHead]
    );
    // a request that comes now is the next head's
    assert_eq!(story.hears(Input::Request(request(1))), []);
    assert_eq!(
        story.hears(Input::HeadClosed),
        [Action::AbandonHead, Action::FreeHead, Action::Run]
    );
}

#[test]
fn a_claim_that_was_freed_while_the_head_was_at_something_else_is_looked_for_at_once() {
    let mut story = Story::as_the_head();
    story.hears(Input::Request(request(1)));
    story.hears(Input::Took(Took::Known));
    assert_eq!(story.hears(Input::ClaimsFreed), []);
    story.hears(Input::HeadPublished);
    assert_eq!(story.waits(), (Duration::ZERO, vec![Action::Look]));
    story.hears(Input::Looked(Looked::Nothing));
    assert!(story.waits().0 > Duration::ZERO, "once");
}

#[test]
fn a_broker_that_does_not_answer_the_head_frees_it() {
    let mut story = Story::new();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        story.hears(Input::Tried(Tried::Ours));
        story.hears(Input::Looked(Looked::Nothing));
        let freed = vec![Action::AbandonHead, Action::FreeHead];
        assert_eq!(story.waits(), (ANSWER_WAIT, freed));
        // nor does it help that another head leaves
        story.hears(Input::HeadLeaves);
        let (pause, actions) = story.waits();
        assert_eq!(actions, [Action::TryHead]);
        pauses.push(pause.as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
}

#[test]
fn a_claim_is_run_whether_its_acknowledgement_is_confirmed_or_not() {
    let mut story = Story::confirming();
    let run = [Action::AbandonHead, Action::FreeHead, Action::Run];
    assert_eq!(story.hears(Input::HeadLost), run);
    let mut story = Story::confirming();
    assert_eq!(story.waits(), (ANSWER_WAIT, run.to_vec()));
}

#[test]
fn a_request_that_is_known_is_acknowledged_and_confirmed_before_the_next_is_taken() {
    for (took, confirmed) in [(Took::Known, true), (Took::InProgress, false)] {
        let mut story = Story::as_the_head();
        story.hears(Input::Request(request(1)));
        assert_eq!(
            story.hears(Input::Took(took)),
            [Action::Acknowledge(1), Action::Confirm]
        );
        assert_eq!(story.hears(Input::Request(request(2))), []);
        assert_eq!(story.hears(Input::Request(request(2))), [], "once more");
        let mut expected = vec![Action::Take(request(2))];
        if confirmed {
            expected.insert(0, Action::Confirmed);
        }
        assert_eq!(story.hears(Input::HeadPublished), expected);
    }
}

#[test]
fn a_rejected_request_is_acknowledged_when_the_broker_has_the_rejection() {
    let mut story = Story::as_the_head();
    story.hears(Input::Request(request(1)));
    assert_eq!(story.hears(Input::Took(Took::Rejected)), []);
    assert_eq!(story.hears(Input::HeadPublished), [Action::Acknowledge(1)]);
    assert!(story.machine.is_waiting());
}

#[test]
fn a_rejection_that_the_broker_does_not_take_leaves_the_request_with_it() {
    let mut story = Story::as_the_head();
    story.hears(Input::Request(request(1)));
    story.hears(Input::Took(Took::Rejected));
    assert_eq!(story.hears(Input::HeadNotPublished), [Action::CloseHead]);
    story.hears(Input::HeadClosed);
    assert_eq!(story.waits(), (SECOND, vec![Action::TryHead]));
    // of the presence, any answer will do
    let mut confirming = Story::confirming();
    assert_eq!(
        confirming.hears(Input::HeadNotPublished),
        [Action::CloseHead, Action::Confirmed]
    );
}

#[test]
fn a_drive_that_takes_nothing_leaves_the_request_with_the_broker() {
    let mut story = Story::as_the_head();
    let mut pauses = Vec::new();
    for _ in 0..3 {
        story.hears(Input::Request(request(1)));
        assert_eq!(story.hears(Input::DriveFailed), [Action::CloseHead]);
        assert_eq!(
            story.hears(Input::HeadClosed),
            [Action::AbandonHead, Action::FreeHead]
        );
        let (pause, actions) = story.waits();
        assert_eq!(actions, [Action::TryHead]);
        pauses.push(pause.as_secs());
        story.hears(Input::Tried(Tried::Ours));
        story.hears(Input::Looked(Looked::Nothing));
        story.hears(Input::HeadConnected { resumed: true });
        story.hears(Input::HeadReady);
    }
    assert_eq!(pauses, [1, 2, 4]);
}

#[test]
fn what_comes_at_qos_0_meanwhile_is_rejected_at_once() {
    let mut story = Story::as_the_head();
    assert_eq!(
        story.hears(Input::Request(at_qos_0())),
        [Action::Take(at_qos_0())]
    );
    assert_eq!(story.hears(Input::Took(Took::Claimed)), [Action::Confirm]);
    let rejected = [Action::RejectNow(at_qos_0())];
    assert_eq!(story.hears(Input::Request(at_qos_0())), rejected);
    story.hears(Input::HeadPublished);
    assert_eq!(story.hears(Input::Request(at_qos_0())), rejected);
}

#[test]
fn a_head_that_loses_its_own_connection_frees_the_head() {
    let mut story = Story::as_the_head();
    assert_eq!(
        story.hears(Input::Lost),
        [Action::AbandonHead, Action::FreeHead]
    );
    assert_eq!(story.machine.deadline(), None);
    assert_eq!(story.hears(Input::HeadLeaves), []);
    assert_eq!(story.machine.deadline(), None);
    assert_eq!(story.hears(CONNECTED), [Action::TryHead]);
}

#[test]
fn a_result_is_insisted_on_if_the_connection_was_lost_since_the_taking() {
    let mut story = Story::working();
    story.hears(Input::Lost);
    assert_eq!(story.hears(Input::Result(result(AfterResult::Leave))), []);
    assert!(matches!(story.hears(CONNECTED)[..], [Action::Publish(_)]));
    assert!(matches!(
        story.hears(Input::Published(Subscribers::None))[..],
        [Action::Warn(_)]
    ));
    assert!(matches!(story.waits().1[..], [Action::Publish(_)]));
    assert_eq!(
        story.hears(Input::Published(Subscribers::Some)),
        [Action::Remove, Action::Disconnect]
    );
}

#[test]
fn over_3_1_1_it_waits_for_its_controller() {
    let mut story = Story::working();
    story.hears(Input::Lost);
    story.hears(Input::Result(result(AfterResult::Leave)));
    let blind = Input::Connected {
        tells_subscribers: false,
    };
    assert_eq!(story.hears(blind), []);
    let (waited, actions) = story.waits();
    assert_eq!(waited, RESUBSCRIBE_WAIT);
    assert!(matches!(actions[..], [Action::Publish(_)]));
}

#[test]
fn a_stop_comes_at_any_moment() {
    let stop = || Input::Stop { grace: SECOND };
    let mut standing = Story::new();
    standing.hears(Input::Tried(Tried::Held));
    assert_eq!(standing.hears(stop()), [Action::Disconnect]);

    let mut head = Story::as_the_head();
    assert_eq!(head.hears(stop()), [Action::CloseHead]);
    assert_eq!(
        head.hears(Input::HeadClosed),
        [Action::AbandonHead, Action::FreeHead, Action::Disconnect]
    );

    let mut confirming = Story::confirming();
    assert_eq!(confirming.hears(stop()), []);
    confirming.hears(Input::HeadPublished);
    assert_eq!(
        confirming.hears(Input::HeadClosed),
        [
            Action::AbandonHead,
            Action::FreeHead,
            Action::GiveBack,
            Action::Disconnect
        ]
    );

    let mut publishing = Story::working();
    publishing.hears(Input::Result(result(AfterResult::Leave)));
    assert_eq!(publishing.hears(stop()), []);
    assert_eq!(
        publishing.waits(),
        (SECOND, vec![Action::Disconnect]),
        "and keeps the claim"
    );
}

#[test]
fn after_a_rejection_it_stands_again() {
    let mut story = Story::working();
    story.hears(Input::Result(result(AfterResult::WaitOn)));
    assert_eq!(
        story.hears(Input::Published(Subscribers::Some)),
        [Action::Remove, Action::TryHead]
    );
}

#[test]
fn a_postponed_request_is_left_to_the_next_head() {
    let mut story = Story::working();
    assert_eq!(story.hears(Input::Postpone), [Action::TryHead]);
}

#[test]
fn whoever_is_not_sure_of_the_session_stands_back_but_not_from_what_it_has_taken() {
    let mut head = Story::as_the_head();
    assert_eq!(head.hears(Input::StandBack), [Action::CloseHead]);
    assert_eq!(
        head.hears(Input::HeadClosed),
        [Action::AbandonHead, Action::FreeHead]
    );
    for mut taken in [Story::confirming(), Story::working()] {
        let before = format!("{:?}", taken.machine);
        assert_eq!(taken.hears(Input::StandBack), []);
        assert_eq!(format!("{:?}", taken.machine), before);
    }
}
