//! A head that is cut off from the broker, and from nothing else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::members::{await_queue, claims, member_of};
use super::support::site::Site;
use super::support::wait;

on_both_protocols!(a_head_that_is_cut_off_frees_the_head);

/// A way to the broker on which nothing arrives while it is cut, and nobody is told.
pub struct Way {
    pub port: u16,
    is_cut: Arc<AtomicBool>,
}

impl Way {
    fn to(broker: u16) -> Self {
        Self::from(TcpListener::bind("127.0.0.1:0").unwrap(), broker)
    }

    /// From a listener that may be in another network.
    pub fn from(listener: TcpListener, broker: u16) -> Self {
        let port = listener.local_addr().unwrap().port();
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut = is_cut.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else {
                    continue;
                };
                for (from, to) in [(&client, &broker), (&broker, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let cut = cut.clone();
                    std::thread::spawn(move || pass(from, to, &cut));
                }
            }
        });
        Self { port, is_cut }
    }

    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    pub fn mend(&self) {
        self.is_cut.store(false, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) {
    let mut buffer = [0; 4096];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        while is_cut.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    while is_cut.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn a_head_that_is_cut_off_frees_the_head(version: &str) {
    let site = Site::start();
    let way = Way::to(site.broker.port());
    let mut cut_off = site.idle_worker(|command| {
        member_of(&site, "cut-off", version)(command);
        command.env("MQTT_URL", format!("mqtt://127.0.0.1:{}", way.port));
    });
    await_queue(&site);
    let mut other = site.idle_worker(member_of(&site, "other", version));
    way.cut();
    let cut = Instant::now();
    site.submit("a", json!({ "steps": ["true"] }));
    let result = site.result("a").json();
    eprintln!("taken by another {:?} after the cut", cut.elapsed());
    assert_eq!(result["worker"], "other");
    other.exits_with(0);
    assert!(
        cut.elapsed() < Duration::from_secs(20),
        "{:?}",
        cut.elapsed()
    );
    way.mend();
    site.submit("b", json!({ "steps": ["true"] }));
    assert_eq!(site.result("b").json()["worker"], "cut-off");
    cut_off.exits_with(0);
    wait::until("no claim to be left", || claims(&site).is_empty());
    assert_eq!(site.controller.heard("jobs/results/").len(), 2, "each once");
}
