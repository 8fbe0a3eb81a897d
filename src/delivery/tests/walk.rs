//! A model of a broker and a link that may lose anything, walked with the machine through every order of events.

use super::*;

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
                    queue
                        .iter_mut()
                        .take(self.delivered)
                        .for_each(|request| request.redelivered = true);
                }
                Input::Lost
            }
            Move::ForgetSession if !self.connected && self.queue.is_some() => {
                self.queue = None;
                return true;
            }
            Move::Deliver if self.connected => {
                let queue = self.queue.as_ref().expect("a connected session");
                let Some(request) = queue
                    .get(self.delivered)
                    .filter(|_| self.delivered < self.receive_maximum)
                else {
                    return false;
                };
                self.delivered += 1;
                Input::Request(request.clone())
            }
            // as NATS does: once more, on the live connection
            Move::Redeliver if self.connected && self.delivered > 0 => {
                let request = self.queue.as_ref().expect("a connected session")[0].clone();
                Input::Request(Delivery {
                    redelivered: true,
                    ..request
                })
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
                    assert!(
                        self.told,
                        "a life does not end before the broker has the result"
                    );
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
                assert!(
                    self.told,
                    "the request was acknowledged before the machine knew of the result's arrival"
                );
                let queue = self.queue.as_mut().expect("a connected session");
                let first = queue.pop_front().expect("something to acknowledge");
                assert!(
                    self.delivered > 0,
                    "acknowledged before it was delivered on this connection"
                );
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
            let fair = [
                Move::Receive,
                Move::PubAck,
                Move::Deliver,
                Move::Finish,
                Move::Connect,
                Move::TimePasses,
            ];
            // a life that has never got its request, on a session that has forgotten it, waits on
            if self.exited
                || (self.taken == 0
                    && self.machine.is_waiting()
                    && self.queue.as_ref().is_some_and(VecDeque::is_empty))
            {
                return;
            }
            assert!(
                fair.into_iter().any(|mv| self.makes(mv)),
                "stuck: {:?}",
                self.machine
            );
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
