//! `job.json`, the job definition.

use super::json::{self, Object};
use serde_json::value::RawValue;
use std::time::Duration;

/// The largest `job.json` that is read, in bytes.
pub const MAX_DEFINITION_BYTES: u64 = 1 << 20;

/// One shell command line of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// What the shell runs.
    pub run: String,
    /// Shown in log and status.
    pub name: Option<String>,
    /// Limit of this step.
    pub timeout: Option<Duration>,
    /// Runs also after a failure, timeout or cancel.
    pub always: bool,
}

/// What `job.json` may say, and a request may override.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Definition {
    /// What to run, in this order; `None` where it does not say.
    pub steps: Option<Vec<Step>>,
    /// Added to the environment of each step; the last one of a name counts.
    pub env: Vec<(String, String)>,
    /// Limit of the whole job.
    pub timeout: Option<Duration>,
    /// How many attempts a job gets whose worker dies.
    pub max_attempts: Option<u32>,
    /// Fields that mean nothing to us, each with its place and what may be meant.
    pub unknown: Vec<String>,
}

/// The fields of a `job.json`, which a request may have as well.
const FIELDS: [&str; 4] = ["steps", "env", "timeoutSeconds", "maxAttempts"];
const FIELDS_OF_A_STEP: [&str; 4] = ["run", "name", "timeoutSeconds", "always"];

/// How many unknown fields are named.
const NAMED: usize = 10;

impl Definition {
    /// Parses a `job.json`.
    ///
    /// # Errors
    /// Everything that is wrong, one sentence each, which names the field and says what is accepted.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<String>> {
        let object = Object::parse(bytes).map_err(|e| vec![e]);
        object
            .and_then(|object| Self::take_from(object, &[]))
            .map_err(|faults| faults.iter().map(|e| format!("job.json: {e}")).collect())
    }

    /// Names the unknown fields of `place`, if there are any.
    pub fn told_unknown(&self, place: &str) -> Option<String> {
        let names = self.unknown.join(", ");
        (!self.unknown.is_empty())
            .then(|| format!("unknown fields in {place} are ignored: {names}"))
    }

    /// Takes the fields of a definition out of an object that had `others` of its owner.
    pub(super) fn take_from(mut object: Object, others: &[&str]) -> Result<Self, Vec<String>> {
        let (mut unknown, mut faults) = (Vec::new(), Vec::new());
        let items = object.take("steps", json::array);
        let steps = items.map(|items| {
            let read = |(i, item)| {
                let told = |e| format!("`steps` item {}: {e}", i + 1);
                let wrong = |all: Vec<_>| faults.extend(all.into_iter().map(told));
                step(item, &mut unknown).map_err(wrong).ok()
            };
            let items = items.iter().map(Box::as_ref).enumerate();
            items.filter_map(read).collect()
        });
        let mut env = Vec::new();
        let variables = object.take("env", Object::of);
        for (name, value) in variables.into_iter().flat_map(Object::rest) {
            match variable(&name, &value) {
                Ok(text) => env.push((name, text)),
                Err(e) => faults.push(format!("`env` {}: {e}", json::brief(&name))),
            }
        }
        let timeout = object.take("timeoutSeconds", json::seconds);
        let max_attempts = object.take("maxAttempts", json::count);
        faults.append(&mut object.faults);
        unknown.extend(unknown_in(object, "", &[&FIELDS, others].concat()));
        unknown.sort();
        unknown.dedup();
        unknown.truncate(NAMED);
        let definition = Self {
            steps,
            env,
            timeout,
            max_attempts,
            unknown,
        };
        if faults.is_empty() {
            return Ok(definition);
        }
        // perhaps a misspelt one is what is missing
        faults.extend(definition.told_unknown("it"));
        Err(faults)
    }
}

fn unknown_in(rest: Object, place: &str, ours: &[&str]) -> impl Iterator<Item = String> {
    rest.rest().map(move |(name, _)| {
        let meant = nearest(&name, ours);
        let meant = meant.map(|meant| format!(" (did you mean {meant}?)"));
        format!("{place}{}{}", json::brief(&name), meant.unwrap_or_default())
    })
}

/// The one of `ours` that `name` is, apart from case, `_` and one misspelt place of two letters; else the shortest one that has
/// more letters at one place.
pub fn nearest<'a>(name: &str, ours: &[&'a str]) -> Option<&'a str> {
    let letters = |name: &str| name.to_ascii_lowercase().replace('_', "").into_bytes();
    let given = letters(name);
    let right = |ours: &&&str| {
        let ours = letters(ours);
        let same = |(one, other): &(&u8, &u8)| one == other;
        let start = given.iter().zip(&ours).take_while(same).count();
        let ends = given[start..].iter().rev().zip(ours[start..].iter().rev());
        start + ends.take_while(same).count()
    };
    let wrong = |ours: &&&str| letters(ours).len().max(given.len()) - right(ours);
    let misspelt = |ours: &&&str| wrong(ours) <= 2 && 2 * wrong(ours) <= ours.len() + 1;
    let has_more = |ours: &&&str| given.len() >= 3 && right(ours) == given.len();
    let nearest = ours.iter().filter(misspelt).min_by_key(wrong);
    nearest
        .or_else(|| ours.iter().filter(has_more).min_by_key(|ours| ours.len()))
        .copied()
}

fn step(raw: &RawValue, unknown: &mut Vec<String>) -> Result<Step, Vec<String>> {
    let mut object = match json::type_name(raw) {
        "a string" => {
            let run = json::string(raw).map_err(|e| vec![e])?;
            return Ok(Step {
                run,
                ..Step::default()
            });
        }
        "an object" => Object::of(raw).map_err(|e| vec![e])?,
        other => {
            let wanted = "must be a string or an object with `run`";
            return Err(vec![format!("{wanted}, not {other}")]);
        }
    };
    let run = object.take("run", json::string);
    if run.is_none() && object.faults.is_empty() {
        let needed = "an object needs `run`, the command line";
        object.faults.push(needed.to_owned());
    }
    let step = Step {
        run: run.unwrap_or_default(),
        name: object.take("name", json::string),
        timeout: object.take("timeoutSeconds", json::seconds),
        always: object.take("always", json::boolean).unwrap_or(false),
    };
    let faults = std::mem::take(&mut object.faults);
    unknown.extend(unknown_in(object, "steps[].", &FIELDS_OF_A_STEP));
    match faults.is_empty() {
        true => Ok(step),
        false => Err(faults),
    }
}

/// Numbers and booleans are taken as their text: `{"PORT": 8080}` is what people write.
fn variable(name: &str, value: &RawValue) -> Result<String, String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("a name must not be empty nor contain = or NUL".to_owned());
    }
    match json::type_name(value) {
        "a string" => json::string(value),
        "a number" | "a boolean" => Ok(value.get().to_owned()),
        other => Err(format!("must be a string, not {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::corpus;

    #[test]
    fn a_definition_may_have_1_mib() {
        assert_eq!(MAX_DEFINITION_BYTES, 1_048_576);
    }

    #[test]
    fn takes_the_example_of_the_contract() {
        let job = Definition::parse(
            br#"{ "steps": [ "npm install", { "run": "npm test", "name": "tests", "timeoutSeconds": 600 },
                 { "run": "./collect-logs.sh", "always": true } ],
                 "env": { "NODE_ENV": "production", "PORT": 8080, "DEBUG": false },
                 "timeoutSeconds": 0.5, "maxAttempts": 3 }"#,
        )
        .unwrap();
        let steps = job.steps.unwrap();
        assert_eq!(steps[0].run, "npm install");
        assert_eq!(
            (steps[1].name.as_deref(), steps[1].timeout),
            (Some("tests"), Some(Duration::from_secs(600)))
        );
        assert!(steps[2].always && !steps[1].always);
        let env = [
            ("DEBUG", "false"),
            ("NODE_ENV", "production"),
            ("PORT", "8080"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(job.env, env);
        assert_eq!(job.timeout, Some(Duration::from_millis(500)));
        assert_eq!(job.max_attempts, Some(3));
    }

    #[test]
    fn names_the_field_and_what_is_accepted() {
        for (words, text) in corpus::each(corpus::DEFINITIONS) {
            let faults = Definition::parse(text.as_bytes()).err().unwrap_or_default();
            assert_eq!(faults.len(), usize::from(!words.is_empty()), "{text}");
            assert!(faults.concat().contains(words), "{text}: {faults:?}");
        }
        assert!(Definition::parse("\u{feff}{\"steps\": []}".as_bytes()).is_ok());
    }

    #[test]
    fn takes_a_number_however_it_is_written() {
        let read = |json: &str| Definition::parse(json.as_bytes()).unwrap();
        for json in [r#"{"maxAttempts": 2.0}"#, r#"{"maxAttempts": 0.2e1}"#] {
            assert_eq!(read(json).max_attempts, Some(2), "{json}");
        }
        let timeout = |number: &str| read(&format!(r#"{{"timeoutSeconds": {number}}}"#)).timeout;
        assert_eq!(timeout("15e-1"), Some(Duration::from_millis(1500)));
        assert_eq!(timeout("1e-300"), Some(Duration::from_nanos(1)));
        assert_eq!(timeout("1e300"), timeout("1e999"));
        assert!(timeout("1e300") > timeout("4e9"));
    }

    #[test]
    fn notes_unknown_fields_and_takes_null_as_absent() {
        let job = Definition::parse(
            br#"{"steps": [{"run": "x", "nmae": "y", "colour": null}], "env": {"A": null}, "timeout": 5}"#,
        )
        .unwrap();
        let named = [
            "steps[].nmae (did you mean name?)",
            "timeout (did you mean timeoutSeconds?)",
        ];
        assert_eq!(job.unknown, named);
        assert!(job.env.is_empty());
    }

    #[test]
    fn tells_every_fault() {
        let json = br#"{"steps": ["a", 5, {"run": 7, "always": 1}, {}], "env": {"A": [], "": 1}, "maxAttempts": 0}"#;
        let faults = Definition::parse(json).unwrap_err();
        assert_eq!(faults.len(), 7, "{faults:?}");
    }

    #[test]
    fn a_misspelt_field_is_told_from_one_of_others() {
        let ours = [&FIELDS[..], &FIELDS_OF_A_STEP, &["id", "workDir", "key"]].concat();
        for (name, meant) in [
            ("timeout", Some("timeoutSeconds")),
            ("timeout_seconds", Some("timeoutSeconds")),
            ("timeoutSecnods", Some("timeoutSeconds")),
            ("allways", Some("always")),
            ("workdir", Some("workDir")),
            ("working_dir", None),
            ("nam", Some("name")),
            ("ids", Some("id")),
            ("max", Some("maxAttempts")),
            ("x", None),
            ("comment", None),
        ] {
            assert_eq!(nearest(name, &ours), meant, "{name}");
        }
    }

    #[test]
    fn survives_deep_nesting() {
        let deep = format!(
            r#"{{"x": {}1{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        let _ = Definition::parse(deep.as_bytes());
        let deep = format!(
            r#"{{"steps": {}{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert!(Definition::parse(deep.as_bytes()).is_err());
    }
}
