//! The other side of the contract: publishes requests and collects whatever is published by anyone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::broker::Message;
use super::mosquitto::Mosquitto;
use super::wait;
use rumqttc::{Client, Connection, Event, MqttOptions, Outgoing, Packet, QoS};

/// An MQTT client with a persistent session that hears every topic, unless it is told to hear less.
pub struct Controller {
    client: Client,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    subscribed: bool,
    /// How many messages had been heard each time that the broker did not know our session.
    fresh_sessions: Vec<usize>,
    published: usize,
    acknowledged: usize,
    messages: Vec<Message>,
    /// How many messages of a topic [`Controller::next`] has already handed out.
    taken: HashMap<String, usize>,
}

impl Controller {
    pub fn connect(broker: &Mosquitto) -> Self {
        Self::connect_as(broker, "controller", None)
    }

    pub fn connect_as(broker: &Mosquitto, id: &str, login: Option<(&str, &str)>) -> Self {
        Self::subscribed_to("#", broker, id, login)
    }

    /// One that hears only what `filter` matches.
    pub fn hearing(filter: &str, broker: &Mosquitto, id: &str) -> Self {
        Self::subscribed_to(filter, broker, id, None)
    }

    fn subscribed_to(
        filter: &str,
        broker: &Mosquitto,
        id: &str,
        login: Option<(&str, &str)>,
    ) -> Self {
        let mut options = MqttOptions::new(id, "127.0.0.1", broker.port());
        options.set_clean_session(false);
        options.set_keep_alive(Duration::from_secs(60));
        options.set_max_packet_size(64 << 20, 64 << 20);
        if let Some((user, password)) = login {
            options.set_credentials(user, password);
        }
        let (client, mut connection) = Client::new(options, 1000);
        let mut network = connection.eventloop.network_options();
        network.set_tcp_nodelay(true);
        connection.eventloop.set_network_options(network);
        let shared = Arc::new(Shared::default());
        let controller = Self {
            client: client.clone(),
            shared: shared.clone(),
        };
        let filter = filter.to_owned();
        std::thread::spawn(move || listen(connection, &client, &filter, &shared));
        controller.await_subscription();
        controller
    }

    /// Waits until the broker has the subscription: from here on nothing that is published goes unheard.
    pub fn await_subscription(&self) {
        wait::until("the controller's subscription", || self.state().subscribed);
    }

    /// Waits until the loss of the broker has been noticed, and all that it had said has been heard.
    pub fn await_loss(&self) {
        wait::until("the controller to lose the broker", || {
            !self.state().subscribed
        });
    }

    /// A mark for [`Controller::heard_since`] for each time that the broker did not know our session; the first is that
    /// of the first connection.
    pub fn fresh_sessions(&self) -> Vec<usize> {
        self.state().fresh_sessions.clone()
    }

    /// Publishes at QoS 1 and waits until the broker has it.
    pub fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.publish_with(topic, false, &payload.into());
    }

    pub fn publish_retained(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.publish_with(topic, true, &payload.into());
    }

    /// Publishes at QoS 0: the broker does not say that it has it.
    pub fn publish_at_qos_0(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        let payload = payload.into();
        let told = self.client.publish(topic, QoS::AtMostOnce, false, payload);
        told.expect("the controller is connected");
    }

    /// Disconnects for good.
    pub fn leave(self) {
        self.client.disconnect().expect("it has not left yet");
        self.await_loss();
    }

    fn publish_with(&self, topic: &str, retain: bool, payload: &[u8]) {
        loop {
            let (number, sessions) = {
                let mut state = self.state();
                state.published += 1;
                (state.published, state.fresh_sessions.len())
            };
            let told = self
                .client
                .publish(topic, QoS::AtLeastOnce, retain, payload);
            told.expect("the controller is connected");
            let is_acknowledged = || self.state().acknowledged >= number;
            let is_lost = || self.state().fresh_sessions.len() > sessions;
            wait::until("the broker to acknowledge the controller's message", || {
                is_acknowledged() || is_lost()
            });
            if is_acknowledged() {
                return;
            }
            // rumqttc throws away what it has sent on a session that is lost
            self.state().published -= 1;
        }
    }

    /// The first message on `topic` that this function has not handed out yet.
    pub fn next(&self, topic: &str) -> Message {
        wait::until_some(&format!("a message on {topic}"), || {
            let mut state = self.state();
            let taken = *state.taken.get(topic).unwrap_or(&0);
            let same = |message: &&Message| message.topic == topic;
            let message = state.messages.iter().filter(same).nth(taken).cloned()?;
            state.taken.insert(topic.to_owned(), taken + 1);
            Some(message)
        })
    }

    /// Everything heard so far on topics that start with `prefix`, in order.
    pub fn heard(&self, prefix: &str) -> Vec<Message> {
        let mut heard = self.news(0);
        heard.retain(|message| message.topic.starts_with(prefix));
        heard
    }

    /// How many messages have been heard so far: a mark for what is asked for later.
    pub fn mark(&self) -> usize {
        self.state().messages.len()
    }

    /// Everything heard after `mark`.
    pub fn news(&self, mark: usize) -> Vec<Message> {
        self.state().messages[mark..].to_vec()
    }

    pub fn heard_since(&self, mark: usize, topic: &str) -> Vec<Message> {
        let mut heard = self.news(mark);
        heard.retain(|message| message.topic == topic);
        heard
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // Without a broker there is nothing to take leave of; the thread ends at its next error.
        let _ = self.client.try_disconnect();
    }
}

fn listen(mut connection: Connection, client: &Client, filter: &str, shared: &Shared) {
    while let Ok(event) = connection.recv() {
        let mut state = shared.state.lock().unwrap();
        match event {
            Ok(Event::Outgoing(Outgoing::Disconnect)) => {
                state.subscribed = false;
                return;
            }
            Ok(event) => state.take(event, client, filter),
            Err(_) => {
                // rumqttc keeps what came just before the end, and would hand it out as if it came on the next connection
                for event in std::mem::take(&mut connection.eventloop.state.events) {
                    state.take(event, client, filter);
                }
                state.subscribed = false;
                drop(state);
                if shared.over.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

impl State {
    fn take(&mut self, event: Event, client: &Client, filter: &str) {
        match event {
            Event::Incoming(Packet::ConnAck(connack)) if connack.session_present => {
                self.subscribed = true
            }
            Event::Incoming(Packet::ConnAck(_)) => {
                let mark = self.messages.len();
                self.fresh_sessions.push(mark);
                client
                    .try_subscribe(filter, QoS::AtLeastOnce)
                    .expect("there is room for one more request");
            }
            Event::Incoming(Packet::SubAck(_)) => self.subscribed = true,
            Event::Incoming(Packet::PubAck(_)) => self.acknowledged += 1,
            Event::Incoming(Packet::Publish(publish)) => self.messages.push(Message {
                topic: publish.topic,
                payload: publish.payload.to_vec(),
                qos: publish.qos as u8,
                retain: publish.retain,
                ..Message::default()
            }),
            _ => {}
        }
    }
}
