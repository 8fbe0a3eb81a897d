//! Single rules first; then a model of a broker and a link that may lose anything, walked through every order of events.

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
    Delivery { packet_id: None, ..request(name, 0) }
}

fn report(then: Then) -> Report {
    Report { topic: "jobs/results/a".into(), payload: b"{}".to_vec(), then }
}

/// A machine and a clock, for tests that read as a story.
struct Story {
    machine: Machine,
    now: Instant,
}

impl Story {
    fn new() -> Self {
        Self { machine: Machine::default(), now: Instant::now() }
    }

    /// Connected, with the request `a` taken under packet identifier 1.
    fn with_a_request() -> Self {
        let mut story = Self::new();
        assert_eq!(story.hears(Input::Connected { resumed: true }), []);
        assert_eq!(story.hears(Input::Request(request("a", 1))), [Action::Take(request("a", 1))]);
        story
    }

    fn with_a_report(then: Then) -> Self {
        let mut story = Self::with_a_request();
        assert_eq!(story.hears(Input::Answer(report(then))), [Action::Publish(report(then))]);
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
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1), Action::Disconnect]);
    assert_eq!(story.hears(Input::Closed), [Action::Exit]);
}

#[test]
fn after_an_answer_that_is_no_run_the_next_request_is_taken() {
    let mut story = Story::with_a_report(Then::WaitOn);
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1)]);
    assert_eq!(story.hears(Input::Request(request("b", 2))), [Action::Take(request("b", 2))]);
}

#[test]
fn requests_behind_the_first_stay_with_the_broker() {
    let mut story = Story::with_a_request();
    assert_eq!(story.hears(Input::Request(request("b", 2))), []);
    assert_eq!(story.hears(Input::Answer(report(Then::Leave))), [Action::Publish(report(Then::Leave))]);
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1), Action::Disconnect]);
}

#[test]
fn requests_behind_a_rejected_one_are_taken_in_their_order() {
    let mut story = Story::with_a_request();
    story.hears(Input::Request(request("b", 2)));
    story.hears(Input::Request(request("c", 3)));
    story.hears(Input::Answer(report(Then::WaitOn)));
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1), Action::Take(request("b", 2))]);
}

#[test]
fn a_redelivery_on_the_live_connection_is_not_a_new_request() {
    let mut story = Story::with_a_request();
    let again = Delivery { redelivered: true, ..request("a", 1) };
    assert_eq!(story.hears(Input::Request(again)), []);
    story.hears(Input::Answer(report(Then::WaitOn)));
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1)], "and is not taken later");
}

#[test]
fn the_same_job_published_twice_is_two_requests() {
    let mut story = Story::with_a_request();
    story.hears(Input::Request(request("a", 2)));
    story.hears(Input::Answer(report(Then::WaitOn)));
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1), Action::Take(request("a", 2))]);
}

#[test]
fn a_link_lost_before_the_broker_has_the_answer_means_publishing_it_again() {
    for resumed in [true, false] {
        let mut story = Story::with_a_report(Then::Leave);
        assert_eq!(story.hears(Input::Lost), []);
        assert_eq!(story.hears(Input::Connected { resumed }), [Action::Publish(report(Then::Leave))]);
    }
}

#[test]
fn after_a_lost_link_the_redelivered_request_is_acknowledged_and_not_the_old_one() {
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: true });
    assert_eq!(story.hears(Input::Published), [], "nothing to acknowledge yet on this connection");
    let again = Delivery { redelivered: true, ..request("a", 1) };
    assert_eq!(story.hears(Input::Request(again)), [Action::Acknowledge(1), Action::Disconnect]);
}

#[test]
fn a_broker_that_restarted_may_redeliver_without_dup_under_another_identifier() {
    let mut story = Story::with_a_request();
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: true });
    assert_eq!(story.hears(Input::Request(request("a", 9))), [], "our own job, not another run of it");
    story.hears(Input::Answer(report(Then::Leave)));
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(9), Action::Disconnect]);
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
    assert_eq!(story.hears(Input::Published), [Action::Disconnect], "it stays with the broker, for the next worker");
}

#[test]
fn a_link_lost_after_our_acknowledgement_is_made_sure_of() {
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Published);
    assert_eq!(story.hears(Input::Lost), [], "nobody knows whether the acknowledgement got through");
    assert_eq!(story.hears(Input::Connected { resumed: true }), []);
    let again = Delivery { redelivered: true, ..request("a", 1) };
    assert_eq!(story.hears(Input::Request(again)), [Action::Acknowledge(1), Action::Disconnect]);
}

#[test]
fn another_request_instead_of_ours_says_that_our_acknowledgement_got_through() {
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Published);
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: true });
    assert_eq!(story.hears(Input::Request(request("b", 2))), [Action::Disconnect]);
}

#[test]
fn a_redelivery_that_never_comes_is_not_waited_for_for_ever() {
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Lost);
    story.hears(Input::Connected { resumed: true });
    story.hears(Input::Published);
    assert_eq!(story.waits_for_its_deadline(), [Action::Disconnect]);
    assert_eq!(story.waits_for_its_deadline(), [Action::Exit], "nor is a DISCONNECT that does not leave");
}

#[test]
fn an_answer_that_the_broker_does_not_take_is_published_again_later() {
    let mut story = Story::with_a_report(Then::Leave);
    assert_eq!(story.hears(Input::NotPublished), []);
    assert_eq!(story.waits_for_its_deadline(), [Action::Publish(report(Then::Leave))]);
}

#[test]
fn a_request_at_qos_0_is_answered_and_nothing_is_acknowledged() {
    let mut story = Story::new();
    story.hears(Input::Connected { resumed: true });
    assert_eq!(story.hears(Input::Request(at_qos_0("a"))), [Action::Take(at_qos_0("a"))]);
    story.hears(Input::Answer(report(Then::Leave)));
    assert_eq!(story.hears(Input::Published), [Action::Disconnect]);
}

#[test]
fn a_request_at_qos_0_during_a_job_is_refused_before_we_leave() {
    let mut story = Story::with_a_request();
    assert_eq!(story.hears(Input::Request(at_qos_0("b"))), []);
    story.hears(Input::Answer(report(Then::Leave)));
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1), Action::Refuse(at_qos_0("b"))]);
    story.hears(Input::Answer(report(Then::Leave)));
    assert_eq!(story.hears(Input::Published), [Action::Disconnect]);
}

#[test]
fn a_stop_while_waiting_disconnects_and_without_a_link_just_goes() {
    let mut story = Story::new();
    assert_eq!(story.hears(Input::Stop { grace: SECOND }), [Action::Exit]);
    let mut story = Story::new();
    story.hears(Input::Connected { resumed: true });
    assert_eq!(story.hears(Input::Stop { grace: SECOND }), [Action::Disconnect]);
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
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1), Action::Disconnect]);
    let mut story = Story::with_a_report(Then::Leave);
    story.hears(Input::Lost);
    story.hears(Input::Stop { grace: SECOND });
    assert_eq!(story.waits_for_its_deadline(), [Action::Exit], "the journal has the result, the broker the request");
}

#[test]
fn a_stop_ends_a_life_that_would_wait_on() {
    let mut story = Story::with_a_report(Then::WaitOn);
    story.hears(Input::Stop { grace: SECOND });
    assert_eq!(story.hears(Input::Published), [Action::Acknowledge(1), Action::Disconnect]);
}

/// A broker with the requests `a` and `b` queued for us, and the link between.
#[derive(Clone)]
struct World {
    machine: Machine,
    now: Instant,
    connected: bool,
    /// `Some` while the broker has our session.
    queue: Option<VecDeque<Delivery>>,
    /// How many requests of the queue this connection has delivered.
    delivered: usize,
    /// The broker sends one at a time (MQTT 5), or as many as there are (3.1.1).
    receive_maximum: usize,
    /// What the machine has sent and the broker has not received.
    sent: VecDeque<Action>,
    /// Acknowledgements of the broker that the machine has not received.
    acks: usize,
    results: usize,
    /// The machine has been told that the broker has the answer.
    told: bool,
    taken: usize,
    answered: bool,
    exited: bool,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Connect,
    Cut,
    ForgetSession,
    Deliver,
    Redeliver,
    Receive,
    PubAck,
    Finish,
    TimePasses,
}

const MOVES: [Move; 9] = [
    Move::Connect,
    Move::Receive,
    Move::PubAck,
    Move::Deliver,
    Move::Finish,
    Move::Cut,
    Move::ForgetSession,
    Move::Redeliver,
    Move::TimePasses,
];

impl World {
    fn new(receive_maximum: usize) -> Self {
        Self {
            machine: Machine::default(),
            now: Instant::now(),
            connected: false,
            queue: Some([request("a", 1), request("b", 2)].into()),
            delivered: 0,
            receive_maximum,
            sent: VecDeque::new(),
            acks: 0,
            results: 0,
            told: false,
            taken: 0,
            answered: false,
            exited: false,
        }
    }

    /// Makes a move, if it is possible now.
    fn makes(&mut self, mv: Move) -> bool {
        let input = match mv {
            _ if self.exited => return false,
            Move::Connect if !self.connected => {
                let resumed = self.queue.is_some();
                self.queue.get_or_insert_default();
                (self.connected, self.delivered, self.acks) = (true, 0, 0);
                Input::Connected { resumed }
            }
            Move::Cut if self.connected => {
                self.connected = false;
                self.sent.clear();
                if let Some(queue) = &mut self.queue {
                    queue.iter_mut().take(self.delivered).for_each(|request| request.redelivered = true);
                }
                Input::Lost
            }
            Move::ForgetSession if !self.connected && self.queue.is_some() => {
                self.queue = None;
                return true;
            }
            Move::Deliver if self.connected => {
                let queue = self.queue.as_ref().expect("a connected session");
                let Some(request) = queue.get(self.delivered).filter(|_| self.delivered < self.receive_maximum) else {
                    return false;
                };
                self.delivered += 1;
                Input::Request(request.clone())
            }
            // as NATS does: once more, on the live connection
            Move::Redeliver if self.connected && self.delivered > 0 => {
                let request = self.queue.as_ref().expect("a connected session")[0].clone();
                Input::Request(Delivery { redelivered: true, ..request })
            }
            Move::Receive => match self.sent.pop_front() {
                None => return false,
                Some(action) => return self.broker_receives(action),
            },
            Move::PubAck if self.connected && self.acks > 0 => {
                self.acks -= 1;
                self.told = true;
                Input::Published
            }
            Move::Finish if self.taken > 0 && !self.answered => {
                self.answered = true;
                Input::Answer(report(Then::Leave))
            }
            Move::TimePasses => match self.machine.deadline() {
                None => return false,
                Some(at) => {
                    self.now = at;
                    Input::Expired
                }
            },
            _ => return false,
        };
        self.machine_hears(input);
        true
    }

    fn machine_hears(&mut self, input: Input) {
        for action in self.machine.handle(input, self.now) {
            match action {
                Action::Take(request) => {
                    assert_eq!(request.payload, "a", "one job in a life");
                    self.taken += 1;
                    assert_eq!(self.taken, 1, "one job is run once");
                }
                Action::Exit => {
                    assert!(self.told, "a life does not end before the broker has the result");
                    self.exited = true;
                }
                Action::Refuse(_) => panic!("nothing came at QoS 0"),
                sent => {
                    assert!(self.connected, "{sent:?} without a connection");
                    self.sent.push_back(sent);
                }
            }
        }
    }

    fn broker_receives(&mut self, action: Action) -> bool {
        match action {
            Action::Publish(_) => {
                self.results += 1;
                self.acks += 1;
            }
            Action::Acknowledge(packet_id) => {
                assert!(self.told, "the request was acknowledged before the machine knew of the result's arrival");
                let queue = self.queue.as_mut().expect("a connected session");
                let first = queue.pop_front().expect("something to acknowledge");
                assert!(self.delivered > 0, "acknowledged before it was delivered on this connection");
                assert_eq!(
                    (first.packet_id, first.payload.as_ref()),
                    (Some(packet_id), &b"a"[..]),
                    "our own request only"
                );
                self.delivered -= 1;
            }
            Action::Disconnect => self.machine_hears(Input::Closed),
            other => panic!("{other:?} is not for the broker"),
        }
        true
    }

    /// From here on everything works: the life must come to its end.
    fn ends_well(mut self) {
        for _ in 0..40 {
            let fair = [Move::Receive, Move::PubAck, Move::Deliver, Move::Finish, Move::Connect, Move::TimePasses];
            // a life that has never got its request, on a session that has forgotten it, waits on
            if self.exited
                || (self.taken == 0 && self.machine.is_waiting() && self.queue.as_ref().is_some_and(VecDeque::is_empty))
            {
                return;
            }
            assert!(fair.into_iter().any(|mv| self.makes(mv)), "stuck: {:?}", self.machine);
        }
        panic!("no end: {:?}", self.machine);
    }
}

fn walk(world: &World, depth: usize, visited: &mut usize) {
    *visited += 1;
    world.clone().ends_well();
    if depth == 0 {
        return;
    }
    for mv in MOVES {
        let mut next = world.clone();
        if next.makes(mv) {
            walk(&next, depth - 1, visited);
        }
    }
}

#[test]
fn no_order_of_events_loses_a_job_or_acknowledges_too_soon() {
    for receive_maximum in [1, 20] {
        let mut visited = 0;
        walk(&World::new(receive_maximum), 13, &mut visited);
        assert!(visited > 10_000, "only {visited} states were visited");
    }
}

#[test]
fn nor_does_any_long_story() {
    // xorshift: the walks are the same in every run
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for walk in 0..20_000 {
        let mut world = World::new(if walk % 2 == 0 { 1 } else { 20 });
        for _ in 0..60 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            world.makes(MOVES[(random % MOVES.len() as u64) as usize]);
        }
        world.ends_well();
    }
}
