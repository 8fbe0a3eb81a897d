//! Keeps a connection to the broker: where to connect to, in which protocol version, and when to try again.

use super::adapter::{Adapter, Failure};
use super::{EARLY_DROPS, Event, Life, Protocol, Settings, v3, v5, without_brackets};
use crate::backoff::Backoff;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// First and last pause between two tries to connect; it doubles in between.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// A connection that lasted this long was a good one. Two workers that kick each other with one client id never get there,
/// so they slow down, and one of them gives up.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);

/// What the connection's thread runs.
pub struct Driver<F> {
    settings: Arc<Settings>,
    /// Says that a connection may be made although another client took ours over.
    resume: Receiver<()>,
    /// Nobody wants to hear of this link any more.
    is_abandoned: Arc<AtomicBool>,
    /// Where events go.
    sink: F,
    /// Our subscriptions are known to be part of the session.
    is_subscribed: bool,
    version: Protocol,
    /// The version is configured, or the broker has taken it.
    version_is_certain: bool,
    /// A connection in version 5 has ended in the greeting, for whatever reason.
    greeting_has_failed: bool,
    /// Addresses of the broker that have not been tried yet.
    untried_hosts: VecDeque<String>,
    backoff: Backoff,
    /// Connections in a row that the broker has dropped early.
    early_drops: u32,
    /// The trouble that was logged last. Each one is logged once: a broker can be away for days.
    logged_trouble: String,
}

impl<F: Fn(Event)> Driver<F> {
    pub fn new(
        settings: Settings,
        resume: Receiver<()>,
        is_abandoned: Arc<AtomicBool>,
        sink: F,
    ) -> Self {
        let protocol = settings.broker.protocol;
        Self {
            settings: Arc::new(settings),
            resume,
            is_abandoned,
            sink,
            is_subscribed: false,
            version: protocol.unwrap_or(Protocol::V5),
            version_is_certain: protocol.is_some(),
            greeting_has_failed: false,
            untried_hosts: VecDeque::new(),
            backoff: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
            early_drops: 0,
            logged_trouble: String::new(),
        }
    }

    /// Makes one connection after the other, until the broker denies us or the worker is gone.
    pub fn run(mut self) {
        loop {
            while self.settings.owner_is_stuck() {
                std::thread::sleep(LAST_PAUSE / 10);
            }
            let mut connected_at = None;
            let host = self.next_host();
            let failure = match &host {
                Ok(host) => self.drive_connection(host, &mut connected_at),
                Err(error) => Failure::Lost(error.to_string()),
            };
            if matches!(failure, Failure::Closed) {
                return;
            }
            if connected_at.is_some() {
                (self.sink)(Event::Lost);
                self.logged_trouble.clear();
                self.untried_hosts.clear();
            }
            let is_drop = matches!(failure, Failure::Dropped(_));
            let trouble = match failure {
                Failure::Denied(reason) => return (self.sink)(Event::Denied(reason)),
                // Certificate errors at start are configuration errors: give up. Later ones may pass, as certificates are
                // renewed.
                Failure::Untrusted(reason) if !self.is_subscribed => {
                    return (self.sink)(Event::Denied(reason));
                }
                Failure::TakenOver => {
                    (self.sink)(Event::TakenOver);
                    if self.settings.life == Life::Once {
                        return;
                    }
                    match self.resume.recv() {
                        Ok(()) => continue,
                        Err(_) => return,
                    }
                }
                Failure::NotGreeted(_) if self.may_fall_back() => {
                    // A broker that restarts in this moment has version 5 all the same.
                    if std::mem::replace(&mut self.greeting_has_failed, true) {
                        self.version = Protocol::V3;
                    }
                    if let Ok(host) = host {
                        self.untried_hosts.push_front(host);
                    }
                    continue;
                }
                Failure::OwnerStuck => {
                    "this worker is stuck, as in a drive that does not answer".to_owned()
                }
                Failure::Untrusted(trouble)
                | Failure::NotGreeted(trouble)
                | Failure::Dropped(trouble)
                | Failure::Lost(trouble) => trouble,
                Failure::Closed => return,
            };
            if !self.version_is_certain {
                // 3.1.1 did not help: the broker has another trouble
                (self.version, self.greeting_has_failed) = (Protocol::V5, false);
            }
            if self.settings.life == Life::Once && self.untried_hosts.is_empty() {
                if connected_at.is_none() {
                    (self.sink)(Event::Lost);
                }
                return;
            }
            if self.untried_hosts.is_empty() {
                self.log_once(trouble, connected_at.is_some());
                let lasted = connected_at.map(|at| at.elapsed());
                self.judge(lasted, is_drop);
                std::thread::sleep(self.backoff.next_pause());
            }
        }
    }

    /// The next address of the broker's name. rumqttc would start a thread to resolve the name, which takes longer than all
    /// the rest of connecting.
    fn next_host(&mut self) -> io::Result<String> {
        let broker = &self.settings.broker;
        let host = without_brackets(&broker.host);
        if self.untried_hosts.is_empty() {
            #[cfg(feature = "tls")]
            if broker.tls.is_some() {
                return Ok(host.to_owned()); // the certificate is for the name
            }
            let addresses = (host, broker.port).to_socket_addrs()?;
            self.untried_hosts = addresses.filter_map(without_port).collect();
        }
        let host = self.untried_hosts.pop_front();
        host.ok_or_else(|| io::Error::other("its name has no address"))
    }

    /// Makes one connection and passes on what it says, until it ends.
    fn drive_connection(&mut self, host: &str, connected_at: &mut Option<Instant>) -> Failure {
        let mut adapter: Box<dyn Adapter> = match self.version {
            Protocol::V3 => v3::open(&self.settings, host),
            Protocol::V5 => v5::open(&self.settings, host),
        };
        loop {
            match adapter.next() {
                _ if self.is_abandoned.load(Relaxed) => return Failure::Closed,
                Err(failure) => return failure,
                Ok(event @ Event::Connected { resumed, .. }) => {
                    *connected_at = Some(Instant::now());
                    self.log_connection();
                    self.version_is_certain = true;
                    (self.sink)(event);
                    match resumed && self.is_subscribed {
                        true => (self.sink)(Event::Ready),
                        false if self.settings.life == Life::Lasting => adapter.subscribe(),
                        false => {}
                    }
                }
                Ok(Event::Ready) => {
                    self.is_subscribed = true;
                    (self.sink)(Event::Ready);
                }
                Ok(Event::Closed) => {
                    // The CONNECT of the next worker must not overtake our last acknowledgement. Over 3.1.1 the request
                    // would run again: so the broker closes first.
                    while self.version == Protocol::V3 && adapter.next().is_ok() {}
                    (self.sink)(Event::Closed);
                    if self.settings.life == Life::Once {
                        return Failure::Closed;
                    }
                    // the process ends now: taking the client apart, page by page, would only delay that
                    loop {
                        std::thread::park();
                    }
                }
                Ok(event) => (self.sink)(event),
            }
        }
    }

    fn may_fall_back(&self) -> bool {
        !self.version_is_certain && self.version == Protocol::V5
    }

    fn log_connection(&self) {
        let (host, port) = (&self.settings.broker.host, self.settings.broker.port);
        if !self.version_is_certain && self.version == Protocol::V3 {
            log::info!(
                "the broker has no MQTT 5: speaking 3.1.1 (MQTT_PROTOCOL_VERSION=4 skips the try)"
            );
        }
        let level = match self.settings.life {
            Life::Lasting => log::Level::Info,
            Life::Once => log::Level::Debug,
        };
        log::log!(level, "connected to the broker at {host}:{port}");
    }

    fn log_once(&mut self, trouble: String, was_connected: bool) {
        if self.logged_trouble == trouble {
            return;
        }
        let (host, port) = (&self.settings.broker.host, self.settings.broker.port);
        let state = match was_connected {
            true => "the connection is lost",
            false => "no connection",
        };
        log::warn!("broker {host}:{port}: {state}: {trouble}; trying again until it is back");
        self.logged_trouble = trouble;
    }

    /// Judges a connection that lasted this long, or never came about: a good one makes the next pause the first again, and a
    /// broker that drops several early is told of.
    fn judge(&mut self, lasted: Option<Duration>, is_drop: bool) {
        if lasted.is_some_and(|lasted| lasted >= GOOD_CONNECTION) {
            self.backoff.reset();
            self.early_drops = 0;
        } else if is_drop {
            self.early_drops += 1;
            if self.early_drops >= EARLY_DROPS {
                (self.sink)(Event::DroppedEarly(self.early_drops));
            }
        }
    }
}

/// An address as it stands before a port: an IPv6 address in brackets, and with its scope.
pub fn without_port(address: SocketAddr) -> Option<String> {
    Some(address.to_string().rsplit_once(':')?.0.to_owned())
}

#[cfg(test)]
mod tests;
