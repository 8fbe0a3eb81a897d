//! A proxy before the broker that looks at what passes: how many messages, and when a client connects and leaves.

use crate::mqtt::{read_packet, write_packet};
use std::io::BufReader;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Instant;

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const DISCONNECT: u8 = 14;

pub struct Tap {
    pub port: u16,
    seen: Arc<Seen>,
}

/// What has passed.
#[derive(Default)]
struct Seen {
    closed: AtomicBool,
    /// Messages that clients sent.
    sent: AtomicU64,
    /// Messages that the broker delivered.
    delivered: AtomicU64,
    connections: Mutex<Vec<Visit>>,
}

/// One connection of a client.
#[derive(Clone)]
pub struct Visit {
    pub client: String,
    pub begun: Instant,
    /// When DISCONNECT passed.
    pub ended: Option<Instant>,
}

impl Tap {
    pub fn before(broker: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("the port just bound").port();
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let begun = Instant::now();
                if shared.closed.load(SeqCst) {
                    return;
                }
                pass_on(client, broker, begun, &shared);
            }
        });
        Self { port, seen }
    }

    /// Messages until now: sent by clients, and delivered to them.
    pub fn messages(&self) -> (u64, u64) {
        (
            self.seen.sent.load(SeqCst),
            self.seen.delivered.load(SeqCst),
        )
    }

    /// Every connection with this client id, in the order of their beginning.
    pub fn visits(&self, client: &str) -> Vec<Visit> {
        let visits = self.seen.connections.lock().expect("no thread panics");
        let mut visits: Vec<_> = visits
            .iter()
            .filter(|visit| visit.client == client)
            .cloned()
            .collect();
        visits.sort_by_key(|visit| visit.begun);
        visits
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.seen.closed.store(true, SeqCst);
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))); // wakes the acceptor
    }
}

fn pass_on(client: TcpStream, broker: u16, begun: Instant, seen: &Arc<Seen>) {
    let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else {
        return;
    };
    for (from, to, is_client) in [(&client, &broker, true), (&broker, &client, false)] {
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
            return;
        };
        let _ = to.set_nodelay(true); // it would only be slower
        let seen = Arc::clone(seen);
        std::thread::spawn(move || match is_client {
            true => from_client(from, to, begun, &seen),
            false => from_broker(from, to, &seen),
        });
    }
}

fn from_client(from: TcpStream, mut to: TcpStream, begun: Instant, seen: &Seen) {
    let mut reader = BufReader::new(&from);
    let mut visit = None;
    while let Ok((kind, body)) = read_packet(&mut reader) {
        match kind >> 4 {
            CONNECT => {
                let mut visits = seen.connections.lock().expect("no thread panics");
                visit = Some(visits.len());
                visits.push(Visit {
                    client: client_id(&body),
                    begun,
                    ended: None,
                });
            }
            PUBLISH => _ = seen.sent.fetch_add(1, SeqCst),
            DISCONNECT => {
                if let Some(visit) = visit {
                    let mut visits = seen.connections.lock().expect("no thread panics");
                    visits[visit].ended = Some(Instant::now());
                }
            }
            _ => {}
        }
        if write_packet(&mut to, kind, &body).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both); // closed on the other side already
}

fn from_broker(from: TcpStream, mut to: TcpStream, seen: &Seen) {
    let mut reader = BufReader::new(&from);
    while let Ok((kind, body)) = read_packet(&mut reader) {
        if kind >> 4 == PUBLISH {
            seen.delivered.fetch_add(1, SeqCst);
        }
        if write_packet(&mut to, kind, &body).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both); // closed on the other side already
}

/// The client id in a CONNECT packet, which version 5 keeps behind its properties. They are shorter than 128 bytes here.
fn client_id(connect: &[u8]) -> String {
    const VERSION: usize = 6;
    const KEEP_ALIVE_END: usize = 10;
    let properties = match connect[VERSION] {
        5 => 1 + usize::from(connect[KEEP_ALIVE_END]),
        _ => 0,
    };
    let id = &connect[KEEP_ALIVE_END + properties..];
    let length = usize::from(u16::from_be_bytes([id[0], id[1]]));
    String::from_utf8_lossy(&id[2..2 + length]).into_owned()
}
