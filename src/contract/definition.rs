//! `job.json`, the job definition.

use super::json::{self, Object};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;

/// The largest `job.json` that is read, in bytes.
pub const MAX_DEFINITION_BYTES: u64 = 1 << 20;

/// One shell command line of a job.
#[derive(Clone, Debug, PartialEq)]
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
    /// Added to the environment of each step.
    pub env: BTreeMap<String, String>,
    /// Limit of the whole job.
    pub timeout: Option<Duration>,
    /// How many attempts a job gets whose worker dies.
    pub max_attempts: Option<u32>,
    /// Fields that mean nothing to us, with their place; to be named once in the worker's log.
    pub unknown: Vec<String>,
}

impl Definition {
    /// Parses a `job.json`.
    ///
    /// # Errors
    /// A sentence that names the field and says what is accepted.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        Object::parse(bytes)
            .and_then(Self::take_from)
            .map_err(|e| format!("job.json: {e}"))
    }

    /// Takes the fields of a definition out of an object that may hold others of its owner.
    pub(super) fn take_from(mut object: Object) -> Result<Self, String> {
        let mut unknown = Vec::new();
        let steps = object.take("steps", |raw| steps(raw, &mut unknown))?;
        let env = object.take("env", environment)?.unwrap_or_default();
        let timeout = object.take("timeoutSeconds", json::seconds)?;
        let max_attempts = object.take("maxAttempts", json::count)?;
        unknown.extend(object.rest());
        unknown.sort();
        unknown.dedup();
        Ok(Self {
            steps,
            env,
            timeout,
            max_attempts,
            unknown,
        })
    }
}

fn steps(raw: &RawValue, unknown: &mut Vec<String>) -> Result<Vec<Step>, String> {
    let items = json::array(raw)?;
    items
        .iter()
        .enumerate()
        .map(|(i, item)| step(item, unknown).map_err(|e| format!("item {}: {e}", i + 1)))
        .collect()
}

fn step(raw: &RawValue, unknown: &mut Vec<String>) -> Result<Step, String> {
    match json::type_name(raw) {
        "a string" => Ok(Step {
            run: json::string(raw)?,
            name: None,
            timeout: None,
            always: false,
        }),
        "an object" => {
            let mut object = Object::of(raw)?;
            let step = Step {
                run: object
                    .take("run", json::string)?
                    .ok_or("an object needs `run`, the command line")?,
                name: object.take("name", json::string)?,
                timeout: object.take("timeoutSeconds", json::seconds)?,
                always: object.take("always", json::boolean)?.unwrap_or(false),
            };
            unknown.extend(
                object
                    .rest()
                    .into_iter()
                    .map(|name| format!("steps[].{name}")),
            );
            Ok(step)
        }
        other => Err(format!(
            "must be a string or an object with `run`, not {other}"
        )),
    }
}

/// Numbers and booleans are taken as their text: `{"PORT": 8080}` is what people write.
fn environment(raw: &RawValue) -> Result<BTreeMap<String, String>, String> {
    let read = |(name, value): (String, Box<RawValue>)| {
        if name.is_empty() || name.contains(['=', '\0']) {
            let name = json::brief(&name);
            return Err(format!(
                "has the name {name:?}; a name must not be empty nor contain = or NUL"
            ));
        }
        let text = match json::type_name(&value) {
            "a string" => {
                json::string(&value).map_err(|e| format!("{}: {e}", json::brief(&name)))?
            }
            "a number" | "a boolean" => value.get().to_owned(),
            other => {
                return Err(format!(
                    "{}: must be a string, not {other}",
                    json::brief(&name)
                ));
            }
        };
        Ok((name, text))
    };
    Object::of(raw)?
        .into_fields()
        .into_iter()
        .map(read)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(job.env["PORT"], "8080");
        assert_eq!(job.env["DEBUG"], "false");
        assert_eq!(job.timeout, Some(Duration::from_millis(500)));
        assert_eq!(job.max_attempts, Some(3));
    }

    #[test]
    fn names_the_field_and_what_is_accepted() {
        for (json, said) in [
            ("", "not valid JSON"),
            ("[]", "must be an object, not an array"),
            (
                r#"{"steps": "make"}"#,
                "`steps` must be an array, not a string",
            ),
            (
                r#"{"steps": ["a", 5]}"#,
                "`steps` item 2: must be a string or an object with `run`, not a number",
            ),
            (
                r#"{"steps": [{"name": "x"}]}"#,
                "item 1: an object needs `run`",
            ),
            (
                r#"{"steps": [{"run": 7}]}"#,
                "`run` must be a string, not a number",
            ),
            (r#"{"steps": [{"run": "a\u0000b"}]}"#, "NUL"),
            (
                r#"{"steps": [{"run": "x", "always": "yes"}]}"#,
                "`always` must be true or false",
            ),
            (
                r#"{"steps": [{"run": "x", "timeoutSeconds": -1}]}"#,
                "seconds greater than 0, not -1",
            ),
            (r#"{"timeoutSeconds": 1e-999}"#, "seconds greater than 0"),
            (r#"{"maxAttempts": 1e999}"#, "whole number from 1"),
            (r#"{"timeoutSeconds": 0}"#, "seconds greater than 0, not 0"),
            (r#"{"maxAttempts": 0}"#, "whole number from 1"),
            (r#"{"maxAttempts": 1.5}"#, "whole number from 1"),
            (r#"{"env": []}"#, "`env` must be an object"),
            (r#"{"env": {"A=B": "x"}}"#, "A=B"),
            (
                r#"{"env": {"A": {}}}"#,
                "A: must be a string, not an object",
            ),
        ] {
            let error = Definition::parse(json.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{json}: {error}");
        }
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
            br#"{"steps": [{"run": "x", "nmae": "y"}], "env": null, "timeout": 5}"#,
        )
        .unwrap();
        assert_eq!(job.unknown, ["steps[].nmae", "timeout"]);
        assert!(job.env.is_empty());
    }

    #[test]
    fn passes_over_a_byte_order_mark() {
        assert!(Definition::parse(b"\xef\xbb\xbf{\"steps\": []}").is_ok());
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
