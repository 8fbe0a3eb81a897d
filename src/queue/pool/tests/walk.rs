//! Two members, a broker and a drive. The heads die before and after each step of taking, the drive fails, links break, the broker
//! forgets the session or goes back to an older state of it.
//!
//! All requests have the same text, so that every mistake about which is which shows.

use super::*;
use crate::queue::spool::Memory;
use std::collections::BTreeMap;

const REQUESTS: usize = 3;
/// 1 would tell nothing: see [`Message::telling_packet_id`].
const FIRST_PACKET_ID: u16 = 2;
const MAX_ATTEMPTS: usize = 3;

/// What the broker and its controllers are like.
#[derive(Clone, Copy, Debug)]
struct Setting {
    /// MQTT 5: one request at a time, and Subscription Identifiers. Else 3.1.1.
    version_5: bool,
    /// Whether the first two requests have one key.
    keyed: bool,
}

/// A request in the broker, by its number in the order of publication.
#[derive(Clone, Debug)]
struct Queued {
    number: usize,
    message: Message,
}

#[derive(Clone, Debug)]
struct Claim {
    number: usize,
    /// It has the name that counts.
    counts: bool,
    holder: Option<usize>,
    has_result: bool,
    takings: usize,
}

/// A life of a member, and what is under way between it and the broker.
#[derive(Clone)]
struct Member {
    machine: Machine,
    is_connected: bool,
    /// It wants a connection with the pool's session.
    opens_head: bool,
    /// What it has sent on the head's connection, and on its own.
    head_sent: VecDeque<Action>,
    own_sent: usize,
    /// What the broker has sent on the head's connection, and on its own.
    head_answers: VecDeque<Input>,
    own_answers: VecDeque<Input>,
    claim: Option<u64>,
    is_running: bool,
}

#[derive(Clone)]
struct World {
    setting: Setting,
    now: Instant,
    members: [Option<Member>; 2],
    /// Who has the lock on `head.lock`.
    head: Option<usize>,
    /// What the broker keeps for the pool's session, while there is one, and whether it has the subscription.
    session: Option<VecDeque<Queued>>,
    is_subscribed: bool,
    /// An older state of the session.
    saved: Option<VecDeque<Queued>>,
    /// Who is connected with the session, and how many requests that connection has got.
    connection: Option<usize>,
    delivered: usize,
    subscription: u32,
    next_packet_id: u16,
    published: usize,
    taken: Memory,
    claims: BTreeMap<u64, Claim>,
    next_key: u64,
    /// Of a request with a key, the directory has the result.
    directory_has_result: bool,
    finished: [usize; REQUESTS],
    answered: [bool; REQUESTS],
    /// The broker has lost it before anybody took it.
    lost: [bool; REQUESTS],
    went_back: bool,
    deaths: usize,
    /// In which step of taking the next head dies, or its drive fails.
    fate: Option<(u8, Fate)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Dies,
    DriveFails,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Publish,
    Begin(usize),
    ConnectHead(usize),
    ReceiveAtHead(usize),
    Receive(usize),
    HearAtHead(usize),
    Hear(usize),
    Deliver,
    Finish(usize),
    CutHead,
    Cut(usize),
    Reconnect(usize),
    Die(usize),
    Forget,
    Save,
    GoBack,
    Redeliver,
    TimePasses(usize),
    WillFail(u8, Fate),
}

fn moves() -> Vec<Move> {
    let mut moves = vec![
        Move::Publish,
        Move::Deliver,
        Move::CutHead,
        Move::Forget,
        Move::Save,
        Move::GoBack,
        Move::Redeliver,
    ];
    for member in 0..2 {
        moves.extend([
            Move::Begin(member),
            Move::ConnectHead(member),
            Move::ReceiveAtHead(member),
            Move::Receive(member),
            Move::HearAtHead(member),
            Move::Hear(member),
            Move::Finish(member),
            Move::Cut(member),
            Move::Reconnect(member),
            Move::Die(member),
            Move::TimePasses(member),
        ]);
    }
    for step in 0..4 {
        moves.push(Move::WillFail(step, Fate::Dies));
        moves.push(Move::WillFail(step, Fate::DriveFails));
    }
    moves
}

/// Moves that happen by themselves, sooner or later.
fn fair_moves() -> Vec<Move> {
    let mut moves = Vec::new();
    for member in 0..2 {
        moves.extend([
            Move::ReceiveAtHead(member),
            Move::HearAtHead(member),
            Move::Receive(member),
            Move::Hear(member),
            Move::Finish(member),
            Move::ConnectHead(member),
            Move::Reconnect(member),
            Move::Begin(member),
        ]);
    }
    moves.push(Move::Deliver);
    moves
}

impl World {
    fn new(setting: Setting) -> Self {
        Self {
            setting,
            now: Instant::now(),
            members: [None, None],
            head: None,
            session: Some(VecDeque::new()),
            is_subscribed: true,
            saved: None,
            connection: None,
            delivered: 0,
            subscription: 1,
            next_packet_id: FIRST_PACKET_ID,
            published: 0,
            taken: Memory::default(),
            claims: BTreeMap::new(),
            next_key: 1,
            directory_has_result: false,
            finished: [0; REQUESTS],
            answered: [false; REQUESTS],
            lost: [false; REQUESTS],
            went_back: false,
            deaths: 0,
            fate: None,
        }
    }

    fn has_key(&self, number: usize) -> bool {
        self.setting.keyed && number < 2
    }

    /// Makes a move, if it is possible now.
    fn makes(&mut self, mv: Move) -> bool {
        match mv {
            Move::Publish => self.publish(),
            Move::Begin(at) => {
                if self.members[at].is_some() {
                    return false;
                }
                self.members[at] = Some(Member {
                    machine: Machine::default(),
                    is_connected: true,
                    opens_head: false,
                    head_sent: VecDeque::new(),
                    own_sent: 0,
                    head_answers: VecDeque::new(),
                    own_answers: VecDeque::new(),
                    claim: None,
                    is_running: false,
                });
                self.hears(at, self.connected());
                true
            }
            Move::ConnectHead(at) => self.connect_head(at),
            Move::ReceiveAtHead(at) => {
                let sent = self
                    .member(at)
                    .and_then(|member| member.head_sent.pop_front());
                sent.map(|sent| self.broker_receives(at, sent)).is_some()
            }
            Move::Receive(at) => {
                let Some(member) = self.member(at).filter(|member| member.own_sent > 0) else {
                    return false;
                };
                member.own_sent -= 1;
                let published = Input::Published(Subscribers::Some);
                member.own_answers.push_back(published);
                let claim = member.claim.expect("a result is of a claim");
                let number = self.claims[&claim].number;
                for other in 0..self.published {
                    let same = self.has_key(number) && self.has_key(other);
                    self.answered[other] |= other == number || same;
                }
                true
            }
            Move::HearAtHead(at) => {
                let answer = self.member(at).and_then(|m| m.head_answers.pop_front());
                answer.map(|input| self.hears(at, input)).is_some()
            }
            Move::Hear(at) => {
                let answer = self.member(at).and_then(|m| m.own_answers.pop_front());
                answer.map(|input| self.hears(at, input)).is_some()
            }
            Move::Deliver => self.deliver(),
            Move::Redeliver => {
                // as NATS does: once more, on the live connection
                let first = self.session.as_ref().and_then(|session| session.front());
                match (self.connection, first) {
                    (Some(at), Some(first)) if self.delivered > 0 => {
                        let message = Message {
                            redelivered: true,
                            ..first.message.clone()
                        };
                        self.hears(at, Input::Request(message));
                        true
                    }
                    _ => false,
                }
            }
            Move::Finish(at) => self.finish(at),
            Move::CutHead => self.cut_head(),
            Move::Cut(at) => {
                let Some(member) = self.member(at).filter(|member| member.is_connected) else {
                    return false;
                };
                member.is_connected = false;
                (member.own_sent, member.own_answers) = (0, VecDeque::new());
                self.hears(at, Input::Lost);
                true
            }
            Move::Reconnect(at) => {
                let Some(member) = self.member(at).filter(|member| !member.is_connected) else {
                    return false;
                };
                member.is_connected = true;
                self.hears(at, self.connected());
                true
            }
            Move::Die(at) => {
                let can = self.members[at].is_some() && self.deaths < 4;
                if can {
                    self.dies(at);
                }
                can
            }
            Move::Forget => {
                if self.connection.is_some() || self.session.is_none() {
                    return false;
                }
                let queued = self.session.take().unwrap_or_default();
                queued.iter().for_each(|queued| {
                    self.lost[queued.number] |= !self.is_claimed(queued.number);
                });
                (self.is_subscribed, self.saved) = (false, None);
                true
            }
            Move::Save => {
                self.saved.clone_from(&self.session);
                self.saved.is_some()
            }
            Move::GoBack => {
                let Some(mut saved) = self.saved.take() else {
                    return false;
                };
                self.cut_head();
                saved
                    .iter_mut()
                    .for_each(|queued| queued.message.redelivered = true);
                for queued in self.session.take().unwrap_or_default() {
                    let is_kept = saved.iter().any(|saved| saved.number == queued.number);
                    self.lost[queued.number] |= !is_kept && !self.is_claimed(queued.number);
                }
                self.session = Some(saved);
                self.went_back = true;
                true
            }
            Move::TimePasses(at) => {
                let deadline = self.members[at].as_ref().and_then(|m| m.machine.deadline());
                let Some(deadline) = deadline else {
                    return false;
                };
                self.now = self.now.max(deadline);
                self.hears(at, Input::Expired);
                true
            }
            Move::WillFail(step, fate) => {
                let can = self.fate.is_none() && (fate != Fate::Dies || self.deaths < 4);
                if can {
                    self.fate = Some((step, fate));
                }
                can
            }
        }
    }

    fn member(&mut self, at: usize) -> Option<&mut Member> {
        self.members[at].as_mut()
    }

    fn connected(&self) -> Input {
        Input::Connected {
            tells_subscribers: self.setting.version_5,
        }
    }

    /// Whether a request has become a claim, or is done.
    fn is_claimed(&self, number: usize) -> bool {
        let is_it = |claim: &Claim| claim.counts && claim.number == number;
        self.answered[number] || self.claims.values().any(is_it)
    }

    fn publish(&mut self) -> bool {
        if self.published == REQUESTS {
            return false;
        }
        let number = self.published;
        self.published += 1;
        let message = Message {
            subscription: self.setting.version_5.then_some(self.subscription),
            ..request(self.next_packet_id)
        };
        match &mut self.session {
            Some(session) if self.is_subscribed => {
                session.push_back(Queued { number, message });
                self.next_packet_id += 1;
            }
            _ => self.lost[number] = true,
        }
        true
    }

    fn connect_head(&mut self, at: usize) -> bool {
        if !self.member(at).is_some_and(|member| member.opens_head) {
            return false;
        }
        self.cut_head(); // the session is taken over
        let Some(member) = self.member(at).filter(|member| member.opens_head) else {
            return true;
        };
        member.opens_head = false;
        let resumed = self.session.is_some();
        if !resumed {
            (self.session, self.next_packet_id) = (Some(VecDeque::new()), FIRST_PACKET_ID);
        }
        (self.connection, self.delivered) = (Some(at), 0);
        self.hears(at, Input::HeadConnected { resumed });
        true
    }

    /// The connection with the session ends. What was delivered on it comes again, with DUP.
    fn cut_head(&mut self) -> bool {
        let Some(at) = self.connection.take() else {
            return false;
        };
        if let Some(session) = &mut self.session {
            let delivered = session.iter_mut().take(self.delivered);
            delivered.for_each(|queued| queued.message.redelivered = true);
        }
        if let Some(member) = self.member(at) {
            member.head_sent.clear();
            member.head_answers.clear();
            self.hears(at, Input::HeadLost);
        }
        true
    }

    fn deliver(&mut self) -> bool {
        let in_flight = if self.setting.version_5 { 1 } else { 20 };
        let Some(at) = self.connection.filter(|_| self.delivered < in_flight) else {
            return false;
        };
        let session = self.session.as_ref().expect("a connected session");
        let Some(next) = session.get(self.delivered) else {
            return false;
        };
        let message = next.message.clone();
        self.delivered += 1;
        self.hears(at, Input::Request(message));
        true
    }

    fn finish(&mut self, at: usize) -> bool {
        let Some(member) = self.member(at).filter(|member| member.is_running) else {
            return false;
        };
        member.is_running = false;
        let key = member.claim.expect("what runs has a claim");
        let number = self.claims[&key].number;
        self.finished[number] += 1;
        self.directory_has_result |= self.has_key(number);
        self.has_result(at, key);
        true
    }

    fn has_result(&mut self, at: usize, key: u64) {
        self.claims.get_mut(&key).expect("a claim").has_result = true;
        self.hears(at, Input::Result(result(AfterResult::Leave)));
    }

    fn dies(&mut self, at: usize) {
        self.deaths += 1;
        self.ends(at);
    }

    /// A process ends: its locks are free, its connections gone.
    fn ends(&mut self, at: usize) {
        self.members[at] = None;
        if self.connection == Some(at) {
            self.cut_head();
        }
        if self.head == Some(at) {
            self.head = None;
        }
        let held = self
            .claims
            .values_mut()
            .filter(|claim| claim.holder == Some(at));
        held.for_each(|claim| claim.holder = None);
    }

    fn hears(&mut self, at: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.now;
            let Some(member) = self.member(at) else {
                return;
            };
            for action in member.machine.handle(input, now) {
                self.acts(at, action, &mut inputs);
                if self.members[at].is_none() {
                    return;
                }
            }
        }
    }

    fn acts(&mut self, at: usize, action: Action, inputs: &mut VecDeque<Input>) {
        match action {
            Action::TryHead => inputs.push_back(Input::Tried(self.try_head(at))),
            Action::FreeHead => {
                if self.head == Some(at) {
                    self.head = None;
                }
            }
            Action::Look => inputs.push_back(Input::Looked(self.look(at))),
            Action::OpenHead => self.member(at).expect("it acts").opens_head = true,
            Action::Subscribe { new_session } => {
                if new_session {
                    self.taken.clear();
                }
                self.sends(at, Action::Subscribe { new_session });
            }
            Action::Take(message) => inputs.extend(self.take(at, &message)),
            Action::Confirmed => {
                assert_eq!(self.head, Some(at), "confirmed without the lock");
                self.taken.confirm();
            }
            Action::AbandonHead => {
                self.member(at).expect("it acts").opens_head = false;
                if self.connection == Some(at) {
                    self.cut_head();
                }
            }
            Action::Run => self.run(at),
            Action::GiveBack => {
                let claim = self.member(at).and_then(|member| member.claim.take());
                self.claims
                    .get_mut(&claim.expect("a claim"))
                    .expect("it is there")
                    .holder = None;
            }
            Action::Publish(_) => {
                let member = self.member(at).expect("it acts");
                assert!(member.is_connected, "published without a connection");
                member.own_sent += 1;
            }
            Action::Remove => {
                let member = self.member(at).expect("it acts");
                let key = member.claim.take().expect("a claim");
                let claim = self.claims.remove(&key).expect("it is there");
                assert_eq!(claim.holder, Some(at), "removed another's claim");
                assert!(self.answered[claim.number], "removed without a result");
            }
            Action::Disconnect => inputs.push_back(Input::Closed),
            Action::Exit => self.ends(at),
            Action::Warn(_) => {}
            Action::RejectNow(_) => panic!("nothing came at QoS 0"),
            Action::Acknowledge(_) | Action::Confirm | Action::CloseHead => self.sends(at, action),
        }
    }

    fn sends(&mut self, at: usize, action: Action) {
        if self.connection == Some(at) {
            self.member(at)
                .expect("it acts")
                .head_sent
                .push_back(action);
        }
    }

    fn try_head(&mut self, at: usize) -> Tried {
        if self.head.is_some() {
            return Tried::Held;
        }
        self.head = Some(at);
        let uncounted: Vec<u64> = self
            .claims
            .iter()
            .filter(|(_, claim)| !claim.counts)
            .map(|(key, _)| *key)
            .collect();
        self.taken.forget(&uncounted);
        self.claims.retain(|_, claim| claim.counts);
        Tried::Ours
    }

    fn look(&mut self, at: usize) -> Looked {
        assert_eq!(self.head, Some(at), "looked without the lock");
        let free = self
            .claims
            .iter_mut()
            .find(|(_, claim)| claim.holder.is_none());
        let Some((key, claim)) = free else {
            return Looked::Nothing;
        };
        claim.holder = Some(at);
        claim.takings += 1;
        let key = *key;
        self.member(at).expect("it acts").claim = Some(key);
        Looked::Claimed
    }

    /// The steps of taking, one of which the head may not survive.
    fn take(&mut self, at: usize, message: &Message) -> Option<Input> {
        assert_eq!(self.head, Some(at), "taken without the lock");
        let session = self.session.as_ref().expect("a connected session");
        let number = session
            .iter()
            .take(self.delivered)
            .find(|queued| queued.message.packet_id == message.packet_id)
            .expect("a request of this connection")
            .number;
        if self.taken.has(message) {
            assert!(
                self.is_claimed(number),
                "request {number} is taken for another"
            );
            return Some(Input::Took(Took::Known));
        }
        let in_progress =
            |claim: &Claim| claim.counts && !claim.has_result && self.has_key(claim.number);
        if self.has_key(number) && self.claims.values().any(in_progress) {
            return Some(Input::Took(Took::InProgress));
        }
        let key = self.next_key;
        self.next_key += 1;
        for step in 0..4 {
            match self.fate.filter(|(fails_in, _)| *fails_in == step) {
                Some((_, Fate::Dies)) => {
                    self.fate = None;
                    self.dies(at);
                    return None;
                }
                Some((_, Fate::DriveFails)) => {
                    self.fate = None;
                    if let Some(claim) = self.claims.get_mut(&key) {
                        claim.holder = None; // its file is closed
                    }
                    return Some(Input::DriveFailed);
                }
                None => {}
            }
            match step {
                0 => {
                    let claim = Claim {
                        number,
                        counts: false,
                        holder: Some(at),
                        has_result: false,
                        takings: 1,
                    };
                    self.claims.insert(key, claim);
                }
                1 => drop(self.taken.note(key, message)),
                2 => self.claims.get_mut(&key).expect("a claim").counts = true,
                _ => {}
            }
        }
        self.member(at).expect("it acts").claim = Some(key);
        Some(Input::Took(Took::Claimed))
    }

    fn run(&mut self, at: usize) {
        assert_ne!(self.head, Some(at), "the head runs a job");
        let key = self
            .member(at)
            .and_then(|member| member.claim)
            .expect("a claim");
        let claim = &self.claims[&key];
        assert_eq!(claim.holder, Some(at), "runs another's claim");
        let stored = self.has_key(claim.number) && self.directory_has_result;
        if claim.has_result || claim.takings > MAX_ATTEMPTS || stored {
            return self.has_result(at, key);
        }
        self.member(at).expect("it acts").is_running = true;
    }

    fn broker_receives(&mut self, at: usize, action: Action) {
        assert_eq!(self.connection, Some(at));
        let answer = match action {
            Action::Subscribe { .. } => {
                self.is_subscribed = true;
                self.subscription += 1;
                Input::HeadReady
            }
            Action::Confirm => Input::HeadPublished,
            Action::CloseHead => {
                self.connection = None;
                if let Some(session) = &mut self.session {
                    // Mosquitto pushes the next request to a connection that is leaving
                    let delivered = session.iter_mut().take(self.delivered.max(1));
                    delivered.for_each(|queued| queued.message.redelivered = true);
                }
                return self.hears(at, Input::HeadClosed);
            }
            Action::Acknowledge(packet_id) => {
                let session = self.session.as_mut().expect("a connected session");
                let found = session
                    .iter()
                    .take(self.delivered)
                    .position(|queued| queued.message.packet_id == Some(packet_id));
                // twice, where it was delivered twice
                if let Some(found) = found {
                    let number = session.remove(found).expect("it was found").number;
                    self.delivered -= 1;
                    let same = self.has_key(number)
                        && (0..self.published).any(|n| self.has_key(n) && self.is_claimed(n));
                    assert!(
                        self.is_claimed(number) || same,
                        "request {number} was acknowledged, and nobody has it"
                    );
                }
                return;
            }
            other => panic!("{other:?} is not for the broker"),
        };
        self.member(at)
            .expect("it is connected")
            .head_answers
            .push_back(answer);
    }

    /// From here on everything works: every request that the broker has kept gets its result.
    fn ends_well(mut self) {
        self.goes_well();
        self.has_ended_well();
    }

    /// Everything works until there is nothing more to do.
    fn goes_well(&mut self) {
        self.fate = None;
        let fair = fair_moves();
        let mut turn = 0;
        for _ in 0..600 {
            let is_empty = self.session.as_ref().is_none_or(VecDeque::is_empty);
            if is_empty && self.claims.is_empty() {
                return;
            }
            if !fair.iter().any(|mv| self.makes(*mv)) {
                turn += 1;
                let moved = self.makes(Move::TimePasses(turn % 2))
                    || self.makes(Move::TimePasses((turn + 1) % 2));
                assert!(moved, "stuck");
            }
        }
        let members = self.members.iter().flatten();
        let states: Vec<_> = members.map(|member| &member.machine).collect();
        panic!("no end: {states:?} {:?} {:?}", self.claims, self.session);
    }

    fn has_ended_well(&self) {
        for number in 0..self.published {
            assert!(
                self.answered[number] || self.lost[number],
                "request {number} has no result"
            );
            // a broker that went back to an older state, over 3.1.1, sends anew what nothing tells from another request
            let is_known = self.setting.version_5 || self.has_key(number) || !self.went_back;
            let runs = self.finished[number];
            assert!(
                !is_known || runs <= 1,
                "request {number} was run {runs} times"
            );
        }
    }
}

const SETTINGS: [Setting; 4] = [
    setting(true, false),
    setting(false, false),
    setting(true, true),
    setting(false, true),
];

const fn setting(version_5: bool, keyed: bool) -> Setting {
    Setting { version_5, keyed }
}

fn walk(world: &World, depth: usize, visited: &mut usize) {
    *visited += 1;
    world.clone().ends_well();
    if depth == 0 {
        return;
    }
    for mv in moves() {
        let mut next = world.clone();
        if next.makes(mv) {
            walk(&next, depth - 1, visited);
        }
    }
}

/// Worlds from which every order of events is tried: at the beginning, at each step of a turn, and after an acknowledgement that
/// may be lost.
fn beginnings(setting: Setting) -> Vec<World> {
    let script = [
        Move::Publish,
        Move::Begin(0),
        Move::ConnectHead(0),
        Move::ReceiveAtHead(0),
        Move::HearAtHead(0),
        Move::Publish,
        Move::Begin(1),
        Move::Deliver,
        Move::ReceiveAtHead(0),
        Move::ReceiveAtHead(0),
        Move::HearAtHead(0),
        Move::ReceiveAtHead(0),
        Move::Finish(0),
    ];
    let mut world = World::new(setting);
    let mut worlds = vec![world.clone()];
    for mv in script {
        assert!(world.makes(mv), "{mv:?}");
        worlds.push(world.clone());
    }
    worlds
}

#[test]
fn no_order_of_events_loses_a_request_or_runs_one_twice() {
    for setting in SETTINGS {
        let mut visited = 0;
        for world in beginnings(setting) {
            walk(&world, 3, &mut visited);
        }
        assert!(visited > 10_000, "only {visited} states were visited");
    }
}

#[test]
fn a_broker_that_goes_back_to_an_older_state_has_nothing_run_again() {
    for keyed in [false, true] {
        let mut world = World::new(setting(true, keyed));
        for mv in [Move::Publish, Move::Publish, Move::Publish, Move::Save] {
            assert!(world.makes(mv));
        }
        world.goes_well();
        assert!(world.makes(Move::GoBack));
        assert_eq!(world.session.as_ref().map(VecDeque::len), Some(REQUESTS));
        world.ends_well();
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
    let (all, fair) = (moves(), fair_moves());
    for walk in 0..20_000 {
        let mut world = World::new(SETTINGS[walk % SETTINGS.len()]);
        // most stories go well most of the time, or they would never get far
        for _ in 0..next(120) {
            let moves = if next(3) == 0 { &all } else { &fair };
            world.makes(moves[next(moves.len())]);
            match next(60) {
                0..3 => world.makes(Move::Publish),
                3..5 => world.makes(Move::Save),
                5 => world.makes(Move::GoBack),
                _ => true,
            };
        }
        world.ends_well();
    }
}
