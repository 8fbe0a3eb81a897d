use super::*;
#[cfg(feature = "tls")]
use crate::mqtt::tls;
use crate::mqtt::{Broker, Host, Subscription};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

/// Where nobody listens.
const NOBODY: &str = "127.0.0.2";
const BROKER: &str = "127.0.0.1";

fn settings(port: u16) -> Settings {
    let broker = Broker {
        hosts: vec![Host {
            name: "a.name.that.is.not.resolved.invalid".into(),
            port,
        }],
        credentials: None,
        #[cfg(feature = "tls")]
        tls: None,
        protocol: None,
        keep_alive: Duration::from_secs(30),
    };
    Settings {
        broker,
        client_id: "w".into(),
        keeps_session: true,
        is_lasting: true,
        subscriptions: vec![
            Subscription::Requests("jobs/pending".into()),
            Subscription::Cancels("jobs/cancel/+".into()),
        ],
        last_will: None,
    }
}

/// The first event of a driver that tries these addresses, with a broker on one of them; `greet` answers each CONNECT.
fn first_event(
    addresses: &[&str],
    mut greet: impl FnMut(TcpStream, u8) + Send + 'static,
) -> Option<Event> {
    let listener = TcpListener::bind((BROKER, 0)).unwrap();
    let settings = settings(listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut connect = [0; 9];
            stream.read_exact(&mut connect).unwrap();
            // a fixed header of two bytes, "MQTT" with its length, the protocol level
            let level = connect[8];
            greet(stream, level);
        }
    });
    let (sender, events) = mpsc::channel();
    let (_resume, resumed) = mpsc::channel();
    let untried = addresses.iter().map(|a| (0, Some(a.to_string()))).collect();
    std::thread::spawn(move || {
        let sink = |event| sender.send(event).unwrap();
        let mut driver = Driver::new(settings, resumed, &sink);
        driver.untried = untried;
        driver.run();
    });
    events.recv_timeout(Duration::from_secs(30)).ok()
}

#[test]
fn each_address_of_a_name_is_tried() {
    let deny = |mut stream: TcpStream, level| {
        assert_eq!(level, 5);
        stream.write_all(&[0x20, 3, 0, 0x87, 0]).unwrap(); // CONNACK, not authorised
    };
    let event = first_event(&[NOBODY, NOBODY, BROKER], deny);
    assert!(matches!(event, Some(Event::Denied(_))));
}

#[test]
fn the_older_protocol_version_is_spoken_to_the_address_that_closed() {
    let mut levels = Vec::new();
    let close_first = move |mut stream: TcpStream, level| {
        levels.push(level);
        if levels.len() > 2 {
            assert_eq!(levels, [5, 5, 4]);
            stream.write_all(&[0x20, 2, 0, 5]).unwrap(); // CONNACK, not authorised
        }
    };
    let event = first_event(&[NOBODY, BROKER, NOBODY], close_first);
    assert!(matches!(event, Some(Event::Denied(_))));
}

#[test]
fn the_pauses_double_up_to_10_s_and_begin_anew_after_a_good_connection() {
    let mut driver = Driver::new(settings(1883), mpsc::channel().1, &|_| {});
    let mut pause_after = |lasted: Option<u64>| {
        driver.judge(lasted.map(Duration::from_secs), false);
        driver.backoff.next_pause().as_millis()
    };
    let pauses: Vec<_> = (0..9).map(|_| pause_after(None)).collect();
    let doubled = [100, 200, 400, 800, 1600, 3200, 6400];
    assert_eq!(pauses, [&doubled[..], &[10_000, 10_000]].concat());
    assert_eq!(pause_after(Some(9)), 10_000);
    assert_eq!(pause_after(Some(10)), 100);
    assert_eq!(pause_after(None), 200);
}

#[test]
fn early_drops_are_counted_until_a_connection_is_a_good_one() {
    let (sender, events) = mpsc::channel();
    let sink = |event| sender.send(event).unwrap();
    let mut driver = Driver::new(settings(1883), mpsc::channel().1, &sink);
    let mut is_told_after = |lasted: Option<u64>, is_drop| {
        driver.judge(lasted.map(Duration::from_secs), is_drop);
        let event = events.try_iter().next();
        assert!(matches!(event, None | Some(Event::DroppedEarly)));
        event.is_some()
    };
    assert!(!is_told_after(Some(1), true));
    assert!(!is_told_after(Some(1), true));
    assert!(!is_told_after(None, false), "the broker was away");
    assert!(is_told_after(Some(1), true));
    assert!(!is_told_after(Some(1), true));
    assert!(!is_told_after(Some(9), true));
    assert!(is_told_after(Some(9), true));
    assert!(!is_told_after(Some(1), true));
    assert!(!is_told_after(Some(1), true));
    assert!(!is_told_after(Some(10), true), "a good connection");
    assert!(!is_told_after(Some(1), true));
}

#[test]
fn addresses_keep_what_belongs_to_them() {
    for (address, host) in [
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:1", "[::1]"),
        ("[fe80::1%3]:1", "[fe80::1%3]"),
    ] {
        assert_eq!(
            without_port(address.parse().unwrap()).as_deref(),
            Some(host)
        );
    }
}

#[cfg(feature = "tls")]
#[test]
fn with_tls_a_fallback_leaves_no_address_behind() {
    let mut settings = settings(8883);
    settings.broker.tls = Some(tls::Tls::default());
    let mut driver = Driver::new(settings, mpsc::channel().1, &|_| {});
    let name = driver.next_address().unwrap();
    driver.untried.push_front((0, Some(name.clone()))); // for the other protocol version
    assert_eq!(driver.next_address().unwrap(), name);
    assert!(
        driver.untried.is_empty(),
        "or there would never be a pause again"
    );
}
