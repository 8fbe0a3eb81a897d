//! Each rule by itself; in [`walk`], a model of a broker and a link that may lose anything, through every order of events.

mod walk;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A result that ends this life, and one behind which the next request is taken.
const ENDS_LIFE: bool = true;
const REJECTION: bool = false;

/// The broker has the result.
const PUBLISHED: Input = Input::Published {
    has_subscriber: true,
};

/// The same, and no client is subscribed to it.
const UNHEARD: Input = Input::Published {
    has_subscriber: false,
};

/// What a worker does when the broker has the result of its request.
const LEAVES: [Action; 2] = [Action::Acknowledge(1), Action::Disconnect];

fn request(name: &'static str, packet_id: u16) -> Message {
    Message {
        topic: "jobs/pending".into(),
        payload: name.into(),
        packet_id: Some(packet_id),
        redelivered: false,
        subscription: Some(5),
        retained: false,
    }
}

fn at_qos_0(name: &'static str) -> Message {
    Message {
        packet_id: None,
        ..request(name, 0)
    }
}

fn result(ends_life: bool) -> ResultMessage {
    ResultMessage {
        topic: "jobs/results/a".into(),
        payload: b"{}".to_vec(),
        ends_life,
        wait_for_subscriber: false,
    }
}

fn publish() -> Action {
    Action::Publish(result(ENDS_LIFE))
}

fn take(name: &'static str, packet_id: u16) -> Action {
    Action::Take(request(name, packet_id))
}

fn connected(resumed: bool) -> Input {
    Input::Connected {
        resumed,
        tells_subscribers: true,
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
        assert_eq!(story.connects(true), []);
        assert_eq!(story.is_given("a", 1), [take("a", 1)]);
        story
    }

    fn with_a_result(ends_life: bool) -> Self {
        let mut story = Self::with_a_request();
        assert_eq!(
            story.hears(Input::Result(result(ends_life))),
            [Action::Publish(result(ends_life))]
        );
        story
    }

    fn hears(&mut self, input: Input) -> Vec<Action> {
        self.machine.handle(input, self.now)
    }

    fn connects(&mut self, resumed: bool) -> Vec<Action> {
        self.hears(connected(resumed))
    }

    fn loses(&mut self) -> Vec<Action> {
        self.hears(Input::Lost)
    }

    fn is_given(&mut self, name: &'static str, packet_id: u16) -> Vec<Action> {
        self.hears(Input::Request(request(name, packet_id)))
    }

    fn has_result(&mut self, ends_life: bool) -> Vec<Action> {
        self.hears(Input::Result(result(ends_life)))
    }

    fn has_an_insisting_result(&mut self) {
        self.hears(Input::Result(ResultMessage {
            wait_for_subscriber: true,
            ..result(ENDS_LIFE)
        }));
    }

    fn published(&mut self) -> Vec<Action> {
        self.hears(PUBLISHED)
    }

    fn stops(&mut self) -> Vec<Action> {
        self.hears(Input::Stop { grace: SECOND })
    }

    fn waits_for_its_deadline(&mut self) -> Vec<Action> {
        self.now = self.machine.deadline().expect("a deadline");
        self.hears(Input::Expired)
    }
}

#[test]
fn the_order_at_the_end() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    assert_eq!(story.published(), LEAVES);
    assert_eq!(story.hears(Input::Closed), [Action::Exit]);
}

#[test]
fn after_an_answer_that_is_no_run_the_next_request_is_taken() {
    let mut story = Story::with_a_result(REJECTION);
    assert_eq!(story.published(), [Action::Acknowledge(1)]);
    assert_eq!(story.is_given("b", 2), [take("b", 2)]);
}

#[test]
fn requests_behind_the_first_stay_with_the_broker() {
    let mut story = Story::with_a_request();
    assert_eq!(story.is_given("b", 2), []);
    assert_eq!(story.has_result(ENDS_LIFE), [publish()]);
    assert_eq!(story.published(), LEAVES);
}

#[test]
fn requests_behind_a_rejected_one_are_taken_in_their_order() {
    let mut story = Story::with_a_request();
    story.is_given("b", 2);
    story.is_given("c", 3);
    story.has_result(REJECTION);
    assert_eq!(story.published(), [Action::Acknowledge(1), take("b", 2)]);
    story.has_result(REJECTION);
    assert_eq!(story.published(), [Action::Acknowledge(2), take("c", 3)]);
}

#[test]
fn a_request_behind_is_taken_once_and_only_on_its_connection() {
    // as NATS does: once more, on the live connection
    let mut story = Story::with_a_request();
    story.is_given("b", 2);
    story.is_given("b", 2);
    story.has_result(REJECTION);
    assert_eq!(story.published(), [Action::Acknowledge(1), take("b", 2)]);
    story.has_result(REJECTION);
    assert_eq!(story.published(), [Action::Acknowledge(2)]);
    // on the next one it has to come again
    let mut story = Story::with_a_request();
    story.is_given("b", 2);
    story.loses();
    story.connects(true);
    story.hears(Input::Request(again(1, true)));
    story.has_result(REJECTION);
    assert_eq!(story.published(), [Action::Acknowledge(1)]);
}

#[test]
fn what_comes_behind_is_another_request_but_for_a_redelivery_of_ours() {
    let old_topic = Message {
        topic: "old/pending".into(),
        ..again(1, true)
    };
    for (behind, is_other) in [
        (old_topic, true),
        (request("a", 2), true),
        (again(1, true), false),
    ] {
        let mut story = Story::with_a_request();
        assert_eq!(story.hears(Input::Request(behind.clone())), []);
        story.has_result(REJECTION);
        let mut expected = vec![Action::Acknowledge(1)];
        expected.extend(is_other.then(|| Action::Take(behind)));
        assert_eq!(story.published(), expected);
    }
}

/// Nobody knows whether the acknowledgement got through, until the broker delivers something. What is not ours may be a request that
/// nobody has seen.
#[test]
fn after_our_acknowledgement_the_next_connection_tells_whether_it_got_through() {
    let other_session = Message {
        subscription: Some(6),
        ..again(1, true)
    };
    for (delivered, is_ours) in [
        (again(1, true), true),
        (again(2, true), false),
        (other_session, false),
        (request("b", 2), false),
    ] {
        let mut story = Story::with_a_result(ENDS_LIFE);
        story.published();
        assert_eq!(story.loses(), []);
        assert_eq!(story.connects(true), []);
        let expected = if is_ours { &LEAVES[..] } else { &LEAVES[1..] };
        assert_eq!(story.hears(Input::Request(delivered)), expected);
    }
}

#[test]
fn what_is_said_of_a_packet_that_was_not_sent_changes_nothing() {
    let mut story = Story::with_a_request();
    assert_eq!(story.hears(Input::NotPublished), []);
    assert_eq!(story.machine.deadline(), None);
}

#[test]
fn each_wait_for_the_broker_has_its_length_and_nothing_happens_before() {
    type Begin = fn(&mut Story) -> Vec<Action>;
    let waits: [(Begin, Duration); 4] = [
        (|story| story.hears(Input::NotPublished), SECOND / 2),
        (|story| story.published(), LEAVE_WAIT),
        (
            |story| {
                story.loses();
                story.connects(true);
                story.published()
            },
            REDELIVERY_WAIT,
        ),
        (|story| story.stops(), SECOND),
    ];
    for (begin, length) in waits {
        let mut story = Story::with_a_result(ENDS_LIFE);
        begin(&mut story);
        let deadline = story.now + length;
        assert_eq!(story.machine.deadline(), Some(deadline));
        story.now = deadline - Duration::from_millis(1);
        assert_eq!(story.hears(Input::Expired), [], "too early");
        story.now = deadline;
        assert_ne!(story.hears(Input::Expired), []);
    }
}

#[test]
fn a_link_that_breaks_while_we_leave_is_the_end_where_nothing_is_to_be_acknowledged_again() {
    // the broker keeps no request of QoS 0
    let mut story = Story::new();
    story.connects(true);
    story.hears(Input::Request(at_qos_0("a")));
    story.has_result(ENDS_LIFE);
    assert_eq!(story.published(), [Action::Disconnect]);
    assert_eq!(story.loses(), [Action::Exit]);
    // a stop leaves no time to make sure of it
    let mut story = Story::with_a_result(ENDS_LIFE);
    story.published();
    story.stops();
    assert_eq!(story.loses(), [Action::Exit]);
}

#[test]
fn a_controller_has_60_s_to_come_back_and_no_longer() {
    for (waited, is_over) in [(59_999, false), (60_000, true)] {
        let mut story = Story::with_a_request();
        story.has_an_insisting_result();
        story.hears(UNHEARD);
        story.now += Duration::from_millis(waited);
        let actions = story.hears(UNHEARD);
        let has_left = actions.contains(&Action::Disconnect);
        assert_eq!(has_left, is_over, "{actions:?}");
    }
}

#[test]
fn a_link_lost_before_the_broker_has_the_answer_means_publishing_it_again() {
    for resumed in [true, false] {
        let mut story = Story::with_a_result(ENDS_LIFE);
        assert_eq!(story.loses(), []);
        assert_eq!(story.connects(resumed), [publish()]);
    }
}

#[test]
fn after_a_lost_link_the_redelivered_request_is_acknowledged_and_not_the_old_one() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    story.loses();
    story.connects(true);
    assert_eq!(
        story.published(),
        [],
        "nothing to acknowledge yet on this connection"
    );
    assert_eq!(story.hears(Input::Request(again(1, true))), LEAVES);
}

/// A request of the same text as the one that is held, on the next connection of its session.
fn again(packet_id: u16, redelivered: bool) -> Message {
    Message {
        redelivered,
        ..request("a", packet_id)
    }
}

#[test]
fn a_fresh_request_with_the_text_of_the_held_one_is_another_one() {
    for fresh in [again(1, false), again(2, false)] {
        for after_result in [false, true] {
            let mut story = Story::with_a_request();
            if after_result {
                story.has_result(ENDS_LIFE);
            }
            story.loses();
            story.connects(true);
            assert_eq!(story.hears(Input::Request(fresh.clone())), []);
            if !after_result {
                story.has_result(ENDS_LIFE);
            }
            assert_eq!(story.published(), [], "ours may still come");
            assert_eq!(
                story.waits_for_its_deadline(),
                [Action::Disconnect],
                "and the fresh one stays with the broker"
            );
        }
    }
}

#[test]
fn a_broker_that_numbers_each_connection_anew_redelivers_ours_first() {
    let mut story = Story::with_a_request();
    story.loses();
    story.connects(true);
    assert_eq!(story.hears(Input::Request(again(9, true))), []);
    assert_eq!(story.hears(Input::Request(again(10, true))), []);
    story.has_result(ENDS_LIFE);
    assert_eq!(
        story.published(),
        [Action::Acknowledge(9), Action::Disconnect]
    );
}

#[test]
fn nothing_is_acknowledged_on_a_session_that_has_forgotten_the_request() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    story.loses();
    story.connects(false);
    assert_eq!(story.published(), [Action::Disconnect]);
}

#[test]
fn a_request_of_the_same_content_on_a_new_session_is_another_one() {
    let mut story = Story::with_a_request();
    story.loses();
    story.connects(false);
    story.is_given("a", 1);
    story.has_result(ENDS_LIFE);
    assert_eq!(
        story.published(),
        [Action::Disconnect],
        "it stays with the broker, for the next worker"
    );
}

#[test]
fn a_redelivery_that_never_comes_is_not_waited_for_for_ever() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    story.loses();
    story.connects(true);
    story.published();
    assert_eq!(story.waits_for_its_deadline(), [Action::Disconnect]);
    assert_eq!(
        story.waits_for_its_deadline(),
        [Action::Exit],
        "nor is a DISCONNECT that does not leave"
    );
}

#[test]
fn an_answer_that_the_broker_does_not_take_is_published_again_later() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    assert_eq!(story.hears(Input::NotPublished), []);
    assert_eq!(story.waits_for_its_deadline(), [publish()]);
}

#[test]
fn a_request_at_qos_0_is_answered_and_nothing_is_acknowledged() {
    let mut story = Story::new();
    story.connects(true);
    assert_eq!(
        story.hears(Input::Request(at_qos_0("a"))),
        [Action::Take(at_qos_0("a"))]
    );
    story.has_result(ENDS_LIFE);
    assert_eq!(story.published(), [Action::Disconnect]);
}

#[test]
fn a_request_at_qos_0_during_a_job_is_rejected_at_once() {
    let mut story = Story::with_a_request();
    let reject = || [Action::RejectNow(at_qos_0("b"))];
    assert_eq!(story.hears(Input::Request(at_qos_0("b"))), reject());
    story.has_result(ENDS_LIFE);
    assert_eq!(story.hears(Input::Request(at_qos_0("b"))), reject());
    assert_eq!(story.published(), LEAVES, "and does not lengthen this life");
    assert_eq!(
        story.hears(Input::Request(at_qos_0("b"))),
        [],
        "nothing can be said any more"
    );
}

#[test]
fn a_result_that_the_broker_does_not_take_is_published_again_ever_more_slowly() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    for millis in [500, 1000, 2000, 4000, 5000, 5000] {
        assert_eq!(story.hears(Input::NotPublished), []);
        let deadline = story.now + Duration::from_millis(millis);
        assert_eq!(story.machine.deadline(), Some(deadline));
        story.now = deadline;
        let again = story.hears(Input::Expired);
        assert!(matches!(&*again, [Action::Publish(_)]), "{again:?}");
    }
}

#[test]
fn a_request_of_the_drive_is_done_when_the_broker_has_its_result_whatever_became_of_the_connection()
{
    for loses in [false, true] {
        let mut story = Story::new();
        story.connects(false);
        let request = at_qos_0("a");
        assert_eq!(
            story.hears(Input::Claim(request.clone())),
            [Action::Take(request)]
        );
        story.has_result(ENDS_LIFE);
        if loses {
            story.loses();
            let again = story.connects(false);
            assert_eq!(again, [publish()]);
        }
        assert_eq!(story.published(), [Action::EndClaim, Action::Disconnect]);
    }
}

#[test]
fn a_packet_identifier_that_is_given_away_again_proves_our_acknowledgement() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    let left = story.published();
    assert_eq!(left, LEAVES);
    assert_eq!(story.is_given("a", 1), []);
    // on another connection it would come with DUP set, and pass for the one that is done
    assert_eq!(story.loses(), [Action::Exit]);
    let mut story = Story::with_a_result(ENDS_LIFE);
    assert_eq!(story.published(), LEAVES);
    assert_eq!(story.is_given("b", 2), []);
    assert_eq!(story.loses(), [], "another identifier proves nothing");
}

/// A result that nobody is subscribed to, until it counts as delivered; tells after how long that was.
fn publishes_into_the_void(story: &mut Story) -> Duration {
    let start = story.now;
    let mut pauses = Vec::new();
    loop {
        let before = story.now;
        let mut actions = story.hears(UNHEARD);
        if !actions.is_empty() {
            assert_eq!(actions.pop(), Some(Action::Disconnect));
            let millis: Vec<_> = pauses.iter().map(Duration::as_millis).collect();
            assert_eq!(millis[..5], [500, 1000, 2000, 4000, 5000]);
            assert!(millis[5..].iter().all(|pause| *pause == 5000));
            return story.now - start;
        }
        let publish = story.waits_for_its_deadline();
        assert!(matches!(publish[..], [Action::Publish(_)]), "{publish:?}");
        pauses.push(story.now - before);
    }
}

#[test]
fn a_result_waits_for_a_controller_that_has_lost_its_connection_too() {
    for resumed in [true, false] {
        let mut story = Story::with_a_request();
        story.loses();
        story.connects(resumed);
        if resumed {
            story.hears(Input::Request(again(1, true)));
        }
        story.has_result(ENDS_LIFE);
        let waited = publishes_into_the_void(&mut story).as_secs_f64();
        assert!((60.0..65.1).contains(&waited), "{waited}");
    }
}

#[test]
fn a_result_that_insists_waits_for_its_controller() {
    let mut story = Story::with_a_request();
    story.has_an_insisting_result();
    assert_eq!(story.hears(UNHEARD), []);
    assert!(matches!(
        story.waits_for_its_deadline()[..],
        [Action::Publish(_)]
    ));
    assert_eq!(story.published(), LEAVES);
}

#[test]
fn a_result_that_nobody_wants_is_delivered_otherwise() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    assert_eq!(story.hears(UNHEARD), LEAVES);
}

#[test]
fn a_result_waits_blindly_where_the_broker_does_not_tell() {
    let reconnected = || Input::Connected {
        resumed: false,
        tells_subscribers: false,
    };
    for result_first in [true, false] {
        let mut story = Story::with_a_request();
        if result_first {
            story.has_result(ENDS_LIFE);
        }
        story.loses();
        assert_eq!(story.hears(reconnected()), []);
        let before = story.now;
        if !result_first {
            assert_eq!(story.has_result(ENDS_LIFE), []);
        }
        assert_eq!(story.waits_for_its_deadline(), [publish()]);
        assert_eq!(story.now - before, 2 * SECOND);
    }
    let mut story = Story::with_a_request();
    story.loses();
    story.hears(Input::Connected {
        resumed: true,
        tells_subscribers: false,
    });
    assert_eq!(
        story.has_result(ENDS_LIFE),
        [publish()],
        "on the same session it does not wait for a controller that may be there"
    );
}

#[test]
fn a_link_that_is_lost_ends_every_wait_for_the_broker() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    story.hears(Input::NotPublished);
    assert!(story.machine.deadline().is_some());
    story.loses();
    assert_eq!(story.machine.deadline(), None, "there is nobody to ask");
}

#[test]
fn a_stop_while_waiting_disconnects_and_without_a_link_just_goes() {
    let mut story = Story::new();
    assert_eq!(story.stops(), [Action::Exit]);
    let mut story = Story::new();
    story.connects(true);
    assert_eq!(story.stops(), [Action::Disconnect]);
    assert_eq!(story.loses(), [Action::Exit]);
}

#[test]
fn a_released_request_stays_with_the_broker() {
    let mut story = Story::with_a_request();
    assert_eq!(story.hears(Input::Requeue), [Action::Disconnect]);
}

#[test]
fn a_stop_leaves_the_answer_a_grace_to_arrive() {
    let mut story = Story::with_a_result(ENDS_LIFE);
    assert_eq!(story.stops(), []);
    assert_eq!(story.published(), LEAVES);
    let mut story = Story::with_a_result(ENDS_LIFE);
    story.loses();
    story.stops();
    assert_eq!(
        story.waits_for_its_deadline(),
        [Action::Exit],
        "the journal has the result, the broker the request"
    );
}

#[test]
fn a_stop_ends_a_life_that_would_wait_on() {
    let mut story = Story::with_a_result(REJECTION);
    story.stops();
    assert_eq!(story.published(), LEAVES);
}
