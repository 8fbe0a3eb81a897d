//! What a job will do: the request, `job.json` and the worker's limits, merged.

use super::definition::{Definition, Step};
use super::json::FOREVER;
use super::seconds;
use std::time::Duration;

/// What a job will do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to run, in this order.
    pub steps: Vec<Step>,
    /// Added to the environment of each step; the last one of a name counts.
    pub env: Vec<(String, String)>,
    /// Limit of the whole job.
    pub timeout: Option<Duration>,
    /// The variable that has set that limit, in parentheses, where it is not the job's own.
    pub timeout_of: &'static str,
    /// How many attempts the job gets if its worker dies.
    pub max_attempts: u32,
    /// What the job says and does not get, one sentence each.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Merges the three sources: the request wins over `job.json`, `env` key by key. The worker's `timeout` and
    /// `max_attempts` are what a job gets that asks for nothing, and the most that it can ask for.
    ///
    /// # Errors
    /// Neither of the two says which steps to run.
    pub fn merge(
        request: &Definition,
        file: Option<Definition>,
        timeout: Option<Duration>,
        max_attempts: u32,
    ) -> Result<Self, Vec<String>> {
        let file = file.unwrap_or_default();
        let unknown = request.told_unknown("the request").into_iter();
        let mut warnings: Vec<_> = unknown.chain(file.told_unknown("job.json")).collect();
        let mut steps = request.steps.clone().or(file.steps).ok_or_else(|| {
            let missing = "job.json has no `steps`".to_owned();
            [&[missing], &*warnings].concat()
        })?;
        let mut env = file.env;
        env.extend(request.env.clone());
        let asked = request.timeout.or(file.timeout);
        let bound = timeout.unwrap_or(Duration::MAX);
        let too_long = |who: &str, asked: Option<Duration>| {
            let asked = match asked.filter(|asked| *asked > bound)? {
                asked if asked < FOREVER => seconds(asked),
                _ => "of 136 years or more".to_owned(),
            };
            let bound = seconds(bound);
            Some(format!(
                "{who}asks for timeoutSeconds {asked}, more than JOB_TIMEOUT allows: {bound}"
            ))
        };
        warnings.extend(too_long("", asked));
        let attempts = request.max_attempts.or(file.max_attempts);
        if let Some(asked) = attempts.filter(|asked| *asked > max_attempts) {
            warnings.push(format!(
                "asks for maxAttempts {asked}, more than JOB_MAX_ATTEMPTS allows: {max_attempts}"
            ));
        }
        // an `always` step has no other limit once the job's has passed
        for (index, step) in steps.iter_mut().enumerate() {
            warnings.extend(too_long(&format!("step {} ", index + 1), step.timeout));
            step.timeout = step.timeout.map(|own| own.min(bound));
        }
        Ok(Self {
            steps,
            env,
            timeout: asked.into_iter().chain(timeout).min(),
            timeout_of: match timeout.is_some_and(|bound| asked.is_none_or(|asked| asked > bound)) {
                true => " (JOB_TIMEOUT)",
                false => "",
            },
            max_attempts: attempts.unwrap_or(max_attempts).min(max_attempts),
            warnings,
        })
    }
}

impl Plan {
    /// What a person finds a step by in log and result: its number, from 1.
    pub fn place(&self, index: usize) -> String {
        format!("step {}/{}", index + 1, self.steps.len())
    }

    /// What a person knows a step by, in one word: its name, else what it runs.
    pub fn name(&self, index: usize) -> String {
        let step = &self.steps[index];
        first_line(step.name.as_ref().unwrap_or(&step.run))
    }

    /// What a step is and does: its name, and what it runs.
    pub fn label(&self, index: usize) -> String {
        let step = &self.steps[index];
        let run = first_line(&step.run);
        match &step.name {
            Some(name) => format!("{} ({run})", first_line(name)),
            None => run,
        }
    }
}

/// How much of a name or a command is shown, in characters.
const SHOWN: usize = 200;

/// The start of the first line of a command, which says whether there is more.
fn first_line(command: &str) -> String {
    let first = command.lines().next().unwrap_or_default();
    let shown: String = first.chars().take(SHOWN).collect();
    match shown.len() < command.trim_end().len() {
        true => format!("{shown} …"),
        false => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Request;

    #[test]
    fn the_request_wins_and_env_is_merged_key_by_key() {
        let file = Definition::parse(
            br#"{"steps": ["f"], "env": {"A": "f", "B": "f"}, "timeoutSeconds": 1, "maxAttempts": 2}"#,
        );
        let request = |json: &str| Request::parse(json.as_bytes()).unwrap();
        let plan = |request: &Request| {
            Plan::merge(
                &request.definition,
                Some(file.clone().unwrap()),
                Some(Duration::from_secs(9)),
                3,
            )
            .unwrap()
        };
        let from_file = plan(&request(r#"{"id": 1, "workDir": "x"}"#));
        assert_eq!(
            (from_file.steps[0].run.as_str(), from_file.max_attempts),
            ("f", 2)
        );
        assert_eq!(from_file.timeout, Some(Duration::from_secs(1)));
        let over = plan(&request(
            r#"{"id": 1, "workDir": "x", "steps": ["r"], "env": {"B": "r"}, "timeoutSeconds": 2, "maxAttempts": 1}"#,
        ));
        assert_eq!((over.steps[0].run.as_str(), over.max_attempts), ("r", 1));
        let env = [("A", "f"), ("B", "f"), ("B", "r")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(over.env, env, "the last one of a name counts");
        assert_eq!(over.timeout, Some(Duration::from_secs(2)));
        let bare = request(r#"{"id": 1, "workDir": "x", "steps": []}"#);
        assert!(plan(&bare).steps.is_empty(), "no steps are steps, too");
        let defaults =
            Plan::merge(&bare.definition, None, Some(Duration::from_secs(9)), 3).unwrap();
        assert_eq!(
            (defaults.timeout, defaults.max_attempts),
            (Some(Duration::from_secs(9)), 3)
        );
        let none = request(r#"{"id": 1, "workDir": "x"}"#);
        assert!(
            Plan::merge(&none.definition, Some(Definition::default()), None, 3).unwrap_err()[0]
                .contains("no `steps`")
        );
    }

    #[test]
    fn a_job_may_ask_for_less_than_the_bounds_and_not_for_more() {
        let plan = |timeout: f64, attempts: u32| {
            let json = format!(
                r#"{{"id": 1, "workDir": "x", "steps": [{{"run": "a", "timeoutSeconds": {timeout}}}],
                    "timeoutSeconds": {timeout}, "maxAttempts": {attempts}}}"#
            );
            let request = Request::parse(json.as_bytes()).unwrap();
            Plan::merge(&request.definition, None, Some(Duration::from_secs(9)), 3).unwrap()
        };
        for (timeout, attempts, got, capped) in [
            (8.5, 2, (8.5, 2), 0),
            (9.0, 3, (9.0, 3), 0),
            (9.5, 3, (9.0, 3), 2),
            (9.0, 4, (9.0, 3), 1),
        ] {
            let plan = plan(timeout, attempts);
            let limit = Some(Duration::from_secs_f64(got.0));
            assert_eq!((plan.timeout, plan.max_attempts), (limit, got.1));
            assert_eq!(plan.steps[0].timeout, limit);
            assert_eq!(plan.warnings.len(), capped, "{:?}", plan.warnings);
            assert_eq!(!plan.timeout_of.is_empty(), timeout > 9.0);
        }
        let told = |timeout| plan(timeout, 1).warnings.concat();
        let asked = told(1e300);
        assert!(asked.contains("of 136 years or more"), "{asked}");
        assert!(told(9.5).contains("timeoutSeconds 9.5,"));
    }

    #[test]
    fn a_step_is_told_by_place_name_and_first_line() {
        let long = "x".repeat(SHOWN);
        let (more, shown) = (format!("{long}y"), format!("{long} …"));
        for (run, name, told, label) in [
            ("make", None, "make", "make"),
            ("make\n", None, "make", "make"),
            ("cd a\nmake", None, "cd a …", "cd a …"),
            ("cd a\nmake", Some("build"), "build", "build (cd a …)"),
            (&long, None, &*long, &*long),
            (&more, None, &shown, &shown),
        ] {
            let steps = serde_json::json!({ "steps": ["true", { "run": run, "name": name }] });
            let definition = Definition::parse(steps.to_string().as_bytes()).unwrap();
            let plan = Plan::merge(&definition, None, None, 3).unwrap();
            assert_eq!(plan.place(1), "step 2/2");
            assert_eq!((&*plan.name(1), &*plan.label(1)), (told, label));
        }
    }

    #[test]
    fn unknown_fields_are_told() {
        let [request, file] = ["a", "b"].map(|name| {
            let json = format!(r#"{{"steps": ["true"], "{name}": 1}}"#);
            Definition::parse(json.as_bytes()).unwrap()
        });
        let told = Plan::merge(&request, Some(file), None, 3).unwrap().warnings;
        let [in_request, in_file] = &*told else {
            panic!("{told:?}");
        };
        assert_eq!(in_request, "unknown fields in the request are ignored: a");
        assert_eq!(in_file, "unknown fields in job.json are ignored: b");
    }
}
