//! Every variable that a worker's environment may set, named here and only here (docs/reference.md, "Configuration").

use crate::contract::nearest;
use std::ffi::OsString;

/// Each variable: its name, its value unless set, and what it may be, in the words of `--help` and of an error.
#[rustfmt::skip] // a table
pub const TABLE: [(&str, &str, &str); 24] = [
    ("MQTT_URL", "mqtt://localhost:1883", "mqtt://[user:password@]host[:port], or mqtts://"),
    ("MQTT_USERNAME", "", "who the worker is to the broker; wins over MQTT_URL"),
    ("MQTT_PASSWORD", "", "the password; wins over MQTT_URL"),
    ("MQTT_PASSWORD_FILE", "", "a file with the password alone"),
    ("MQTT_CA_FILE", "", "a PEM file with CAs, or unset for the system's"),
    ("MQTT_CERT_FILE", "", "a PEM file with the worker's certificate"),
    ("MQTT_KEY_FILE", "", "a PEM file with its key"),
    ("MQTT_PROTOCOL_VERSION", "auto", "auto, 5, or 4 (MQTT 3.1.1)"),
    ("MQTT_TOPIC_ROOT", "jobs", "topic levels without + # or a / at either end"),
    ("MQTT_KEEP_ALIVE", "30", "a whole number of seconds, 5 to 65535"),
    ("WORKER_ID", "node-worker-01", "1 to 128 characters, none of / + #, no control characters"),
    ("JOB_POOL", "", "1 to 128 characters as in WORKER_ID, at most 255 bytes, but not . or .."),
    ("JOB_ROOT", "", "a directory"),
    ("JOB_PAYLOAD_STEPS", "allow", "allow or deny"),
    ("JOB_SHELL", "/bin/sh", "the name or path of an executable program"),
    ("JOB_TIMEOUT", "", "a number of seconds greater than 0, or unset for none"),
    ("JOB_STOP_GRACE", "8", "a number of seconds, 0 or more"),
    ("JOB_DIR_WAIT", "5", "a number of seconds, 0 or more"),
    ("JOB_MAX_ATTEMPTS", "3", "a whole number, 1 or more"),
    ("JOB_LOG_LIMIT", "", "a whole number of bytes, 1 or more, or unset for none"),
    ("JOB_ON_STOP", "requeue", "requeue or finish"),
    ("JOB_SYNC", "on", "on or off"),
    ("RUST_LOG", "info", "off, error, warn, info, debug or trace, also as in `info,rumqttc=debug`"),
    ("MQTT_SHARE_GROUP", "", "nothing, this variable is gone: see JOB_POOL"),
];

/// What a step finds: a worker that a step starts finds it, too.
const OF_STEPS: [&str; 6] = [
    "JOB_ATTEMPT",
    "JOB_ID",
    "JOB_LOG",
    "JOB_STEP",
    "JOB_STEPS",
    "JOB_WORK_DIR",
];

/// What other programs have variables for, and what says that here.
const OF_OTHERS: [(&str, &str); 5] = [
    ("HOST", "MQTT_URL"),
    ("PORT", "MQTT_URL"),
    ("BROKER", "MQTT_URL"),
    ("SERVER", "MQTT_URL"),
    ("CLIENT", "WORKER_ID"),
];

/// The names of all: the worker's own configuration, which the steps do not get.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, ..)| *name)
}

/// The value of a variable unless set, and what it may be.
pub fn of(name: &str) -> (&'static str, &'static str) {
    let variable = TABLE.iter().find(|(known, ..)| *known == name);
    debug_assert!(variable.is_some(), "{name} is not in the table");
    variable.map_or(("", ""), |(_, default, expected)| (*default, *expected))
}

/// A sentence that names variables which look like ours and are none; `None` where there are none. A misspelt one would be ignored
/// in silence. An empty variable counts as unset.
pub fn unknown(variables: impl Iterator<Item = (OsString, OsString)>) -> Option<String> {
    let unknown = variables.filter_map(|(name, value)| {
        let is_like_ours = |name: &&str| name.starts_with("JOB_") || name.starts_with("MQTT_");
        let name = name.to_str().filter(is_like_ours)?;
        let value = value.to_string_lossy();
        // of a Service with the name `mqtt` or `job-...`
        let is_kubernetes =
            || name.contains("_SERVICE_") || name.contains("_PORT_") || value.contains("://");
        let is_known = || names().chain(OF_STEPS).any(|known| known == name);
        (!is_known() && !value.is_empty() && !is_kubernetes()).then(|| name.to_owned())
    });
    let named = unknown.map(|name| match meant(&name) {
        Some(meant) => format!("{name} (did you mean {meant}?)"),
        None => name,
    });
    let mut named: Vec<_> = named.collect();
    named.sort();
    (!named.is_empty()).then(|| format!("unknown variables are ignored: {}", named.join(", ")))
}

/// The variable of ours that may be meant.
fn meant(name: &str) -> Option<String> {
    let (prefix, rest) = name.split_at(name.find('_')? + 1);
    let ours: Vec<_> = names()
        .filter_map(|ours| ours.strip_prefix(prefix))
        .collect();
    let is_part = |(theirs, _): &&(&str, &str)| rest.split('_').any(|part| part == *theirs);
    let near = nearest(rest, &ours).map(|near| format!("{prefix}{near}"));
    near.or_else(|| Some(OF_OTHERS.iter().find(is_part)?.1.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<String> {
        unknown(variables.iter().map(|(n, v)| (n.into(), v.into())))
    }

    #[test]
    fn a_misspelt_variable_is_named_with_what_was_meant() {
        for (name, meant) in [
            ("JOB_MAXATTEMPTS", Some("JOB_MAX_ATTEMPTS")),
            ("JOB_MAX_ATTEMPT", Some("JOB_MAX_ATTEMPTS")),
            ("JOB_TIMOUT", Some("JOB_TIMEOUT")),
            ("JOB_Shell", Some("JOB_SHELL")),
            ("JOB_GRACE", Some("JOB_STOP_GRACE")),
            ("MQTT_USER", Some("MQTT_USERNAME")),
            ("MQTT_PASS", Some("MQTT_PASSWORD")),
            ("MQTT_URI", Some("MQTT_URL")),
            ("MQTT_ULR", Some("MQTT_URL")),
            ("MQTT_HOST", Some("MQTT_URL")),
            ("MQTT_PORT", Some("MQTT_URL")),
            ("MQTT_BROKER_URL", Some("MQTT_URL")),
            ("MQTT_CLIENT_ID", Some("WORKER_ID")),
            ("MQTT_TIDE", None),
            ("JOB_", None),
        ] {
            let named = match meant {
                Some(meant) => format!("{name} (did you mean {meant}?)"),
                None => name.to_owned(),
            };
            let expected = format!("unknown variables are ignored: {named}");
            assert_eq!(of(&[(name, "hunter2")]), Some(expected));
        }
    }

    #[test]
    fn what_is_ours_what_is_empty_and_what_is_others_is_not_named() {
        let ours = names().map(|name| (name, "x"));
        let of_steps = OF_STEPS.iter().map(|name| (*name, "x"));
        assert_eq!(of(&ours.chain(of_steps).collect::<Vec<_>>()), None);
        let of_others = [
            ("JOB_X", ""),
            ("PATH", "x"),
            ("JOBS", "x"),
            ("job_x", "x"),
            ("MQTT_PORT", "tcp://10.0.0.1:1883"),
            ("MQTT_PORT_1883_TCP_ADDR", "10.0.0.1"),
            ("MQTT_SERVICE_PORT_MQTT", "1883"),
            ("JOB_WORKER_SERVICE_HOST", "10.0.0.1"),
        ];
        assert_eq!(of(&of_others), None);
    }
}
