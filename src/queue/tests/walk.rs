//! A model of a broker, a link that may lose anything, a directory, and one worker's life after the other, walked with the
//! machine and the decision about earlier runs through every order of events.
//!
//! All requests are for one job, so that every mistake about whose result is whose shows: the same id, directory and text.

use super::*;
use crate::contract::{Decision, EarlierRun, JobId, Request};
use crate::messages::queue_origin;

/// 1 would tell nothing: see [`Message::identity`].
const FIRST_PACKET_ID: u16 = 2;

/// What the broker and its controllers are like.
#[derive(Clone, Copy, Debug)]
struct Setting {
    /// MQTT 5: one request at a time, and Subscription Identifiers. Else 3.1.1.
    version_5: bool,
    /// The `key` of each request, or none.
    keys: &'static [Option<&'static str>],
}

const SETTINGS: [Setting; 6] = [
    setting(true, &[None, None, None]),
    setting(true, &[Some("k"), Some("k"), None]),
    setting(true, &[Some("k"), Some("l"), Some("k")]),
    setting(false, &[None, None, None]),
    setting(false, &[Some("k"), Some("k"), None]),
    setting(false, &[Some("k"), Some("l"), Some("k")]),
];

const fn setting(version_5: bool, keys: &'static [Option<&'static str>]) -> Setting {
    Setting { version_5, keys }
}

/// A request in the broker, by its number in the order of publication.
#[derive(Clone, Debug)]
struct Queued {
    number: usize,
    message: Message,
}

/// A run of the job, by the request that it was for.
#[derive(Clone, Debug)]
struct Run {
    of: usize,
    /// `job.status.json` as it stands now.
    document: String,
}

#[derive(Clone)]
struct World {
    setting: Setting,
    now: Instant,
    /// The present life, if there is one.
    machine: Option<Machine>,
    connected: bool,
    /// What the broker keeps for our session, while it has one.
    queue: Option<VecDeque<Queued>>,
    /// How many requests of the queue this connection has delivered.
    delivered: usize,
    /// Counts sessions; each SUBSCRIBE gets a number of its own.
    subscription: u32,
    next_packet_id: u16,
    published: usize,
    /// What the machine has sent and the broker has not received.
    sent: VecDeque<(Action, Option<usize>)>,
    /// Acknowledgements of the broker that the machine has not received.
    acks: usize,
    /// The latest run in the directory.
    directory: Option<Run>,
    /// This life has taken a request that is not dealt with.
    working: Option<usize>,
    /// Whose run the result is of that is being published.
    result_of: Option<usize>,
    /// Jobs that this life has begun.
    begun: usize,
    /// For each request, the requests whose runs its results were of.
    results: [Vec<usize>; 3],
    /// For each request, how often it was run to its end.
    finished: [usize; 3],
    deaths: usize,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Publish,
    Connect,
    Receive,
    PubAck,
    Deliver,
    Finish,
    Cut,
    Die,
    ForgetSession,
    Redeliver,
    TimePasses,
}

const MOVES: [Move; 11] = [
    Move::Publish,
    Move::Connect,
    Move::Receive,
    Move::PubAck,
    Move::Deliver,
    Move::Finish,
    Move::Cut,
    Move::Die,
    Move::ForgetSession,
    Move::Redeliver,
    Move::TimePasses,
];

impl World {
    fn new(setting: Setting) -> Self {
        let mut world = Self {
            setting,
            now: Instant::now(),
            machine: None,
            connected: false,
            queue: Some(VecDeque::new()),
            delivered: 0,
            subscription: 1,
            next_packet_id: FIRST_PACKET_ID,
            published: 0,
            sent: VecDeque::new(),
            acks: 0,
            directory: None,
            working: None,
            result_of: None,
            begun: 0,
            results: Default::default(),
            finished: [0; 3],
            deaths: 0,
        };
        assert!(world.makes(Move::Publish));
        world
    }

    fn payload(&self, number: usize) -> String {
        match self.setting.keys[number] {
            Some(key) => format!(r#"{{"id":"a","workDir":"x","key":"{key}"}}"#),
            None => r#"{"id":"a","workDir":"x"}"#.to_owned(),
        }
    }

    /// Makes a move, if it is possible now.
    fn makes(&mut self, mv: Move) -> bool {
        let input = match mv {
            Move::Publish if self.published < self.setting.keys.len() => {
                let number = self.published;
                self.published += 1;
                let message = Message {
                    payload: self.payload(number).into(),
                    subscription: self.setting.version_5.then_some(self.subscription),
                    ..request("", self.next_packet_id)
                };
                if let Some(queue) = &mut self.queue {
                    queue.push_back(Queued { number, message });
                    self.next_packet_id += 1;
                }
                return true;
            }
            Move::Connect if !self.connected => {
                if self.machine.is_none() {
                    (self.machine, self.begun) = (Some(Machine::default()), 0);
                    self.subscription += 1; // each life subscribes
                }
                let resumed = self.queue.is_some();
                if !resumed {
                    (self.queue, self.next_packet_id) = (Some(VecDeque::new()), FIRST_PACKET_ID);
                    self.subscription += 1;
                }
                (self.connected, self.delivered, self.acks) = (true, 0, 0);
                Input::Connected {
                    resumed,
                    tells_subscribers: self.setting.version_5,
                }
            }
            Move::Cut if self.connected => {
                self.disconnect();
                Input::Lost
            }
            // as often as an attempt is given, and once more
            Move::Die if self.machine.is_some() && self.deaths < 4 => {
                self.deaths += 1;
                self.disconnect();
                self.machine = None;
                (self.working, self.result_of) = (None, None);
                return true;
            }
            Move::ForgetSession if !self.connected && self.queue.is_some() => {
                self.queue = None;
                return true;
            }
            Move::Deliver if self.connected => {
                let in_flight = if self.setting.version_5 { 1 } else { 20 };
                let queue = self.queue.as_ref().expect("a connected session");
                match queue.get(self.delivered) {
                    Some(next) if self.delivered < in_flight => {
                        let message = next.message.clone();
                        self.delivered += 1;
                        Input::Request(message)
                    }
                    _ => return false,
                }
            }
            // as NATS does: once more, on the live connection
            Move::Redeliver if self.connected && self.delivered > 0 => {
                let queue = self.queue.as_ref().expect("a connected session");
                Input::Request(Message {
                    redelivered: true,
                    ..queue[0].message.clone()
                })
            }
            Move::Receive => match self.sent.pop_front() {
                None => return false,
                Some((action, run)) => return self.broker_receives(action, run),
            },
            Move::PubAck if self.connected && self.acks > 0 => {
                self.acks -= 1;
                PUBLISHED
            }
            Move::Finish => match self.working.take() {
                None => return false,
                Some(number) => {
                    self.finished[number] += 1;
                    let run = self.directory.as_mut().expect("a run was begun");
                    run.document = run.document.replace("running", "success");
                    self.result_of = Some(run.of);
                    Input::Result(result(ENDS_LIFE))
                }
            },
            Move::TimePasses => match self.machine.as_ref().and_then(Machine::deadline) {
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

    /// What was delivered on this connection comes again, with DUP.
    fn disconnect(&mut self) {
        self.connected = false;
        self.sent.clear();
        if let Some(queue) = &mut self.queue {
            let delivered = queue.iter_mut().take(self.delivered);
            delivered.for_each(|queued| queued.message.redelivered = true);
        }
    }

    fn machine_hears(&mut self, input: Input) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        for action in machine.handle(input, self.now) {
            match action {
                Action::Take(message) => self.take(&message),
                Action::Exit => {
                    assert!(self.working.is_none(), "a life ends with its job");
                    (self.machine, self.result_of) = (None, None);
                    self.disconnect();
                }
                Action::RejectNow(_) => panic!("nothing came at QoS 0"),
                sent => {
                    assert!(self.connected, "{sent:?} without a connection");
                    self.sent.push_back((sent, self.result_of));
                }
            }
        }
    }

    /// Does what a worker does with a request: looks into the directory, and runs the job or sends the stored result.
    fn take(&mut self, message: &Message) {
        assert_eq!(self.begun, 0, "one job in a life");
        self.begun += 1;
        let queue = self.queue.as_ref().expect("a connected session");
        let mut same = queue.iter().take(self.delivered);
        let number = same
            .find(|queued| queued.message.packet_id == message.packet_id)
            .expect("a request of the queue")
            .number;
        let request = Request::parse(&message.payload).expect("a good request");
        let origin = queue_origin(message, "w");
        let earlier = self.directory.as_ref().and_then(|run| {
            EarlierRun::read(run.document.as_bytes(), &JobId::from_text("a").unwrap())
        });
        let decision = earlier
            .map(|earlier| EarlierRun::decide(Some(&earlier), request.key.as_deref(), &origin, 3));
        let document = |status: &str, attempt: u32| {
            let text = |name: &str, value: Option<&str>| {
                value.map_or(String::new(), |value| format!(r#","{name}":"{value}""#))
            };
            let (key, origin) = (request.key.as_deref(), origin.identity());
            format!(
                r#"{{"id":"a","status":"{status}","attempt":{attempt}{}{}}}"#,
                text("key", key),
                text("origin", origin)
            )
        };
        let run = match decision {
            None => document("running", 1),
            Some(Decision::Run(attempt)) => document("running", attempt.number),
            Some(Decision::Stored) => {
                self.result_of = self.directory.as_ref().map(|run| run.of);
                return self.machine_hears(Input::Result(result(ENDS_LIFE)));
            }
            Some(Decision::GiveUp(attempt, _)) => {
                let document = document("failed", attempt.number);
                self.directory = Some(Run {
                    of: number,
                    document,
                });
                self.result_of = Some(number);
                return self.machine_hears(Input::Result(result(ENDS_LIFE)));
            }
        };
        self.directory = Some(Run {
            of: number,
            document: run,
        });
        self.working = Some(number);
    }

    fn broker_receives(&mut self, action: Action, run: Option<usize>) -> bool {
        match action {
            Action::Publish(_) => {
                let of = run.expect("a result is of a run");
                // whichever request the worker means, its controller reads it
                self.results[of].push(of);
                for other in 0..self.published {
                    if other != of && self.is_same_request(other, of) {
                        self.results[other].push(of);
                    }
                }
                self.acks += 1;
            }
            Action::Acknowledge(packet_id) => {
                let queue = self.queue.as_mut().expect("a connected session");
                assert!(self.delivered > 0, "acknowledged before it was delivered");
                let at = queue
                    .iter()
                    .take(self.delivered)
                    .position(|queued| queued.message.packet_id == Some(packet_id))
                    .expect("a request of this connection");
                let acknowledged = queue.remove(at).expect("it was found");
                self.delivered -= 1;
                assert!(
                    !self.results[acknowledged.number].is_empty(),
                    "request {} was acknowledged without a result of its own run",
                    acknowledged.number
                );
            }
            Action::Disconnect => self.machine_hears(Input::Closed),
            other => panic!("{other:?} is not for the broker"),
        }
        true
    }

    fn is_same_request(&self, one: usize, other: usize) -> bool {
        let keys = self.setting.keys;
        keys[one].is_some() && keys[one] == keys[other]
    }

    /// From here on everything works: every request that the broker has gets its result.
    fn ends_well(mut self) {
        for _ in 0..120 {
            let fair = [
                Move::Receive,
                Move::PubAck,
                Move::Finish,
                Move::Deliver,
                Move::Connect,
                Move::TimePasses,
            ];
            let idle = self.working.is_none()
                && self.queue.as_ref().is_none_or(VecDeque::is_empty)
                && self.machine.as_ref().is_none_or(Machine::is_waiting);
            if idle {
                return self.has_run_nothing_twice();
            }
            assert!(
                fair.into_iter().any(|mv| self.makes(mv)),
                "stuck: {:?}",
                self.machine
            );
        }
        panic!("no end: {:?}", self.machine);
    }

    /// Over MQTT 3.1.1 a redelivery cannot be told from a fresh request, so a run may be repeated there; a key prevents it.
    fn has_run_nothing_twice(&self) {
        for number in 0..self.published {
            let known = self.setting.version_5 || self.setting.keys[number].is_some();
            let runs = self.finished[number];
            assert!(!known || runs <= 1, "request {number} was run {runs} times");
        }
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
fn no_order_of_events_loses_a_job_or_mistakes_a_result() {
    for setting in SETTINGS {
        let mut visited = 0;
        walk(&World::new(setting), 6, &mut visited);
        assert!(visited > 1_000, "only {visited} states were visited");
    }
}

#[test]
fn nor_does_any_long_story() {
    // xorshift: the walks are the same in every run
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for walk in 0..30_000 {
        let mut world = World::new(SETTINGS[walk % SETTINGS.len()]);
        // most stories go well most of the time, or they would never get far
        for _ in 0..next(80) {
            let moves = if next(3) == 0 { MOVES.len() } else { 6 };
            world.makes(MOVES[next(moves)]);
        }
        world.ends_well();
    }
}
