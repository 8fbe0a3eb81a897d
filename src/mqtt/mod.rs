//! The link to the broker: what the worker may ask of it, and what it hears from it.
//!
//! One thread drives one network connection after the other, each with a client of its own. So whatever was asked of a
//! connection that broke is gone with it, and nothing of it can reach the next one: an acknowledgement sent late would
//! acknowledge another message there. What must survive a connection is asked for again by the worker.

mod adapter;
mod driver;
mod probe;
mod reasons;
#[cfg(feature = "tls")]
pub mod tls;
mod v3;
mod v5;

pub use adapter::Connection;
use bytes::Bytes;
use driver::Driver;
pub use probe::probe;
use rumqttc::Transport;
use rumqttc::v5::mqttbytes::QoS;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

/// How to reach the broker.
#[derive(Clone, Debug)]
pub struct Broker {
    /// Where it is, in the order in which they are tried: several for a broker that is a cluster.
    pub hosts: Vec<Host>,
    /// Who we are; `None` to connect without a name.
    pub credentials: Option<Credentials>,
    /// How to be sure of the broker; `None` for a plain connection.
    #[cfg(feature = "tls")]
    pub tls: Option<tls::Tls>,
    /// The protocol version to speak; `None` for 5 with a fallback to 3.1.1 where the broker has no 5.
    pub protocol: Option<Protocol>,
    /// The longest silence before a ping is sent.
    pub keep_alive: Duration,
}

/// Where a broker is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host {
    /// Host name or address; an IPv6 address is in brackets.
    pub name: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.hosts.iter().map(Host::to_string).collect();
        f.write_str(&hosts.join(", "))
    }
}

impl Broker {
    fn transport(&self) -> Result<Transport, String> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.transport();
        }
        Ok(Transport::Tcp)
    }

    fn is_secure(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

/// The longest user name or password that MQTT takes, in bytes (MQTT 5, section 1.5.4).
pub const MAX_STRING_BYTES: u64 = 65_535;

/// User name and password for the broker.
#[derive(Clone)]
pub struct Credentials {
    /// The user name, shown in messages.
    pub username: String,
    /// The password.
    pub password: Password,
}

/// Where the password is. It is never shown.
#[derive(Clone)]
pub enum Password {
    /// Here.
    Text(String),
    /// In this file, which is read for each connection: it may be another one by then.
    File(PathBuf),
}

impl Password {
    /// The password.
    ///
    /// # Errors
    /// The file, and why it cannot be read as text.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => {
                regular(path, MAX_STRING_BYTES)?;
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|error| format!("{path:?}: cannot be read: {error}"))?;
                let line = text
                    .trim_start_matches('\u{feff}')
                    .trim_end_matches(['\r', '\n']);
                Ok(line.to_owned())
            }
        }
    }
}

/// Makes sure of a file that is read for each connection: a FIFO may never end, and the worker hears no stop meanwhile.
fn regular(path: &Path, most: u64) -> Result<(), String> {
    match path.metadata() {
        Ok(meta) if !meta.is_file() => Err(format!("{path:?}: is no regular file")),
        Ok(meta) if meta.len() > most => Err(format!("{path:?}: has more than {most} bytes")),
        _ => Ok(()),
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with a password", self.username)
    }
}

/// A version of MQTT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// Version 5.
    V5,
    /// Version 3.1.1.
    V3,
}

/// What a link is for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The broker to connect to.
    pub broker: Broker,
    /// MQTT client id, which names the session.
    pub client_id: String,
    /// The broker keeps subscriptions and messages while we are away, for as long as it allows.
    pub keeps_session: bool,
    /// It makes one connection after the other, and each subscribes by itself. Else there is one, and its owner subscribes.
    pub is_lasting: bool,
    /// What to subscribe to.
    pub subscriptions: Vec<Subscription>,
    /// What the broker publishes when we are gone without a word.
    pub last_will: Option<LastWill>,
}

/// What to subscribe to.
#[derive(Clone, Debug)]
pub enum Subscription {
    /// The topic of the requests, at QoS 1.
    Requests(String),
    /// The filter of the cancels, at QoS 0: a cancel counts now or never, and must not wait behind an unacknowledged request.
    Cancels(String),
}

impl Subscription {
    fn filter(&self) -> &str {
        match self {
            Self::Requests(filter) | Self::Cancels(filter) => filter,
        }
    }

    fn qos(&self) -> QoS {
        match self {
            Self::Requests(_) => QoS::AtLeastOnce,
            Self::Cancels(_) => QoS::AtMostOnce,
        }
    }
}

/// A message that the broker publishes for us.
#[derive(Clone, Debug)]
pub struct LastWill {
    /// Where it goes.
    pub topic: String,
    /// What it says.
    pub payload: Vec<u8>,
    /// For how long.
    pub retention: Retention,
}

/// What the broker does with a message for those who subscribe later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retention {
    /// Nothing.
    None,
    /// Keeps it.
    Kept,
    /// Keeps it for this many seconds, over MQTT 5.
    KeptFor(u32),
}

impl Retention {
    fn is_kept(self) -> bool {
        self != Self::None
    }

    /// After how many seconds the broker forgets it.
    fn seconds(self) -> Option<u32> {
        match self {
            Self::None | Self::Kept => None,
            Self::KeptFor(seconds) => Some(seconds),
        }
    }
}

/// A message from the broker.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// The topic on which it was published.
    pub topic: String,
    /// What was published.
    pub payload: Bytes,
    /// What to acknowledge; `None` at QoS 0.
    pub packet_id: Option<u16>,
    /// MQTT DUP: the broker has sent it before, to whomever.
    pub redelivered: bool,
    /// MQTT 5: the Subscription Identifier under which the broker has queued it.
    pub subscription: Option<u32>,
    /// The broker keeps it for each new subscriber.
    pub retained: bool,
}

/// What the worker hears.
pub enum Event {
    /// A connection is established.
    Connected {
        /// What to ask of it.
        connection: Arc<Connection>,
        /// The broker has kept our session.
        resumed: bool,
    },
    /// The broker has our subscriptions.
    Ready,
    /// A message has come.
    Message(Message),
    /// The broker has our message.
    Published {
        /// It may go to a client: `false` only where the broker says that none has subscribed (MQTT 5, reason code 0x10).
        has_subscriber: bool,
    },
    /// The broker does not take our message for this reason, which may pass: a quota, a trouble of its own.
    NotPublished(String),
    /// The broker does not take our message for this reason, and will not take the next one either.
    PublishingDenied(String),
    /// Our DISCONNECT is sent, and all that was asked for before it. Of a link with one connection nothing is told then.
    Closed,
    /// The connection is gone, for this reason. The link makes another one, unless it has only one; then this comes also where there
    /// was none.
    Lost(String),
    /// Another client has taken our session. The link makes no other connection until [`Link::resume`].
    TakenOver,
    /// The broker has dropped three connections in a row soon after they were established, and gave no reason. The link makes another one.
    DroppedEarly,
    /// The broker does not let us in, for this reason, and trying again would not help. The link has ended.
    Denied(String),
}

/// What may wait for a thread that came at QoS 0, in bytes: a flood of it must not fill our memory.
const MAX_UNREAD_BYTES: usize = 1 << 20;

/// What has come at QoS 0 and waits for the thread that hears of it, in bytes.
#[derive(Clone, Default)]
pub struct Unread(Arc<AtomicUsize>);

impl Unread {
    /// Whether an event is passed on. What came at QoS 0 is dropped when too much of it waits: a controller that publishes at QoS 0 accepts a
    /// loss.
    fn admit(&self, event: &Event) -> bool {
        let more = bytes_at_qos_0(event);
        let waiting = self.0.fetch_add(more, Relaxed);
        let is_admitted = more == 0 || waiting == 0 || waiting + more <= MAX_UNREAD_BYTES;
        if !is_admitted {
            self.0.fetch_sub(more, Relaxed);
        }
        is_admitted
    }

    /// The thread has got an event.
    pub fn was_read(&self, event: &Event) {
        self.0.fetch_sub(bytes_at_qos_0(event), Relaxed);
    }
}

fn bytes_at_qos_0(event: &Event) -> usize {
    match event {
        Event::Message(message) if message.packet_id.is_none() => {
            message.topic.len() + message.payload.len()
        }
        _ => 0,
    }
}

/// The running link. Once it is dropped, nothing more is heard of it, and a connection that still comes is closed at once.
pub struct Link {
    resume: Sender<()>,
}

impl Link {
    /// Makes another connection although another client took ours over.
    pub fn resume(&self) {
        let _ = self.resume.send(()); // fails where the broker denies us, which the worker has heard
    }
}

/// Starts the thread that keeps a connection to the broker and tells `sink` of it. Who gets an event from there tells `unread`.
///
/// # Errors
/// The system has no room for another thread.
pub fn open(
    settings: Settings,
    unread: Unread,
    sink: impl Fn(Event) + Send + 'static,
) -> io::Result<Link> {
    let (resume, resumed) = mpsc::channel();
    let sink = move |event| {
        if unread.admit(&event) {
            sink(event);
        }
    };
    std::thread::Builder::new()
        .name("mqtt".into())
        .spawn(move || Driver::new(settings, resumed, &sink).run())?;
    Ok(Link { resume })
}

/// A host name or address as resolvers and certificates know it: an IPv6 address without its brackets.
fn without_brackets(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}
