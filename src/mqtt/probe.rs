//! A look at the broker that leaves no trace there: `job-worker check --connect` (docs/reference.md, "Commands").

use super::adapter::{End, Failure};
use super::driver::{Driver, unresolved};
use super::reasons::Lack;
use super::{Event, Host, Protocol, Settings, without_brackets};
use log::Level;
use std::cell::RefCell;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;

/// How long a single address may take to answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Does step by step what a worker does at its start, at the one host of the broker, and tells of each step that went well.
///
/// # Errors
/// The step that went wrong, and why.
pub fn probe(mut settings: Settings, tell: &mut dyn FnMut(Level, String)) -> Result<(), String> {
    let Host { name, port } = &settings.broker.hosts[0];
    let name = without_brackets(name);
    let addresses = (name, *port).to_socket_addrs();
    let addresses = addresses.map_err(|error| format!("name {name}: {}", unresolved(name, &error)));
    let addresses: Vec<_> = addresses?.collect();
    let list: Vec<_> = addresses.iter().map(|a| a.ip().to_string()).collect();
    let line = format!("name: {name} is {}", list.join(", "));
    tell(Level::Info, line);

    let address = reach(&addresses).map_err(|error| format!("TCP: {error}"))?;
    tell(Level::Info, format!("TCP: {address} answers"));

    // Beginning a session that ends with the connection throws away the one that the broker has for this client id. That of a
    // fresh id has none, unless the broker puts something else for it, as the user's name, and it is that of a worker with all
    // its requests. So the first connection only looks.
    settings.keeps_session = true;
    let (resumed, version) = log_in(&settings, tell)?;
    if resumed {
        return Err(
            "login: the broker gives us the session of another client id (use_username_as_clientid of Mosquitto?); \
             nothing in it is changed"
                .to_owned(),
        );
    }
    (settings.keeps_session, settings.broker.protocol) = (false, Some(version));
    log_in(&settings, tell)?;
    Ok(())
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

/// Connects, and subscribes where the session is one that ends with the connection. Returns whether the broker had a session
/// for us, and the version that it speaks.
fn log_in(
    settings: &Settings,
    tell: &mut dyn FnMut(Level, String),
) -> Result<(bool, Protocol), String> {
    let greeted = RefCell::new(None);
    // what else comes, as a request, is the worker's, whose session has it, too
    let sink = |event| match event {
        Event::Connected {
            connection,
            resumed,
        } => {
            match settings.keeps_session {
                true => connection.disconnect(),
                false => connection.subscribe(),
            }
            *greeted.borrow_mut() = Some((connection, resumed));
        }
        Event::Ready => {
            if let Some((connection, _)) = &*greeted.borrow() {
                connection.disconnect();
            }
        }
        _ => {}
    };
    let (_resume, resumed) = mpsc::channel();
    let mut driver = Driver::new(settings.clone(), resumed, &sink);
    let (_, Failure(end, reason)) = driver.make_connection();
    let Some((_, resumed)) = greeted.take() else {
        return Err(match end {
            End::Untrusted | End::NoTls => format!("TLS: {reason}"),
            End::Unanswered if settings.broker.is_secure() => format!("TLS or login: {reason}"),
            _ => format!("login: {reason}"),
        });
    };
    // each is told by one of the two connections
    let is_told = |lack: &&Lack| matches!(lack, Lack::Session(_)) == settings.keeps_session;
    for lack in driver.lacks.iter().filter(is_told) {
        tell(Level::Warn, format!("login: {lack}"));
    }
    if !settings.keeps_session {
        let broker = &settings.broker;
        #[cfg(feature = "tls")]
        if broker.tls.is_some() {
            let name = without_brackets(&broker.hosts[0].name);
            let line = format!("TLS: the certificate is good for {name}");
            tell(Level::Info, line);
        }
        let user = match &broker.credentials {
            Some(credentials) => format!("as user {:?}", credentials.username),
            None => "without a user name".to_owned(),
        };
        let number = match driver.version {
            Protocol::V5 => "5",
            Protocol::V3 => "3.1.1",
        };
        let line = format!("login: accepted {user}, MQTT {number}");
        tell(Level::Info, line);
    }
    if driver.is_subscribed {
        let filters: Vec<_> = settings
            .subscriptions
            .iter()
            .map(|to| to.filter())
            .collect();
        let line = format!("subscriptions: granted to {}", filters.join(" and "));
        tell(Level::Info, line);
    }
    match end {
        End::Closed => Ok((resumed, driver.version)),
        _ => Err(format!("subscriptions: {reason}")),
    }
}
