//! Variables that look like ours and are none: a misspelt one would be ignored in silence.

use std::ffi::OsString;

/// What a worker's environment may set.
pub const OURS: [&str; 24] = [
    "JOB_DIR_WAIT",
    "JOB_LOG_LIMIT",
    "JOB_MAX_ATTEMPTS",
    "JOB_ON_STOP",
    "JOB_PAYLOAD_STEPS",
    "JOB_POOL",
    "JOB_ROOT",
    "JOB_SHELL",
    "JOB_STOP_GRACE",
    "JOB_SYNC",
    "JOB_TIMEOUT",
    "MQTT_CA_FILE",
    "MQTT_CERT_FILE",
    "MQTT_KEEP_ALIVE",
    "MQTT_KEY_FILE",
    "MQTT_PASSWORD",
    "MQTT_PASSWORD_FILE",
    "MQTT_PROTOCOL_VERSION",
    "MQTT_SHARE_GROUP",
    "MQTT_TOPIC_ROOT",
    "MQTT_URL",
    "MQTT_USERNAME",
    "RUST_LOG",
    "WORKER_ID",
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

/// How many letters a name may differ in from the one that is suggested.
const MISSPELT: usize = 2;

/// How many letters a name must have behind its prefix to count as the start of another one.
const START: usize = 3;

/// A sentence that names the variables of ours that do not exist; `None` where there are none. An empty variable counts as
/// unset.
pub fn warning(variables: impl Iterator<Item = (OsString, OsString)>) -> Option<String> {
    let set = variables.filter(|(_, value)| !value.is_empty());
    let mut unknown: Vec<_> = set
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| is_unknown(name))
        .collect();
    unknown.sort();
    let named: Vec<_> = unknown.iter().map(|name| with_suggestion(name)).collect();
    (!named.is_empty()).then(|| format!("unknown variables are ignored: {}", named.join(", ")))
}

fn is_unknown(name: &str) -> bool {
    let looks_ours = name.starts_with("JOB_") || name.starts_with("MQTT_");
    looks_ours && !OURS.contains(&name) && !OF_STEPS.contains(&name)
}

fn with_suggestion(name: &str) -> String {
    match suggestion(name) {
        Some(meant) => format!("{name} (did you mean {meant}?)"),
        None => name.to_owned(),
    }
}

/// The variable with nearly this name, else the shortest one that goes on where this name ends.
fn suggestion(name: &str) -> Option<&'static str> {
    let letters = |name: &str| name.to_ascii_uppercase().replace('_', "");
    let (_, own_part) = name.split_once('_')?;
    let distance = |ours: &&str| distance(letters(name).as_bytes(), letters(ours).as_bytes());
    let nearest = OURS.into_iter().min_by_key(distance);
    let goes_on = OURS
        .into_iter()
        .filter(|ours| own_part.len() >= START && ours.starts_with(name))
        .min_by_key(|ours| ours.len());
    nearest
        .filter(|ours| distance(ours) <= MISSPELT)
        .or(goes_on)
}

/// How many letters must be changed, added or left out to make one word of the other (Levenshtein).
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, wanted) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != wanted);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<String> {
        warning(variables.iter().map(|(n, v)| (n.into(), v.into())))
    }

    #[test]
    fn a_misspelt_variable_is_named_with_what_was_meant() {
        for (name, meant) in [
            ("JOB_MAXATTEMPTS", Some("JOB_MAX_ATTEMPTS")),
            ("JOB_MAX_ATTEMPT", Some("JOB_MAX_ATTEMPTS")),
            ("JOB_TIMOUT", Some("JOB_TIMEOUT")),
            ("JOB_Shell", Some("JOB_SHELL")),
            ("MQTT_USER", Some("MQTT_USERNAME")),
            ("MQTT_PASS", Some("MQTT_PASSWORD")),
            ("MQTT_URI", Some("MQTT_URL")),
            ("MQTT_BROKER", None),
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
        let ours = OURS.iter().chain(&OF_STEPS).map(|name| (*name, "x"));
        assert_eq!(of(&ours.collect::<Vec<_>>()), None);
        assert_eq!(
            of(&[("JOB_X", ""), ("PATH", "x"), ("JOBS", "x"), ("job_x", "x")]),
            None
        );
    }
}
