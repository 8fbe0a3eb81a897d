//! What the broker's reasons mean to a worker (MQTT 5, section 2.4; MQTT 3.1.1, section 3.2.2.3).

use super::Event;
use super::adapter::{End, Failure};
use rumqttc::v5::mqttbytes::v5::Disconnect;
use std::fmt::{self, Debug};

/// What some brokers do not have, and a worker can do without.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lack {
    Retain,
    Identifiers,
    Wildcards,
    /// It keeps a session, for so many seconds.
    Session(u32),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retain => f.write_str(
                "the broker retains no message: presence is heard only by who is subscribed at that moment",
            ),
            Self::Identifiers => f.write_str(
                "the broker has no Subscription Identifiers: a request runs again whose acknowledgement was lost, unless it has a `key`",
            ),
            Self::Wildcards => f.write_str(
                "the broker has no wildcard subscriptions: jobs/cancel/… is not heard, only the file job.cancel",
            ),
            Self::Session(seconds) => write!(
                f,
                "the broker keeps our session for {seconds} s only: requests are lost when no worker is there for longer"
            ),
        }
    }
}

/// Why the broker does not do what it is asked, in its own words.
pub struct Reason {
    /// The reason code, by its name.
    code: String,
    /// The Reason String.
    said: Option<String>,
    /// The Server Reference.
    server: Option<String>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code)?;
        if let Some(said) = &self.said {
            write!(f, ": {said}")?;
        }
        match &self.server {
            Some(server) => write!(f, "; it names the server {server}"),
            None => Ok(()),
        }
    }
}

impl Reason {
    /// A reason code of rumqttc's, which are named as in MQTT 5.
    pub fn new(code: impl Debug, said: Option<String>, server: Option<String>) -> Self {
        let code = format!("{code:?}");
        Self { code, said, server }
    }

    pub fn of_disconnect(packet: Disconnect) -> Self {
        let (said, server) = match packet.properties {
            Some(properties) => (properties.reason_string, properties.server_reference),
            None => (None, None),
        };
        Self::new(packet.reason_code, said, server)
    }

    pub fn is_about_client_id(&self) -> bool {
        matches!(&*self.code, "ClientIdentifierNotValid" | "BadClientId")
    }

    pub fn is_about_login(&self) -> bool {
        let codes = [
            "BadUserNamePassword",
            "NotAuthorized",
            "Banned",
            "BadAuthenticationMethod",
        ];
        codes.contains(&&*self.code)
    }

    /// What follows for the link; [`End::Lost`] where it may be another reason the next time.
    fn end(&self) -> End {
        match &*self.code {
            "SessionTakenOver" => End::TakenOver,
            "UnsupportedProtocolVersion" | "RefusedProtocolVersion" => End::NoVersion,
            "RetainNotSupported" => End::Lacks(Lack::Retain),
            "SubscriptionIdNotSupported" | "SubscriptionIdentifiersNotSupported" => {
                End::Lacks(Lack::Identifiers)
            }
            "WildcardSubscriptionsNotSupported" => End::Lacks(Lack::Wildcards),
            _ if self.is_about_client_id() || self.is_about_login() => End::Denied,
            // a denied subscription of MQTT 3.1.1
            "Failure"
            | "TopicFilterInvalid"
            | "TopicNameInvalid"
            | "PayloadFormatInvalid"
            | "QoSNotSupported"
            | "ServerMoved"
            | "SharedSubscriptionNotSupported"
            | "SharedSubscriptionsNotSupported" => End::Denied,
            _ => End::Lost,
        }
    }

    /// What follows for the connection of a broker that `does` something for this reason.
    pub fn failure(&self, does: &str) -> Failure {
        let end = self.end();
        // a line of the log that begins with the broker's address goes on with "it"
        let who = if end == End::Lost { "it" } else { "the broker" };
        end.because(format!("{who} {does} ({self})"))
    }

    /// What it says of a message that was published.
    pub fn of_publishing(&self) -> Event {
        match (&*self.code, self.end()) {
            ("Success", _) => Event::Published {
                has_subscriber: true,
            },
            ("NoMatchingSubscribers", _) => Event::Published {
                has_subscriber: false,
            },
            (_, End::Denied) => Event::PublishingDenied(self.to_string()),
            _ => Event::NotPublished(self.to_string()),
        }
    }
}
