//! A TCP proxy before a broker, whose connections can die without a word: the sockets stay open, and nothing passes any more. It
//! can also hold all back for a while.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::wait;

/// How often a thread looks whether its connection has died meanwhile.
const LOOK: Duration = Duration::from_millis(5);

pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    broker: u16,
    stop: AtomicBool,
    /// Nothing passes for now.
    holds: AtomicBool,
    /// Connections with a lower number are dead.
    alive_from: AtomicUsize,
    /// Bytes from the client after which connection 0 dies.
    first_dies_after: usize,
    connections: AtomicUsize,
}

impl Proxy {
    /// Passes everything on to the broker on this port.
    pub fn before(broker: u16) -> Self {
        Self::before_with_limit(broker, usize::MAX)
    }

    /// The same, and the first connection dies as soon as the client has sent this many bytes over it.
    pub fn before_with_limit(broker: u16, first_dies_after: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("the port just bound").port();
        let shared = Arc::new(Shared {
            broker,
            first_dies_after,
            ..Shared::default()
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.stop.load(SeqCst) {
                    return;
                }
                accepting.pass_on(client);
            }
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Lets all present connections die; returns when.
    pub fn kill_connections(&self) -> Instant {
        let now = Instant::now();
        let count = self.shared.connections.load(SeqCst);
        self.shared.alive_from.fetch_max(count, SeqCst);
        now
    }

    /// Holds back what either side says, on these connections and on new ones, and tells nobody.
    pub fn hold(&self) {
        self.shared.holds.store(true, SeqCst);
    }

    /// Passes on what was held back.
    pub fn release(&self) {
        self.shared.holds.store(false, SeqCst);
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// Waits until the first connection has died of its limit; returns when that was seen.
    pub fn await_first_death(&self) -> Instant {
        wait::until("the first connection to die", || {
            self.shared.alive_from.load(SeqCst) > 0
        });
        Instant::now()
    }

    /// Waits for connection `number`, counted from 0.
    pub fn await_connection(&self, number: usize) {
        wait::until(&format!("connection {number}"), || {
            self.connections() > number
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))); // wakes the acceptor
    }
}

impl Shared {
    fn pass_on(self: &Arc<Self>, client: TcpStream) {
        let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.broker)) else {
            return;
        };
        let number = self.connections.fetch_add(1, SeqCst);
        for (from, to, from_client) in [(&client, &broker, true), (&broker, &client, false)] {
            let from = from.try_clone().expect("a second handle");
            let to = to.try_clone().expect("a second handle");
            from.set_read_timeout(Some(LOOK)).expect("a read timeout");
            from.set_nodelay(true).expect("TCP_NODELAY");
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.pump(number, from, to, from_client));
        }
    }

    fn pump(&self, number: usize, mut from: TcpStream, mut to: TcpStream, from_client: bool) {
        let mut chunk = [0; 16 * 1024];
        let mut passed = 0;
        while !self.stop.load(SeqCst) {
            if number < self.alive_from.load(SeqCst) {
                std::thread::sleep(LOOK); // dead: the socket stays open and unread
                continue;
            }
            let read = from.read(&mut chunk);
            while self.holds.load(SeqCst) && !self.stop.load(SeqCst) {
                std::thread::sleep(LOOK);
            }
            match read {
                Ok(0) => break,
                Ok(count) if number < self.alive_from.load(SeqCst) => _ = count, // lost on the way
                Ok(count) => {
                    passed += count;
                    if to.write_all(&chunk[..count]).is_err() {
                        break;
                    }
                    if from_client && number == 0 && passed >= self.first_dies_after {
                        self.alive_from.fetch_max(1, SeqCst);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        for socket in [&from, &to] {
            let _ = socket.shutdown(Shutdown::Both); // closed on the other side already
        }
    }
}
