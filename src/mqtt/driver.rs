//! Keeps a connection to the broker: where to connect to, in which protocol version, and when to try again.

use super::adapter::{Adapter, End, Failure};
use super::reasons::Lack;
use super::{Event, Host, Protocol, Settings, without_brackets};
use crate::backoff::Backoff;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// First and last pause between two tries to connect; it doubles in between.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// How long a broker may take to greet us at first, and each of several addresses. It doubles where nothing was enough.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_OF_SEVERAL: Duration = Duration::from_secs(2);

/// A connection that lasted this long was a good one. Two workers that kick each other with one client id never get there,
/// so they slow down, and one of them gives up.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);

/// How many connections in a row the broker has to drop early before [`Event::DroppedEarly`] says so.
const EARLY_DROPS: u32 = 3;

/// What the connection's thread runs.
pub struct Driver<'a> {
    settings: Arc<Settings>,
    /// Says that a connection may be made although another client took ours over. Its other end is gone with the link
    /// itself.
    resume: Receiver<()>,
    /// Where events go.
    sink: &'a dyn Fn(Event),
    /// Our subscriptions are known to be part of the session.
    pub is_subscribed: bool,
    pub version: Protocol,
    /// The version is configured, or the broker has taken it.
    version_is_certain: bool,
    /// A greeting in version 5 has failed.
    greeting_has_failed: bool,
    /// What the broker is known not to have.
    pub lacks: Vec<Lack>,
    /// Where the broker was not tried yet, in this round: which of its hosts, and that one's address, once its name is resolved.
    untried: VecDeque<(usize, Option<String>)>,
    /// The host that is tried, or is connected to.
    current: usize,
    has_several: bool,
    /// How often all addresses took too long to greet us.
    slow_rounds: u32,
    backoff: Backoff,
    /// Connections in a row that the broker has dropped early, and that no event has told of.
    early_drops: u32,
    /// The troubles that were logged. Each one is logged once: a broker can be away for days.
    logged: Vec<String>,
}

impl<'a> Driver<'a> {
    pub fn new(settings: Settings, resume: Receiver<()>, sink: &'a dyn Fn(Event)) -> Self {
        let protocol = settings.broker.protocol;
        Self {
            settings: Arc::new(settings),
            resume,
            sink,
            is_subscribed: false,
            version: protocol.unwrap_or(Protocol::V5),
            version_is_certain: protocol.is_some(),
            greeting_has_failed: false,
            lacks: Vec::new(),
            untried: VecDeque::new(),
            current: 0,
            has_several: false,
            slow_rounds: 0,
            backoff: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
            early_drops: 0,
            logged: Vec::new(),
        }
    }

    /// Makes one connection after the other, until the broker denies us or the worker is gone.
    pub fn run(mut self) {
        loop {
            let (connected_at, Failure(end, reason)) = self.make_connection();
            if end == End::Closed {
                return;
            }
            let lasted = connected_at.map(|at| at.elapsed());
            // a link with one connection says once how that has ended
            if lasted.is_some() && self.settings.is_lasting {
                (self.sink)(Event::Lost(reason.clone()));
            }
            match end {
                End::Denied => return (self.sink)(Event::Denied(reason)),
                // Certificate errors at start are configuration errors: give up. Later ones may pass, as certificates are
                // renewed. The head of a pool has its connection beside one that has lasted.
                End::Untrusted if self.settings.is_lasting && !self.is_subscribed => {
                    return (self.sink)(Event::Denied(reason));
                }
                End::TakenOver => (self.sink)(Event::TakenOver),
                _ => {}
            }
            if !self.settings.is_lasting {
                if end != End::TakenOver {
                    (self.sink)(Event::Lost(reason));
                }
                return;
            }
            // another client under our id may do the same: without a pause we would kick each other as fast as the network takes it
            match end {
                End::TakenOver if self.resume.recv().is_err() => return,
                End::TakenOver => {}
                _ => self.log_once(reason, lasted.is_some()),
            }
            self.judge(lasted, end == End::Dropped);
            std::thread::sleep(self.backoff.next_pause());
        }
    }

    /// Makes one connection, to the first address that has one for us, and passes on what it says. Returns since when it was
    /// there, and why it has ended, or why there is none.
    pub fn make_connection(&mut self) -> (Option<Instant>, Failure) {
        let mut another_may_pass = false;
        loop {
            let address = match self.next_address() {
                Ok(address) => address,
                Err(error) => return (None, End::Lost.because(error)),
            };
            let mut connected_at = None;
            let failure = self.drive_connection(&address, &mut connected_at);
            if connected_at.is_some() {
                self.logged.clear();
                self.untried.clear();
                self.slow_rounds = 0;
            }
            let was_5_a_try = !self.version_is_certain && self.version == Protocol::V5;
            let Failure(end, reason) = failure;
            match end {
                End::Lacks(lack) if !self.lacks.contains(&lack) => {
                    self.learn(lack);
                    self.untried.push_front((self.current, Some(address)));
                    continue;
                }
                End::NoVersion | End::NotGreeted if was_5_a_try => {
                    self.fall_back(address, end == End::NoVersion);
                    continue;
                }
                End::Lacks(_) | End::NoVersion => {
                    return (connected_at, End::Denied.because(reason));
                }
                // perhaps the next address answers
                End::Unanswered if self.untried.is_empty() => {
                    self.slow_rounds += 1;
                    if was_5_a_try {
                        self.fall_back(address, false);
                        continue;
                    }
                }
                _ => {}
            }
            if !self.version_is_certain {
                // 3.1.1 did not help: the broker has another trouble
                (self.version, self.greeting_has_failed) = (Protocol::V5, false);
            }
            let may_pass = matches!(
                end,
                End::NotGreeted | End::Unanswered | End::NoTls | End::Lost
            );
            let is_last = connected_at.is_some() || self.untried.is_empty();
            if is_last || !(may_pass || end == End::Untrusted) {
                // a host that did not answer may have a better certificate
                let end = match end {
                    End::Untrusted if another_may_pass => End::NoTls,
                    end => end,
                };
                return (connected_at, Failure(end, reason));
            }
            another_may_pass |= may_pass;
            if self.untried[0].0 != self.current {
                self.log_once(reason, false);
            }
        }
    }

    /// Tries this address again: a broker that restarts in this moment has version 5 all the same, so only the second failure
    /// counts, or what the broker says itself.
    fn fall_back(&mut self, address: String, is_certain: bool) {
        if std::mem::replace(&mut self.greeting_has_failed, true) || is_certain {
            self.version = Protocol::V3;
        }
        self.untried.push_front((self.current, Some(address)));
    }

    /// The next address of the broker. rumqttc would start a thread to resolve a name, which takes longer than all the rest of
    /// connecting.
    fn next_address(&mut self) -> Result<String, String> {
        let broker = &self.settings.broker;
        if self.untried.is_empty() {
            self.untried = (0..broker.hosts.len()).map(|index| (index, None)).collect();
            self.has_several = false;
        }
        let mut trouble = "its name has no address".to_owned();
        while let Some((index, address)) = self.untried.pop_front() {
            self.current = index;
            let Host { name, port } = &broker.hosts[index];
            let name = without_brackets(name);
            #[cfg(feature = "tls")]
            let address = address.or(broker.tls.is_some().then(|| name.to_owned())); // the certificate is for the name
            if let Some(address) = address {
                self.has_several |= !self.untried.is_empty();
                return Ok(address);
            }
            match (name, *port).to_socket_addrs() {
                Ok(addresses) => {
                    let found = addresses.map(|address| (index, without_port(address)));
                    let others = std::mem::take(&mut self.untried);
                    self.untried = found.filter(|(_, a)| a.is_some()).chain(others).collect();
                }
                Err(error) => trouble = unresolved(name, &error),
            }
        }
        Err(trouble)
    }

    /// How long the broker may take to greet us.
    fn patience(&self) -> Duration {
        let first = match self.has_several {
            true => PATIENCE_OF_SEVERAL,
            false => PATIENCE,
        };
        let most = self.settings.broker.keep_alive.mul_f64(1.5);
        (first * 2_u32.saturating_pow(self.slow_rounds)).min(most)
    }

    /// Makes one connection and passes on what it says, until it ends.
    fn drive_connection(&mut self, address: &str, connected_at: &mut Option<Instant>) -> Failure {
        let address = (address, self.settings.broker.hosts[self.current].port);
        let patience = self.patience();
        let adapter = Adapter::open(&self.settings, address, self.version, &self.lacks, patience);
        let mut adapter = match adapter {
            Ok(adapter) => adapter,
            Err(error) => return End::Lost.because(error),
        };
        loop {
            match adapter.next() {
                _ if self.resume.try_recv() == Err(TryRecvError::Disconnected) => {
                    return End::Closed.because("the link is gone");
                }
                Err(failure) => return failure,
                Ok(Event::Connected {
                    connection,
                    resumed,
                }) => {
                    *connected_at = Some(Instant::now());
                    self.log_connection();
                    self.version_is_certain = true;
                    let lacks = connection.lacks.iter();
                    lacks.for_each(|lack| self.learn(*lack));
                    let has_none = connection.subscriptions().is_empty();
                    if self.settings.is_lasting && !has_none {
                        // also in a session that has the subscription: each SUBSCRIBE marks what comes behind it anew, so that a
                        // broker that went back to an older state does not give a new request the identity of an old one
                        connection.subscribe();
                    }
                    (self.sink)(Event::Connected {
                        connection,
                        resumed,
                    });
                    if self.settings.is_lasting && has_none {
                        self.is_subscribed = true;
                        (self.sink)(Event::Ready);
                    }
                }
                Ok(Event::Ready) => {
                    self.is_subscribed = true;
                    (self.sink)(Event::Ready);
                }
                // its owner has the answer to all that it has asked
                Ok(Event::Closed) if !self.settings.is_lasting => {
                    return End::Closed.because("we have left");
                }
                Ok(Event::Closed) => {
                    // The CONNECT of the next worker must not overtake our last acknowledgement. Over 3.1.1 the request
                    // would run again: so the broker closes first.
                    while self.version == Protocol::V3 && adapter.next().is_ok() {}
                    (self.sink)(Event::Closed);
                    // the process ends now: taking the client apart, page by page, would only delay that
                    loop {
                        std::thread::park();
                    }
                }
                Ok(event) => (self.sink)(event),
            }
        }
    }

    /// Goes on without what the broker does not have.
    fn learn(&mut self, lack: Lack) {
        if !self.lacks.contains(&lack) {
            let level = match self.settings.is_lasting && lack != Lack::Identifiers {
                true => log::Level::Warn,
                false => log::Level::Debug,
            };
            log::log!(level, "{lack}");
            self.lacks.push(lack);
        }
    }

    fn log_connection(&self) {
        let host = &self.settings.broker.hosts[self.current];
        if !self.version_is_certain && self.version == Protocol::V3 {
            log::info!(
                "the broker has no MQTT 5: speaking 3.1.1 (MQTT_PROTOCOL_VERSION=4 skips the try)"
            );
        }
        let level = match self.settings.is_lasting {
            true => log::Level::Info,
            false => log::Level::Debug,
        };
        log::log!(level, "connected to the broker at {host}");
    }

    fn log_once(&mut self, trouble: String, was_connected: bool) {
        let host = &self.settings.broker.hosts[self.current];
        let state = match was_connected {
            true => "the connection is lost",
            false => "no connection",
        };
        let line = format!("broker {host}: {state}: {trouble}; trying again until it is back");
        if !self.logged.contains(&line) {
            log::warn!("{line}");
            self.logged.push(line);
        }
    }

    /// Judges a connection that lasted this long, or never came about: a good one makes the next pause the first again, and a
    /// broker that drops several early is told of.
    fn judge(&mut self, lasted: Option<Duration>, is_drop: bool) {
        if lasted.is_some_and(|lasted| lasted >= GOOD_CONNECTION) {
            self.backoff.reset();
            self.early_drops = 0;
        } else if is_drop {
            self.early_drops += 1;
            if self.early_drops == EARLY_DROPS {
                self.early_drops = 0;
                (self.sink)(Event::DroppedEarly);
            }
        }
    }
}

/// Why a name has no address.
pub fn unresolved(name: &str, error: &io::Error) -> String {
    match cfg!(target_env = "musl") && name.ends_with(".local") {
        true => format!("{error}; a static program resolves no .local names: give the address"),
        false => error.to_string(),
    }
}

/// An address as it stands before a port: an IPv6 address in brackets, and with its scope.
pub fn without_port(address: SocketAddr) -> Option<String> {
    Some(address.to_string().rsplit_once(':')?.0.to_owned())
}

#[cfg(test)]
mod tests;
