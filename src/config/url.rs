//! `MQTT_URL`. A whole URL library would be larger than everything else of the configuration.

use crate::mqtt::Host;

/// What a URL says of the broker.
#[derive(Debug, Default, PartialEq)]
pub struct Url {
    /// Whether it is `mqtts://`.
    pub secure: bool,
    pub hosts: Vec<Host>,
    pub username: Option<String>,
    pub password: Option<String>,
}

const EXPECTED: &str = "expected mqtt://[user:password@]host[:port][,host[:port]…], or mqtts://, a port from 1 to 65535, an IPv6 address in brackets";

impl Url {
    /// Parses `mqtt[s]://[user[:password]@]host[:port][,host[:port]…]`.
    ///
    /// # Errors
    /// What is expected instead, with nothing of the URL in it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (secure, rest) = match url.split_once("://") {
            Some(("mqtt", rest)) => (false, rest),
            Some(("mqtts", rest)) if cfg!(feature = "tls") => (true, rest),
            Some(("mqtts", _)) => {
                return Err("mqtts:// needs a binary built with the feature `tls`".to_owned());
            }
            _ => return Err(EXPECTED.to_owned()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, hosts) = rest.rsplit_once('@').unwrap_or(("", rest));
        let hosts = hosts.split(',').map(|text| host(text, secure)).collect();
        let hosts = Option::ok_or_else(hosts, || EXPECTED.to_owned())?;
        let (username, password) = login.split_once(':').unwrap_or((login, ""));
        Ok(Self {
            secure,
            hosts,
            username: percent_decode(username)?,
            password: percent_decode(password)?,
        })
    }
}

fn host(text: &str, secure: bool) -> Option<Host> {
    let (name, port) = match text.rfind(':') {
        Some(colon) if !text[colon..].contains(']') => (&text[..colon], &text[colon + 1..]),
        _ => (text, if secure { "8883" } else { "1883" }),
    };
    let port = port.parse().ok().filter(|port| *port > 0)?;
    is_host(name).then(|| Host {
        name: name.to_owned(),
        port,
    })
}

fn is_host(host: &str) -> bool {
    let in_brackets = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Some(address) = in_brackets {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_foreign = |c: char| "[]:/?#@%\\".contains(c) || c.is_whitespace() || c.is_control();
    !host.is_empty() && !host.contains(is_foreign)
}

/// The text of a user name or password; `None` where it is empty.
fn percent_decode(text: &str) -> Result<Option<String>, String> {
    let decoded = decoded(text).ok_or("a % in user or password must be written %25".to_owned())?;
    Ok(Some(decoded).filter(|text| !text.is_empty()))
}

fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        let byte = u8::from_str_radix(digits, 16).ok();
        bytes.push(byte.filter(|_| !digits.starts_with('+'))?);
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// The URL as it may be shown. Whatever stands before the last `@` could hold a password, however broken the rest is.
pub fn without_password(url: &str) -> String {
    let Some((login, address)) = url.rsplit_once('@') else {
        return url.to_owned();
    };
    let scheme = login.split_once("://").map_or("", |(scheme, _)| scheme);
    let scheme = if scheme.bytes().all(|byte| byte.is_ascii_lowercase()) {
        scheme
    } else {
        "***"
    };
    format!("{scheme}://***@{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_gives_host_port_user_and_password() {
        let url = |text| Url::parse(text).unwrap();
        let hosts = |text| {
            url(text)
                .hosts
                .iter()
                .map(Host::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(hosts("mqtt://broker"), ["broker:1883"]);
        assert_eq!(hosts("mqtt://[fe80::1]"), ["[fe80::1]:1883"]);
        assert_eq!(
            hosts("mqtt://u:p@a,b:1,[::1]:2/"),
            ["a:1883", "b:1", "[::1]:2"]
        );
        assert_eq!(url("mqtt://broker").username, None);
        let full = url("mqtt://me:p%40ss%3A@[::1]:1234/");
        assert_eq!(
            (full.username.as_deref(), full.password.as_deref()),
            (Some("me"), Some("p@ss:"))
        );
        for wrong in [
            "mqtt://",
            "mqtt://a,",
            "mqtt://,a",
            "mqtt://a,b:x",
            "mqtt://a,mqtt://b",
        ] {
            assert!(Url::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(url("mqtt://u:a@b@host").password.as_deref(), Some("a@b"));
        assert_eq!(
            url("mqtt://u:%25%e2%82%ac@h").password.as_deref(),
            Some("%€")
        );
        for wrong in ["%", "%4", "%+f", "%zz", "%ff", "%€"] {
            assert!(
                Url::parse(&format!("mqtt://u:{wrong}@h")).is_err(),
                "{wrong}"
            );
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_secure_url_has_a_port_of_its_own() {
        let url = |text| Url::parse(text).unwrap();
        let ports: Vec<_> = url("mqtts://h,h:1,[::1]")
            .hosts
            .iter()
            .map(|host| host.port)
            .collect();
        assert_eq!(ports, [8883, 1, 8883]);
        assert!(url("mqtts://h").secure && !url("mqtt://h").secure);
    }
}
