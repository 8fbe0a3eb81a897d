//! A small MQTT broker inside the test process, which follows a script.
//!
//! It behaves as a real one (sessions, DUP redelivery, Receive Maximum, retained messages, last wills, take-over,
//! MQTT 5 and 3.1.1 on one port), and a test may decide about every single packet: withhold
//! it, change it, or cut the link before or after it. `examples/quickstart.rs` uses it as an embedded broker.
//!
//! Theory of operation: one thread accepts, one thread per connection reads. All state is behind one mutex, and packets
//! are written while it is held, so the transcript has exactly the order of the wire.
//!
//! Not served: keep-alive, QoS 2 (as MQTT 5 Maximum QoS 1 announces), No Local, topic aliases, message expiry,
//! will delay; a session with an expiry above 0 is kept until it is forgotten on purpose.

// The paths are spelled out because `examples/quickstart.rs` includes this file by its path too.
#[path = "broker/packet.rs"]
pub mod packet;
#[path = "broker/state.rs"]
mod state;

pub use packet::{Message, Packet};
use state::{Link, State, Will};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a client may leave its socket full before the broker gives it up.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(2);

/// The packet that a script decides about.
#[derive(Debug)]
pub struct Step<'a> {
    /// Client connections are counted from 0.
    pub connection: usize,
    pub from_client: bool,
    /// Client id of the connection; empty until its CONNECT has been accepted.
    pub client: &'a str,
    pub packet: &'a Packet,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Pass,
    /// Close the connection instead of processing or sending the packet.
    CutBefore,
    /// Process or send the packet, with all that follows from it, then close the connection.
    CutAfter,
    /// Swallow the packet; the connection stays.
    Drop,
    /// Forget the client's session, then close the connection.
    ForgetAndCut,
    /// Process or send this packet instead.
    Replace(Packet),
    /// Send this packet instead of processing one, then close the connection.
    Answer(Packet),
}

/// One line of the transcript.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub connection: usize,
    pub from_client: bool,
    /// [`Packet::Closed`] where the connection ends.
    pub packet: Packet,
    /// False where the script swallowed the packet or cut the link before it.
    pub passed: bool,
}

impl Entry {
    /// What the client has been told.
    pub fn told(&self) -> Option<&Packet> {
        (!self.from_client && self.passed).then_some(&self.packet)
    }
}

/// The broker; it stops with all its threads when it is dropped.
pub struct Broker {
    state: Arc<Mutex<State>>,
    port: u16,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Broker {
    /// Starts on a free port of the loopback interface.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free loopback port");
        let port = listener.local_addr().expect("the port just bound").port();
        let state = Arc::default();
        Self {
            acceptor: Mutex::new(Some(accept(&state, listener))),
            state,
            port,
        }
    }

    /// Starts with a script, see [`Broker::set_script`].
    pub fn scripted(script: impl FnMut(&Step) -> Verdict + Send + 'static) -> Self {
        let broker = Self::start();
        broker.set_script(script);
        broker
    }

    /// Asks `script` about every packet from now on. It runs inside the broker, so it must not call the broker; it may
    /// keep its own state, and tell the test through a channel.
    pub fn set_script(&self, script: impl FnMut(&Step) -> Verdict + Send + 'static) {
        self.lock().script = Some(Box::new(script));
    }

    /// Denies each CONNECT with this code, of the client's protocol version, until there is another script.
    pub fn deny(&self, code: u8) {
        let answer = Packet::ConnAck {
            session_present: false,
            code,
            properties: Vec::new(),
        };
        self.set_script(move |step| match step.packet {
            Packet::Connect { .. } => Verdict::Answer(answer.clone()),
            _ => Verdict::Pass,
        });
    }

    /// Says these encoded properties of MQTT 5 in each CONNACK, until there is another script.
    pub fn offer(&self, properties: &'static [u8]) {
        self.set_script(move |step| {
            let mut packet = step.packet.clone();
            if let Packet::ConnAck {
                properties: said, ..
            } = &mut packet
            {
                *said = properties.to_vec();
            }
            Verdict::Replace(packet)
        });
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Publishes with QoS 1, as a controller would.
    pub fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.publish_message(topic, payload.into(), false);
    }

    /// The same, retained.
    pub fn publish_retained(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.publish_message(topic, payload.into(), true);
    }

    fn publish_message(&self, topic: &str, payload: Vec<u8>, retain: bool) {
        let message = Message {
            topic: topic.to_owned(),
            payload,
            qos: 1,
            retain,
            ..Message::default()
        };
        self.lock().publish(message);
    }

    /// Everything that clients and their last wills have published to matching topics, in order.
    pub fn received(&self, filter: &str) -> Vec<Message> {
        self.lock().received(filter)
    }

    /// The retained message of a topic.
    pub fn retained(&self, topic: &str) -> Option<Message> {
        self.lock().retained.get(topic).cloned()
    }

    /// The transcript so far.
    pub fn log(&self) -> Vec<Entry> {
        self.lock().log.clone()
    }

    /// The packets of clients so far.
    pub fn sent(&self) -> Vec<Packet> {
        let mut log = self.log();
        log.retain(|entry| entry.from_client);
        log.into_iter().map(|entry| entry.packet).collect()
    }

    /// Messages that the session holds: in flight and queued.
    pub fn queued(&self, client: &str) -> usize {
        self.lock().queued(client)
    }

    pub fn is_connected(&self, client: &str) -> bool {
        self.lock().connection_of(client).is_some()
    }

    pub fn has_session(&self, client: &str) -> bool {
        self.lock().sessions.contains_key(client)
    }

    /// Sends the client a packet out of turn.
    pub fn send(&self, client: &str, packet: Packet) {
        let mut state = self.lock();
        if let Some(connection) = state.connection_of(client) {
            state.send(connection, packet);
        }
    }

    /// Closes the client's connection; the session stays, the last will is published.
    pub fn kick(&self, client: &str) {
        let mut state = self.lock();
        if let Some(connection) = state.connection_of(client) {
            state.close(connection, "kicked", Will::Publish);
        }
    }

    /// Drops the session, and closes the connection if there is one.
    pub fn forget_session(&self, client: &str) {
        self.lock().forget(client);
    }

    /// Drops all sessions and retained messages, as a restart without persistence does.
    pub fn forget_everything(&self) {
        let mut state = self.lock();
        let clients: Vec<_> = state.sessions.keys().cloned().collect();
        clients.iter().for_each(|client| state.forget(client));
        state.retained.clear();
    }

    /// Goes down: closes all connections (without last wills, as a broker that stops) and refuses new ones.
    pub fn stop_listening(&self) {
        let Some(thread) = self.acceptor.lock().unwrap().take() else {
            return;
        };
        let mut state = self.lock();
        state.away = true;
        let open: Vec<_> = state.links.keys().copied().collect();
        open.iter()
            .for_each(|&connection| state.close(connection, "broker went down", Will::Drop));
        drop(state);
        // Wakes the acceptor. If this is refused, a client has woken it before.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        thread.join().expect("the acceptor");
    }

    /// Comes up again on the same port, with the sessions and retained messages it had.
    pub fn listen_again(&self) {
        let mut acceptor = self.acceptor.lock().expect("an earlier panic");
        assert!(acceptor.is_none(), "the broker is already listening");
        let deadline = Instant::now() + Duration::from_secs(10);
        let listener = loop {
            // Somebody else's outgoing connection may hold the port for a moment.
            match TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "port {}: {error}", self.port),
            }
            std::thread::yield_now();
        };
        self.lock().away = false;
        *acceptor = Some(accept(&self.state, listener));
    }

    /// Waits until `n` messages have been received on matching topics and returns all there are by then.
    /// Like every `wait_…`, panics with the transcript if that takes longer than `within`.
    #[track_caller]
    pub fn wait_for_message(&self, filter: &str, n: usize, within: Duration) -> Vec<Message> {
        let enough = |state: &State| Some(state.received(filter)).filter(|all| all.len() >= n);
        self.wait(within, &format!("{n} messages on {filter}"), enough)
    }

    /// Waits until the transcript satisfies `condition`, which must not call the broker.
    #[track_caller]
    pub fn wait_until(&self, within: Duration, condition: impl Fn(&[Entry]) -> bool) {
        self.wait(within, "such transcript", |state| {
            condition(&state.log).then_some(())
        });
    }

    /// Waits until the session holds exactly `n` messages, in flight and queued.
    #[track_caller]
    pub fn wait_for_queued(&self, client: &str, n: usize, within: Duration) {
        let what = format!("session {client} with {n} messages");
        let reached = |state: &State| (state.queued(client) == n).then_some(());
        self.wait(within, &what, reached);
    }

    /// Waits until the client is connected (or is not).
    #[track_caller]
    pub fn wait_for_connected(&self, client: &str, connected: bool, within: Duration) {
        let what = format!("client {client} with connected = {connected}");
        let is_connected = |state: &State| state.connection_of(client).is_some();
        self.wait(within, &what, |state| {
            (is_connected(state) == connected).then_some(())
        });
    }

    #[track_caller]
    fn wait<T>(&self, within: Duration, what: &str, found: impl Fn(&State) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let mut state = self.lock();
            if let Some(value) = found(&state) {
                return value;
            }
            let waited = start.elapsed();
            if waited >= within && waited >= within.mul_f64(slowness()) {
                let log = std::mem::take(&mut state.log);
                drop(state);
                panic!("no {what} within {within:?}; transcript: {log:#?}");
            }
            drop(state);
            std::thread::sleep(POLL);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// How much slower a test may be, since the machine has others to work for: as many times as each processor has processes.
pub fn slowness() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().and_then(|load| load.parse().ok());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (load.unwrap_or(1.0_f64) / processors as f64).clamp(1.0, 6.0)
}

impl Drop for Broker {
    fn drop(&mut self) {
        let has_panicked = self.state.is_poisoned();
        if !has_panicked {
            self.stop_listening();
        }
        assert!(
            !has_panicked || std::thread::panicking(),
            "a script or the broker panicked"
        );
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state
        .lock()
        .expect("an earlier panic in the broker or in its script")
}

fn accept(state: &Arc<Mutex<State>>, listener: TcpListener) -> JoinHandle<()> {
    let shared = Arc::clone(state);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("accept");
            let mut state = lock(&shared);
            if state.away {
                return;
            }
            stream.set_nodelay(true).expect("TCP_NODELAY");
            let bounded = stream.set_write_timeout(Some(WRITE_LIMIT));
            bounded.expect("a write timeout");
            let connection = state.connections;
            state.connections += 1;
            let link = Link {
                stream: stream.try_clone().expect("a second handle"),
                version: 4,
                client: String::new(),
                will: None,
            };
            state.links.insert(connection, link);
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || read(&shared, connection, stream));
        }
    })
}

/// Reads a connection to its end. After a cut it goes on, without listening to the client, until the client closes too:
/// closing a socket with unread data would reset the connection, and the client could lose the last packets sent to it.
fn read(state: &Mutex<State>, connection: usize, mut stream: TcpStream) {
    let mut pending = Vec::new();
    let mut chunk = [0; 16 * 1024];
    let why = loop {
        match stream.read(&mut chunk) {
            Ok(0) => break "closed by the client",
            Ok(n) => pending.extend_from_slice(&chunk[..n]),
            Err(_) => break "reset by the client",
        }
        while let Some(packet) = packet::take_packet(&mut pending) {
            lock(state).receive(connection, &packet);
        }
    };
    lock(state).close(connection, why, Will::Publish);
}
