//! What holds whatever bytes come from outside. The tests try it with mutations of a fixed seed, the fuzz targets (`fuzz/`)
//! for as long as they run.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use job_worker::config::Config;
use job_worker::contract::{
    Decision, Definition, Document, EarlierRun, JobId, Plan, Request, RequestOrigin, Step, Topics,
    check_name, rejection_notice, single_line, told,
};
use serde_json::Value;
use serde_json::value::RawValue;

/// An error is a sentence for a person, and not the input once more.
const LONGEST_ERROR: usize = 2000;

/// The payload of a request.
pub fn request(bytes: &[u8]) {
    let topics = Topics::new("jobs", "w");
    let (id, error) = match Request::parse(bytes) {
        Ok(request) => {
            assert!(!request.work_dir.is_empty() && !request.work_dir.contains('\0'));
            whole_definition(&request.definition);
            drop(Plan::merge(&request.definition, None, None, 3));
            (Some(request.id), String::new())
        }
        Err(rejection) => (rejection.id, rejection.error),
    };
    sentence(&error);
    match id {
        Some(id) => {
            usable_id(&id);
            let topic = topics.result(id.as_str());
            assert_eq!(topic.split('/').count(), 3, "{topic:?}");
            let answer = Document::rejected(id.clone(), Some("d".to_owned()), "w", error).to_json();
            // not a `Value`: a number beyond all range is JSON, too
            let fields: HashMap<String, Box<RawValue>> =
                serde_json::from_slice(&answer).expect("our own JSON");
            let written = serde_json::to_string(&id).expect("our own JSON");
            assert_eq!(fields["id"].get(), written);
            // what we publish is what the next worker reads
            assert!(EarlierRun::read(&answer, &id).is_some());
        }
        None => {
            let notice = rejection_notice("w", &error, bytes);
            let notice: Value = serde_json::from_slice(&notice).expect("our own JSON");
            let shown = notice["payload"].as_str();
            assert!(shown.is_some_and(|shown| shown.len() <= 1024 + 3));
        }
    }
}

/// The content of a `job.json`.
pub fn definition(bytes: &[u8]) {
    match Definition::parse(bytes) {
        Ok(definition) => whole_definition(&definition),
        Err(faults) => sentence(&told(&faults)),
    }
}

/// The content of a `job.status.json`.
pub fn journal(bytes: &[u8]) {
    let id = JobId::from_text("a").expect("a good id");
    let Some(earlier) = EarlierRun::read(bytes, &id) else {
        return;
    };
    match EarlierRun::decide(Some(&earlier), Some("k"), &RequestOrigin::ByHand, 3) {
        Decision::Stored => {
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            let fields: HashMap<String, Box<RawValue>> =
                serde_json::from_slice(bytes).expect("a stored result is JSON");
            for (name, expected) in [("id", "a"), ("key", "k")] {
                let value: Value = serde_json::from_str(fields[name].get()).expect("a string");
                assert_eq!(value, expected, "the result of another request");
            }
        }
        Decision::Run(attempt) => assert!(attempt.number > 0),
        Decision::GiveUp(attempt, error) => {
            assert!(attempt.number > 0);
            sentence(&error);
        }
    }
}

/// The secret that must not show, wherever it stands as a password.
pub const SECRET: &str = "hunter2";

/// Variables as `NAME=value`, ended by NUL. Those that name files are left out: what is in the files of this machine is no
/// input.
pub fn environment(bytes: &[u8]) {
    let mut variables = HashMap::new();
    for variable in bytes.split(|byte| *byte == 0) {
        let mut parts = variable.splitn(2, |byte| *byte == b'=');
        if let (Some(name), Some(value)) = (parts.next(), parts.next())
            && let Ok(name) = std::str::from_utf8(name)
            && !name.ends_with("_FILE")
        {
            variables.insert(name.to_owned(), OsString::from_vec(value.to_vec()));
        }
    }
    // what stands before the last @ of the URL is a login
    let text = |name: &str| {
        variables
            .get(name)
            .map(|it| it.to_string_lossy().into_owned())
    };
    let url = text("MQTT_URL").unwrap_or_default();
    let (login, rest) = url.rsplit_once('@').unwrap_or(("", &url));
    let password = text("MQTT_PASSWORD").unwrap_or_default();
    let is_secret = password.contains(SECRET) || login.contains(SECRET);
    // it may stand in the open, too, and that is not ours to hide
    let mut shown = variables
        .iter()
        .filter(|(name, _)| !matches!(&***name, "MQTT_PASSWORD" | "MQTT_URL"));
    let in_the_open =
        rest.contains(SECRET) || shown.any(|(_, it)| it.to_string_lossy().contains(SECRET));
    match Config::read(|name| variables.get(name).cloned()) {
        Err(errors) => {
            let is_hidden = !errors.concat().contains(SECRET);
            assert!(!errors.is_empty() && (in_the_open || !is_secret || is_hidden));
        }
        Ok(config) => {
            check_name(&config.worker_id).expect("valid by construction");
            assert!(!config.broker.hosts.is_empty());
            assert!((5..=65535).contains(&config.broker.keep_alive.as_secs()));
            assert!(
                !config.topics.pending.contains(['+', '#']) && config.topics.pending.len() < 65535
            );
            if let Some(credentials) = &config.broker.credentials
                && !credentials.username.contains(SECRET)
                && !in_the_open
            {
                assert!(!format!("{config:?}").contains(SECRET));
            }
        }
    }
}

fn whole_definition(definition: &Definition) {
    for Step {
        run, name, timeout, ..
    } in definition.steps.iter().flatten()
    {
        assert!(!run.contains('\0') && !name.as_ref().is_some_and(|name| name.contains('\0')));
        assert!(!timeout.is_some_and(|timeout| timeout.is_zero()));
    }
    for (name, value) in &definition.env {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
    }
    assert!(
        !definition.timeout.is_some_and(|timeout| timeout.is_zero())
            && definition.max_attempts != Some(0)
    );
}

fn usable_id(id: &JobId) {
    check_name(id.as_str()).expect("an id is a topic level");
    let json = serde_json::to_string(id).expect("our own JSON");
    let again = serde_json::from_str(&json).map(|raw: Box<RawValue>| JobId::from_json(&raw));
    assert_eq!(
        again.expect("our own JSON").expect("an id").as_str(),
        id.as_str(),
        "{json}"
    );
}

fn sentence(error: &str) {
    assert!(error.len() <= LONGEST_ERROR, "{} bytes", error.len());
    assert!(!single_line(error).contains(char::is_control));
}
