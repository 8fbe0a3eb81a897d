//! A validator for the part of JSON Schema (draft 2020-12) that `docs/schema` uses. A keyword that it does not know is a
//! panic, so nothing of a schema is passed over in silence.

use serde_json::{Map, Value};
use std::path::Path;

pub struct Schema {
    root: Value,
}

impl Schema {
    /// Reads `docs/schema/{file}`.
    pub fn read(file: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("docs/schema")
            .join(file);
        let root = serde_json::from_slice(&std::fs::read(path).expect("the schema"))
            .expect("a schema is JSON");
        Self { root }
    }

    /// What is wrong with a value, `Ok` where nothing is.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        self.apply(&self.root, value)
    }

    /// Takes a document, and has a word about each of its fields.
    #[track_caller]
    pub fn describes(&self, document: &Value) {
        assert_eq!(self.check(document), Ok(()), "{document}");
        let known = self.root["properties"].as_object().expect("properties");
        let mut fields = document.as_object().expect("an object").keys();
        assert!(fields.all(|field| known.contains_key(field)), "{document}");
    }

    fn apply(&self, schema: &Value, value: &Value) -> Result<(), String> {
        match schema {
            Value::Bool(true) => Ok(()),
            Value::Object(keywords) => keywords
                .iter()
                .try_for_each(|(keyword, operand)| self.keyword(keywords, keyword, operand, value)),
            _ => Err(format!("{value} must not be there")),
        }
    }

    fn keyword(
        &self,
        all: &Map<String, Value>,
        keyword: &str,
        operand: &Value,
        value: &Value,
    ) -> Result<(), String> {
        let list = || operand.as_array().expect("an array").iter();
        let limit = operand.as_f64().unwrap_or_default();
        let is_number = |test: fn(f64, f64) -> bool| value.as_f64().is_none_or(|n| test(n, limit));
        let text = value.as_str();
        let length = text.map(|text| text.chars().count() as f64);
        let fields = || value.as_object().into_iter().flatten();
        let good = match keyword {
            "$schema" | "$id" | "$defs" | "title" | "description" | "format" | "then" | "else" => {
                true
            }
            "$ref" => return self.follow(operand.as_str().expect("a reference"), value),
            "type" if operand.is_array() => list().any(|name| has_type(value, name)),
            "type" => has_type(value, operand),
            "const" => value == operand,
            "enum" => list().any(|one| one == value),
            "minimum" => is_number(|n, limit| n >= limit),
            "maximum" => is_number(|n, limit| n <= limit),
            "exclusiveMinimum" => is_number(|n, limit| n > limit),
            "minLength" => length.is_none_or(|length| length >= limit),
            "maxLength" => length.is_none_or(|length| length <= limit),
            "pattern" => {
                let pattern = operand.as_str().expect("a pattern");
                text.is_none_or(|text| has_one_of(text, pattern))
            }
            "required" => {
                let has = |name: &Value| value.get(name.as_str().expect("a name")).is_some();
                !value.is_object() || list().all(has)
            }
            "items" => {
                let mut items = value.as_array().into_iter().flatten();
                return items.try_for_each(|item| self.apply(operand, item));
            }
            "properties" => {
                let mut described = operand.as_object().into_iter().flatten();
                return described.try_for_each(|(name, schema)| match value.get(name) {
                    Some(field) => self
                        .apply(schema, field)
                        .map_err(|e| format!("{name}: {e}")),
                    None => Ok(()),
                });
            }
            "additionalProperties" if !all.contains_key("properties") => {
                return fields().try_for_each(|(_, field)| self.apply(operand, field));
            }
            "propertyNames" => {
                let mut names = fields().map(|(name, _)| Value::from(name.as_str()));
                return names.try_for_each(|name| self.apply(operand, &name));
            }
            "anyOf" => list().any(|schema| self.apply(schema, value).is_ok()),
            "not" => self.apply(operand, value).is_err(),
            "allOf" => return list().try_for_each(|schema| self.apply(schema, value)),
            "if" => {
                let is_met = self.apply(operand, value).is_ok();
                let branch = all.get(if is_met { "then" } else { "else" });
                return branch.map_or(Ok(()), |schema| self.apply(schema, value));
            }
            _ => panic!("the validator does not know {keyword}"),
        };
        match good {
            true => Ok(()),
            false => Err(format!("{value} against {keyword} {operand}")),
        }
    }

    /// `#/a/b`: a reference to another file is one that not every validator follows.
    fn follow(&self, reference: &str, value: &Value) -> Result<(), String> {
        let pointer = reference
            .strip_prefix('#')
            .expect("a reference in the file");
        let referred = self.root.pointer(pointer);
        self.apply(referred.expect("what is referred to"), value)
    }
}

fn has_type(value: &Value, name: &Value) -> bool {
    match name.as_str().expect("the name of a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("there is no type {other}"),
    }
}

/// The one form of pattern that the schemas need: a character, or one of several, as single ones and ranges in brackets.
fn has_one_of(text: &str, pattern: &str) -> bool {
    let set = pattern
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let set: Vec<char> = set.unwrap_or(pattern).chars().collect();
    let ranges = (0..set.len()).filter(|&i| i > 0 && i + 1 < set.len() && set[i] == '-');
    let ranges: Vec<_> = ranges.map(|i| set[i - 1]..=set[i + 1]).collect();
    text.chars()
        .any(|c| set.contains(&c) && c != '-' || ranges.iter().any(|range| range.contains(&c)))
}
