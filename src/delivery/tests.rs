//! Each rule by itself; in [`walk`], a model of a broker and a link that may lose anything, through every order of events.

mod walk;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn request(name: &'static str, packet_id: u16) -> Delivery {
    Delivery {
        topic: "jobs/pending".into(),
        payload: name.into(),
        packet_id: Some(packet_id),
        redelivered: false,
        retained: false,
    }
}

fn at_qos_0(name: &'static str) -> Delivery {
    Delivery {
        packet_id: None,
        ..request(name, 0)
    }
}

fn report(then: Then) -> Report {
    Report {
        topic: "jobs/results/a".into(),
        payload: b"{}".to_vec(),
        then,
    }
}

/// A machine and a clock, for tests that read as a story.
struct Story {
    machine: Machine,
    now: Instant,
}

impl Story {
    fn new() -> Self {
        Self {
            machine: Machine::default(),
            now: Instant::now(),
        }
    }

    /// Connected, with the request `a` taken under packet identifier 1.
    fn with_a_request() -> Self {
        let mut story = Self::new();
        assert_eq!(story.hears(Input::Connected { resumed: true }), []);
        assert_eq!(
            story.hears(Input::Request(request("a", 1))),
            [Action::Take(request("a", 1))]
        );
        story
    }

    fn with_a_report(then: Then) -> Self {
        let mut story = Self::with_a_request();
        assert_eq!(
            story.hears(Input::Answer(report(then))),
            [Action::Publish(report(then))]
        );
        story
    }

    fn hears(&mut self, input: Input) -> Vec<Action> {
        self.machine.handle(input, self.now)
    }

    fn waits_for_its_deadline(&mut self) -> Vec<Action> {
        self.now = self.machine.deadline().expect("a deadline");
        self.hears(Input::Expired)
    }
}

#[test]
fn the_order_at_the_end() {
    let mut story = Story::with_a_report(Then::Leave);
    assert_eq!(
        story.hears(Input::Published),
        [Action::Acknowledge(1), Action::Disconnect]
    );
    assert_eq!(story.hears(Input::Closed), [Action::Exit]);
}

#[test]
fn after_an_answer_that_is_no_run_the_next_request_is_taken() {
    let mut story = Story::with_a_report(Then::WaitOn);
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1)]);
    assert_eq!(
        story.hears(Input::Request(request("b", 2))),
        [Action::Take(request("b", 2))]
    );
}

#[test]
fn requests_behind_the_first_stay_with_the_broker() {
    let mut story = Story::with_a_request();
    assert_eq!(story.hears(Input::Request(request("b", 2))), []);
    assert_eq!(
        story.hears(Input::Answer(report(Then::Leave))),
        [Action::Publish(report(Then::Leave))]
    );
    assert_eq!(
        story.hears(Input::Published),
        [Action::Acknowledge(1), Action::Disconnect]
    );
}

#[test]
fn requests_behind_a_rejected_one_are_taken_in_their_order() {
    let mut story = Story::with_a_request();
    story.hears(Input::Request(request("b", 2)));
    story.hears(Input::Request(request("c", 3)));
    story.hears(Input::Answer(report(Then::WaitOn)));
    assert_eq!(
        story.hears(Input::Published),
        [Action::Acknowledge(1), Action::Take(request("b", 2))]
    );
}

#[test]
fn a_redelivery_on_the_live_connection_is_not_a_new_request() {
    let mut story = Story::with_a_request();
    let again = Delivery {
        redelivered: true,
        ..request("a", 1)
    };
    assert_eq!(story.hears(Input::Request(again)), []);
    story.hears(Input::Answer(report(Then::WaitOn)));
    assert_eq!(
        story.hears(Input::Published),
        [Action::Acknowledge(1)],
        "and is not taken later"
    );
}

#[test]
fn the_same_job_published_twice_is_two_requests() {
    let mut story = Story::with_a_request();
    story.hears(Input::Request(request("a", 2)));
    story.hears(Input::Answer(report(Then::WaitOn)));
    assert_eq!(
        story.hears(Input::Published),
        [Action::Acknowledge(1), Action::Take(request("a", 2))]
    );
}

#[test]
fn a_link_lost_before_the_broker_has_the_answer_means_publishing_it_again() {
    for resumed in [true, false] {
        let mut story = Story::with_a_report(Then::Leave);
        assert_eq!(story.hears(Input::Lost), []);
        assert_eq!(
            story.hears(Input::Connected { resumed }),
            [Action::Publish(report(Then::Leave))]
        );
    }
}

#[test]
fn after_a_lost_link_the_redelivered_request_is_acknowledged_and_not_the_old_one() {
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: true });
    assert_eq!(
        story.hears(Input::Published),
        [],
        "nothing to acknowledge yet on this connection"
    );
    let again = Delivery {
        redelivered: true,
        ..request("a", 1)
    };
    assert_eq!(
        story.hears(Input::Request(again)),
        [Action::Acknowledge(1), Action::Disconnect]
    );
}

#[test]
fn a_broker_that_restarted_may_redeliver_without_dup_under_another_identifier() {
    let mut story = Story::with_a_request();
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: true });
    assert_eq!(
        story.hears(Input::Request(request("a", 9))),
        [],
        "our own job, not another run of it"
    );
    story.hears(Input::Answer(report(Then::Leave)));
    assert_eq!(
        story.hears(Input::Published),
        [Action::Acknowledge(9), Action::Disconnect]
    );
}

#[test]
fn nothing_is_acknowledged_on_a_session_that_has_forgotten_the_request() {
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: false });
    assert_eq!(story.hears(Input::Published), [Action::Disconnect]);
}

#[test]
fn a_request_of_the_same_content_on_a_new_session_is_another_one() {
    let mut story = Story::with_a_request();
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: false });
    story.hears(Input::Request(request("a", 1)));
    story.hears(Input::Answer(report(Then::Leave)));
    assert_eq!(
        story.hears(Input::Published),
        [Action::Disconnect],
        "it stays with the broker, for the next worker"
    );
}

#[test]
fn a_link_lost_after_our_acknowledgement_is_made_sure_of() {
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Published);
    assert_eq!(
        story.hears(Input::Lost),
        [],
        "nobody knows whether the acknowledgement got through"
    );
    assert_eq!(story.hears(Input::Connected { resumed: true }), []);
    let again = Delivery {
        redelivered: true,
        ..request("a", 1)
    };
    assert_eq!(
        story.hears(Input::Request(again)),
        [Action::Acknowledge(1), Action::Disconnect]
    );
}

#[test]
fn another_request_instead_of_ours_says_that_our_acknowledgement_got_through() {
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Published);
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: true });
    assert_eq!(
        story.hears(Input::Request(request("b", 2))),
        [Action::Disconnect]
    );
}

#[test]
fn a_redelivery_that_never_comes_is_not_waited_for_for_ever() {
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: true });
    story.hears(Input::Published);
    assert_eq!(story.waits_for_its_deadline(), [Action::Disconnect]);
    assert_eq!(
        story.waits_for_its_deadline(),
        [Action::Exit],
        "nor is a DISCONNECT that does not leave"
    );
}

#[test]
fn an_answer_that_the_broker_does_not_take_is_published_again_later() {
    let mut story = Story::with_a_report(Then::Leave);
    assert_eq!(story.hears(Input::NotPublished), []);
    assert_eq!(
        story.waits_for_its_deadline(),
        [Action::Publish(report(Then::Leave))]
    );
}

#[test]
fn a_request_at_qos_0_is_answered_and_nothing_is_acknowledged() {
    let mut story = Story::new();
    story.hears(Input::Connected { resumed: true });
    assert_eq!(
        story.hears(Input::Request(at_qos_0("a"))),
        [Action::Take(at_qos_0("a"))]
    );
    story.hears(Input::Answer(report(Then::Leave)));
    assert_eq!(story.hears(Input::Published), [Action::Disconnect]);
}

#[test]
fn a_request_at_qos_0_during_a_job_is_refused_before_we_leave() {
    let mut story = Story::with_a_request();
    assert_eq!(story.hears(Input::Request(at_qos_0("b"))), []);
    story.hears(Input::Answer(report(Then::Leave)));
    assert_eq!(
        story.hears(Input::Published),
        [Action::Acknowledge(1), Action::Refuse(at_qos_0("b"))]
    );
    story.hears(Input::Answer(report(Then::Leave)));
    assert_eq!(story.hears(Input::Published), [Action::Disconnect]);
}

#[test]
fn a_stop_while_waiting_disconnects_and_without_a_link_just_goes() {
    let mut story = Story::new();
    assert_eq!(story.hears(Input::Stop { grace: SECOND }), [Action::Exit]);
    let mut story = Story::new();
    story.hears(Input::Connected { resumed: true });
    assert_eq!(
        story.hears(Input::Stop { grace: SECOND }),
        [Action::Disconnect]
    );
    assert_eq!(story.hears(Input::Lost), [Action::Exit]);
}

#[test]
fn a_released_request_stays_with_the_broker() {
    let mut story = Story::with_a_request();
    assert_eq!(story.hears(Input::Release), [Action::Disconnect]);
}

#[test]
fn a_stop_leaves_the_answer_a_grace_to_arrive() {
    let mut story = Story::with_a_report(Then::Leave);
    assert_eq!(story.hears(Input::Stop { grace: SECOND }), []);
    assert_eq!(
        story.hears(Input::Published),
        [Action::Acknowledge(1), Action::Disconnect]
    );
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Lost);
    story.hears(Input::Stop { grace: SECOND });
    assert_eq!(
        story.waits_for_its_deadline(),
        [Action::Exit],
        "the journal has the result, the broker the request"
    );
}

#[test]
fn a_stop_ends_a_life_that_would_wait_on() {
    let mut story = Story::with_a_report(Then::WaitOn);
    story.hears(Input::Stop { grace: SECOND });
    assert_eq!(
        story.hears(Input::Published),
        [Action::Acknowledge(1), Action::Disconnect]
    );
}
