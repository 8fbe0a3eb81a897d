//! A look at the broker that leaves no trace there: `job-worker check --connect` (docs/reference.md, "Commands").

use super::adapter::{Adapter, Failure};
use super::driver::without_port;
use super::{
    Connection, Event, Protocol, Session, Settings, Subscription, v3, v5, without_brackets,
};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How long a single address may take to answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How long each step may take.
const STEP_PATIENCE: Duration = Duration::from_secs(20);

/// Does step by step what a worker does at its start, and returns a line for each step that went well.
///
/// # Errors
/// The same, and behind it the step that went wrong, and why.
pub fn probe(settings: Settings) -> Result<Vec<String>, (Vec<String>, String)> {
    let (sender, steps) = mpsc::channel();
    // on a thread of its own: a resolver, or a broker that never answers, must not hold us for ever
    std::thread::spawn(move || {
        let end = take_steps(&Arc::new(settings), |step| drop(sender.send(Ok(step))));
        if let Err(error) = end {
            let _ = sender.send(Err(error)); // fails where nobody waits for it any more
        }
    });
    let mut good = Vec::new();
    loop {
        match steps.recv_timeout(STEP_PATIENCE) {
            Ok(Ok(step)) => good.push(step),
            Ok(Err(error)) => return Err((good, error)),
            Err(RecvTimeoutError::Disconnected) => return Ok(good),
            Err(RecvTimeoutError::Timeout) => {
                let error = format!("no answer within {} s", STEP_PATIENCE.as_secs());
                return Err((good, error));
            }
        }
    }
}

fn take_steps(settings: &Arc<Settings>, done: impl Fn(String)) -> Result<(), String> {
    let broker = &settings.broker;
    let name = without_brackets(&broker.host);
    let addresses = resolve(name, broker.port).map_err(|error| format!("name {name}: {error}"))?;
    let list: Vec<_> = addresses.iter().map(|a| a.ip().to_string()).collect();
    done(format!("name: {name} is {}", list.join(", ")));

    let address = reach(&addresses).map_err(|error| format!("TCP: {error}"))?;
    done(format!("TCP: {address} answers"));

    let mut greeted = log_in(settings, &host_of(settings, address))?;
    #[cfg(feature = "tls")]
    if broker.tls.is_some() {
        done(format!("TLS: the certificate is good for {name}"));
    }
    let user = match &broker.credentials {
        Some(credentials) => format!("as user {:?}", credentials.username),
        None => "without a user name".to_owned(),
    };
    let version = match greeted.version {
        Protocol::V5 => "5",
        Protocol::V3 => "3.1.1",
    };
    done(format!("login: accepted {user}, MQTT {version}"));

    greeted.adapter.subscribe();
    let is_ready = |event: &Event| matches!(event, Event::Ready);
    await_event(&mut *greeted.adapter, is_ready)
        .map_err(|failure| format!("subscriptions: {}", reason(failure)))?;
    let filters = settings.subscriptions.iter().map(Subscription::filter);
    let filters: Vec<_> = filters.collect();
    done(format!(
        "subscriptions: granted to {}",
        filters.join(" and ")
    ));
    greeted.leave();
    Ok(())
}

fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let addresses = (name, port).to_socket_addrs();
    let addresses: Vec<_> = addresses.map_err(|error| error.to_string())?.collect();
    match addresses.is_empty() {
        true => Err("it has no address".to_owned()),
        false => Ok(addresses),
    }
}

/// The first address that answers.
fn reach(addresses: &[SocketAddr]) -> Result<SocketAddr, String> {
    let mut errors = Vec::new();
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT_PATIENCE) {
            Ok(_) => return Ok(*address),
            Err(error) => errors.push(format!("{address}: {error}")),
        }
    }
    Err(errors.join("; "))
}

/// A broker that has let us in.
struct Greeted {
    adapter: Box<dyn Adapter>,
    connection: Arc<dyn Connection>,
    version: Protocol,
    /// The broker has kept a session for the client id that we have.
    resumed: bool,
}

impl Greeted {
    fn leave(mut self) {
        self.connection.disconnect();
        // it is nothing to us any more how the broker takes that
        let is_closed = |event: &Event| matches!(event, Event::Closed);
        drop(await_event(&mut *self.adapter, is_closed));
    }
}

/// Logs in, with a session that ends with the connection.
///
/// Beginning such a session throws away the one that the broker has for this client id. That of a fresh id has none, unless the
/// broker puts something else for it, as the user's name, and it is that of a worker with all its requests. So the first
/// connection only looks.
fn log_in(settings: &Arc<Settings>, host: &str) -> Result<Greeted, String> {
    let with = |session: Session| {
        Arc::new(Settings {
            session,
            ..Settings::clone(settings)
        })
    };
    let look = greet(&with(Session::Kept), host, settings.broker.protocol)?;
    let (resumed, version) = (look.resumed, look.version);
    look.leave();
    if resumed {
        return Err(
            "login: the broker gives us the session of another client id (use_username_as_clientid of Mosquitto?); \
             nothing in it is changed"
                .to_owned(),
        );
    }
    greet(&with(Session::Fleeting), host, Some(version))
}

/// Greets the broker, in MQTT 3.1.1 where it has no 5 and no version is known.
fn greet(
    settings: &Arc<Settings>,
    host: &str,
    version: Option<Protocol>,
) -> Result<Greeted, String> {
    match try_greeting(settings, host, version.unwrap_or(Protocol::V5)) {
        Err(Failure::NotGreeted(_)) if version.is_none() => {
            try_greeting(settings, host, Protocol::V3)
        }
        greeted => greeted,
    }
    .map_err(|failure| match failure {
        Failure::Untrusted(error) => format!("TLS: {error}"),
        failure => format!("login: {}", reason(failure)),
    })
}

fn try_greeting(
    settings: &Arc<Settings>,
    host: &str,
    version: Protocol,
) -> Result<Greeted, Failure> {
    let mut adapter = match version {
        Protocol::V5 => v5::open(settings, host),
        Protocol::V3 => v3::open(settings, host),
    };
    let is_greeting = |event: &Event| matches!(event, Event::Connected { .. });
    match await_event(&mut *adapter, is_greeting)? {
        Event::Connected {
            connection,
            resumed,
        } => Ok(Greeted {
            adapter,
            connection,
            version,
            resumed,
        }),
        // cannot be: it is what was waited for
        _ => Err(Failure::Lost("it did not answer our greeting".to_owned())),
    }
}

/// How the adapter names the broker: by its address, or by its name where the certificate is for that.
fn host_of(settings: &Settings, address: SocketAddr) -> String {
    #[cfg(feature = "tls")]
    if settings.broker.tls.is_some() {
        return without_brackets(&settings.broker.host).to_owned();
    }
    without_port(address).unwrap_or_else(|| without_brackets(&settings.broker.host).to_owned())
}

/// Passes over other events: a request may come at this moment. It is the worker's, whose session has it, too.
fn await_event(
    adapter: &mut dyn Adapter,
    is_awaited: impl Fn(&Event) -> bool,
) -> Result<Event, Failure> {
    loop {
        let event = adapter.next()?;
        if is_awaited(&event) {
            return Ok(event);
        }
    }
}

fn reason(failure: Failure) -> String {
    match failure {
        Failure::Denied(reason)
        | Failure::Untrusted(reason)
        | Failure::NotGreeted(reason)
        | Failure::Dropped(reason)
        | Failure::Lost(reason) => reason,
        Failure::OwnerStuck | Failure::Closed => "the connection is closed".to_owned(),
        Failure::TakenOver => "another client has connected with our id".to_owned(),
    }
}
