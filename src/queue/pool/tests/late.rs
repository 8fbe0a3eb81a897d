//! What each rule leaves alone, and what it makes of events that come late.

use super::*;

const STOP: Input = Input::Stop { grace: SECOND };
const BLIND: Input = Input::Connected {
    tells_subscribers: false,
};

impl Story {
    /// From the lock on, a head that connects.
    fn connects(&mut self) {
        self.hears(Input::Tried(Tried::Ours));
        self.hears(Input::Looked(Looked::Nothing));
    }

    /// From the lock on, until the subscription stands.
    fn becomes_the_head(&mut self) {
        self.connects();
        self.hears(Input::HeadConnected { resumed: true });
        self.hears(Input::HeadReady);
    }

    /// From the subscription on.
    fn works(&mut self) {
        self.hears(Input::Request(request(1)));
        self.hears(Input::Took(Took::Claimed));
        self.hears(Input::HeadPublished);
        self.hears(Input::HeadClosed);
    }

    fn looking() -> Self {
        let mut story = Self::new();
        story.hears(Input::Tried(Tried::Ours));
        story
    }

    fn connecting() -> Self {
        let mut story = Self::new();
        story.connects();
        story
    }

    fn dealing_with_a_request(took: Took) -> Self {
        let mut story = Self::as_the_head();
        story.hears(Input::Request(request(1)));
        story.hears(Input::Took(took));
        story
    }

    fn closing() -> Self {
        let mut story = Self::confirming();
        story.hears(Input::HeadPublished);
        story
    }

    fn publishing(after: AfterResult) -> Self {
        let mut story = Self::working();
        story.hears(Input::Result(result(after)));
        story
    }

    fn leaving() -> Self {
        let mut story = Self::new();
        story.hears(STOP);
        story
    }

    #[track_caller]
    fn takes_no_notice_of(&mut self, input: Input) {
        let before = format!("{:?}", self.machine);
        assert_eq!(self.hears(input), []);
        assert_eq!(format!("{:?}", self.machine), before);
    }
}

#[test]
fn a_worker_waits_until_a_request_is_a_claim_and_again_after_its_result() {
    for waiting in [
        Story::new(),
        Story::looking(),
        Story::connecting(),
        Story::as_the_head(),
        Story::dealing_with_a_request(Took::Known),
        Story::dealing_with_a_request(Took::Rejected),
    ] {
        assert!(waiting.machine.is_waiting(), "{:?}", waiting.machine);
    }
    for at_work in [
        Story::confirming(),
        Story::closing(),
        Story::working(),
        Story::publishing(AfterResult::Leave),
        Story::leaving(),
    ] {
        assert!(!at_work.machine.is_waiting(), "{:?}", at_work.machine);
    }
}

#[test]
fn a_rejection_is_on_its_way_until_the_broker_has_it() {
    let mut story = Story::dealing_with_a_request(Took::Rejected);
    assert!(story.machine.is_rejecting());
    story.hears(Input::HeadPublished);
    assert!(!story.machine.is_rejecting());
}

#[test]
fn a_result_that_the_broker_does_not_take_is_published_again() {
    let mut story = Story::publishing(AfterResult::Leave);
    assert_eq!(story.hears(Input::NotPublished), []);
    let again = vec![Action::Publish(result(AfterResult::Leave))];
    assert_eq!(story.waits(), (RETRY_PAUSE, again.clone()));
    assert_eq!(story.machine.deadline(), None);
    // also while it is asked to stop, for as long as that leaves
    story.hears(Input::NotPublished);
    story.hears(Input::Stop { grace: SECOND * 60 });
    assert_eq!(story.waits(), (RETRY_PAUSE, again));
}

#[test]
fn what_comes_late_changes_nothing() {
    for input in [
        Input::NotPublished,
        Input::Closed,
        Input::Published(Subscribers::Some),
        Input::HeadConnected { resumed: true },
        Input::HeadReady,
        Input::HeadPublished,
        Input::HeadClosed,
        Input::HeadLost,
        Input::Looked(Looked::Claimed),
        Input::Took(Took::Claimed),
        Input::Result(result(AfterResult::Leave)),
        Input::Expired,
    ] {
        let mut standing = Story::new();
        standing.hears(Input::Tried(Tried::Held));
        standing.takes_no_notice_of(input);
    }
    for input in [
        Input::NotPublished,
        Input::Tried(Tried::Ours),
        Input::Tried(Tried::Held),
        Input::HeadConnected { resumed: true },
        Input::HeadReady,
        Input::HeadLost,
        Input::Closed,
        Input::HeadLeaves,
    ] {
        Story::working().takes_no_notice_of(input);
    }
    assert_eq!(Story::working().machine.deadline(), None);
}

#[test]
fn a_drive_that_fails_takes_nothing_from_a_head_that_has_its_claim() {
    let mut story = Story::closing();
    story.hears(Input::DriveFailed);
    assert_eq!(
        story.hears(Input::HeadClosed),
        [Action::AbandonHead, Action::FreeHead, Action::Run]
    );
    let mut working = Story::working();
    working.hears(Input::DriveFailed);
    let published = working.hears(Input::Result(result(AfterResult::Leave)));
    assert_eq!(published, [Action::Publish(result(AfterResult::Leave))]);
}

#[test]
fn a_drive_that_shows_no_claims_frees_the_head() {
    let mut story = Story::looking();
    assert_eq!(story.hears(Input::DriveFailed), [Action::FreeHead]);
    assert_eq!(story.waits(), (SECOND, vec![Action::TryHead]));
}

#[test]
fn whoever_is_not_sure_of_the_session_does_not_ask_for_it() {
    let mut standing = Story::new();
    assert_eq!(standing.hears(Input::StandBack), []);
    assert_eq!(standing.waits(), (SECOND, vec![Action::TryHead]));
    assert_eq!(
        Story::connecting().hears(Input::StandBack),
        [Action::CloseHead]
    );
}

#[test]
fn a_free_lock_is_tried_from_the_very_moment_of_the_pauses_end() {
    let mut story = Story::new();
    story.hears(Input::DriveFailed);
    assert_eq!(story.waits(), (SECOND, vec![Action::TryHead]));
    story.hears(Input::Tried(Tried::Held));
    assert_eq!(story.hears(Input::HeadFree), [Action::TryHead]);
}

#[test]
fn a_lost_connection_frees_the_head_unless_a_claim_is_at_stake() {
    for mut head in [
        Story::connecting(),
        Story::as_the_head(),
        Story::dealing_with_a_request(Took::Known),
        Story::dealing_with_a_request(Took::Rejected),
    ] {
        assert_eq!(
            head.hears(Input::Lost),
            [Action::AbandonHead, Action::FreeHead]
        );
    }
    for mut other in [Story::confirming(), Story::closing(), Story::working()] {
        assert_eq!(other.hears(Input::Lost), []);
    }
    assert_eq!(Story::leaving().hears(Input::Lost), [Action::Exit]);
}

#[test]
fn without_a_connection_nothing_is_tried_nor_published() {
    let mut standing = Story::new();
    standing.hears(Input::Tried(Tried::Held));
    standing.hears(Input::Lost);
    assert_eq!(standing.machine.deadline(), None);
    assert_eq!(standing.hears(Input::DriveFailed), []);
    assert_eq!(standing.machine.deadline(), None);

    let mut publishing = Story::publishing(AfterResult::Leave);
    publishing.hears(Input::NotPublished);
    publishing.hears(Input::Lost);
    assert_eq!(publishing.machine.deadline(), None);

    let mut working = Story::working();
    working.hears(Input::Lost);
    assert_eq!(working.hears(Input::Postpone), []);
    assert_eq!(working.hears(STOP), [Action::Exit]);
    assert_eq!(working.machine.deadline(), None);
}

#[test]
fn what_came_behind_a_request_is_forgotten_with_its_connection() {
    for (took, ends) in [
        (Took::Known, vec![Input::HeadLost]),
        (Took::Known, vec![Input::Lost, CONNECTED]),
        (
            Took::Rejected,
            vec![Input::HeadNotPublished, Input::HeadClosed],
        ),
    ] {
        let mut story = Story::dealing_with_a_request(took);
        story.hears(Input::Request(request(2)));
        for input in ends {
            story.hears(input);
        }
        story.becomes_the_head();
        story.hears(Input::Request(request(1)));
        story.hears(Input::Took(Took::InProgress));
        assert_eq!(story.hears(Input::HeadPublished), []);
    }
}

#[test]
fn what_comes_behind_a_request_is_taken_in_its_order_and_once() {
    let mut story = Story::dealing_with_a_request(Took::Rejected);
    for packet_id in [1, 2, 3, 2] {
        assert_eq!(story.hears(Input::Request(request(packet_id))), []);
    }
    assert_eq!(
        story.hears(Input::HeadPublished),
        [Action::Acknowledge(1), Action::Take(request(2))]
    );
    story.hears(Input::Took(Took::InProgress));
    assert_eq!(
        story.hears(Input::HeadPublished),
        [Action::Take(request(3))]
    );
    story.hears(Input::Took(Took::InProgress));
    assert_eq!(story.hears(Input::HeadPublished), []);
}

#[test]
fn a_request_may_come_before_the_subscription_is_confirmed() {
    let mut story = Story::connecting();
    story.hears(Input::HeadConnected { resumed: true });
    assert_eq!(
        story.hears(Input::Request(request(1))),
        [Action::Take(request(1))]
    );
}

#[test]
fn a_loss_counts_for_the_claim_that_is_there_or_about_to_be() {
    let arrives = |story: &mut Story| {
        story.hears(Input::Result(result(AfterResult::Leave)));
        story.hears(Input::Published(Subscribers::None)) == [Action::Remove, Action::Disconnect]
    };
    let mut before = Story::new();
    before.hears(Input::Lost);
    before.hears(CONNECTED);
    before.becomes_the_head();
    before.works();
    assert!(arrives(&mut before));

    let mut meanwhile = Story::as_the_head();
    meanwhile.hears(Input::Request(request(1)));
    meanwhile.hears(Input::Lost);
    meanwhile.hears(Input::Took(Took::Claimed));
    meanwhile.hears(Input::HeadPublished);
    meanwhile.hears(Input::HeadClosed);
    meanwhile.hears(CONNECTED);
    assert!(!arrives(&mut meanwhile));

    let mut taken_over = Story::as_the_head();
    taken_over.hears(Input::ClaimsFreed);
    taken_over.hears(Input::Looked(Looked::Claimed));
    taken_over.hears(Input::HeadClosed);
    assert!(!arrives(&mut taken_over));
}

#[test]
fn the_wait_for_a_controller_ends_with_its_result() {
    let mut story = Story::publishing(AfterResult::WaitOn);
    story.hears(Input::Lost);
    assert_eq!(story.hears(BLIND), []);
    let arrived = story.hears(Input::Published(Subscribers::Unknown));
    assert_eq!(arrived, [Action::Remove, Action::TryHead]);
    story.becomes_the_head();
    story.works();
    assert_eq!(
        story.hears(Input::Result(result(AfterResult::Leave))),
        [Action::Publish(result(AfterResult::Leave))]
    );
}

#[test]
fn a_stop_ends_what_would_go_on() {
    let mut rejected = Story::publishing(AfterResult::WaitOn);
    rejected.hears(STOP);
    assert_eq!(
        rejected.hears(Input::Published(Subscribers::Some)),
        [Action::Remove, Action::Disconnect]
    );
    let mut postponed = Story::working();
    postponed.hears(STOP);
    assert_eq!(postponed.hears(Input::Postpone), [Action::Disconnect]);
    for mut head in [Story::looking(), Story::connecting()] {
        assert_eq!(
            head.hears(STOP),
            [Action::AbandonHead, Action::FreeHead, Action::Disconnect]
        );
    }
    let given_back = [
        Action::AbandonHead,
        Action::FreeHead,
        Action::GiveBack,
        Action::Disconnect,
    ];
    let mut closing = Story::closing();
    assert_eq!(closing.hears(STOP), []);
    assert_eq!(closing.hears(Input::HeadClosed), given_back);
    let mut confirming = Story::confirming();
    confirming.hears(STOP);
    assert_eq!(confirming.hears(Input::HeadLost), given_back);
}

#[test]
fn leaving_takes_no_longer_than_a_disconnect_may() {
    let mut leaving = Story::leaving();
    assert_eq!(leaving.waits(), (LEAVE_WAIT, vec![Action::Exit]));
    assert_eq!(leaving.machine.deadline(), None);

    let mut gone = Story::publishing(AfterResult::Leave);
    gone.hears(STOP);
    gone.hears(Input::Published(Subscribers::Some));
    assert_eq!(gone.hears(Input::Closed), [Action::Exit]);
    assert_eq!(gone.machine.deadline(), None);

    let mut hurried = Story::leaving();
    hurried.takes_no_notice_of(STOP);

    let mut late = Story::publishing(AfterResult::Leave);
    late.hears(STOP);
    assert_eq!(late.waits(), (SECOND, vec![Action::Disconnect]));
    assert_eq!(late.waits(), (LEAVE_WAIT, vec![Action::Exit]));

    let mut closing = Story::as_the_head();
    closing.hears(Input::StandBack);
    let freed = vec![Action::AbandonHead, Action::FreeHead, Action::TryHead];
    assert_eq!(closing.waits(), (LEAVE_WAIT, freed));
}

#[test]
fn pauses_begin_anew_when_the_trouble_has_passed() {
    // the broker's
    let mut story = Story::new();
    for _ in 0..2 {
        story.connects();
        story.hears(Input::HeadLost);
        story.waits();
    }
    story.becomes_the_head();
    story.hears(Input::HeadLost);
    assert_eq!(story.waits().0, SECOND);
    // the drive's
    let mut story = Story::new();
    story.hears(Input::DriveFailed);
    story.waits();
    story.becomes_the_head();
    story.hears(Input::Request(request(1)));
    story.hears(Input::Took(Took::Known));
    story.hears(Input::HeadPublished);
    story.hears(Input::DriveFailed);
    story.hears(Input::HeadClosed);
    assert_eq!(story.waits().0, SECOND);
}

#[test]
fn looks_are_frequent_again_when_claims_may_be_free() {
    let mut story = Story::as_the_head();
    for pause in [FIRST_LOOK_PAUSE, FIRST_LOOK_PAUSE * 2] {
        assert_eq!(story.waits(), (pause, vec![Action::Look]));
        assert_eq!(story.machine.deadline(), None);
        story.hears(Input::Looked(Looked::Nothing));
    }
    story.hears(Input::ClaimsFreed);
    story.hears(Input::Looked(Looked::Nothing));
    assert_eq!(story.waits().0, FIRST_LOOK_PAUSE);
    story.hears(Input::Looked(Looked::Nothing));
    // a new turn
    story.hears(Input::HeadLost);
    story.waits();
    story.becomes_the_head();
    assert_eq!(story.waits().0, FIRST_LOOK_PAUSE);
}

#[test]
fn a_claim_that_was_freed_is_looked_for_once() {
    let mut story = Story::dealing_with_a_request(Took::Known);
    story.hears(Input::ClaimsFreed);
    story.hears(Input::HeadPublished);
    assert_eq!(story.waits().0, Duration::ZERO);
    story.hears(Input::Looked(Looked::Nothing));
    story.hears(Input::Request(request(2)));
    story.hears(Input::Took(Took::Known));
    story.hears(Input::HeadPublished);
    assert!(story.waits().0 > Duration::ZERO);
    // whoever becomes the head looks before anything else
    let mut story = Story::dealing_with_a_request(Took::Known);
    story.hears(Input::ClaimsFreed);
    story.hears(Input::HeadLost);
    story.waits();
    story.becomes_the_head();
    assert!(story.waits().0 > Duration::ZERO);
}
