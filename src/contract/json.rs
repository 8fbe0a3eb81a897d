//! Reading JSON field by field, so that one bad field can be named and the others still be used.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;

/// An object whose values are not interpreted yet.
pub struct Object {
    fields: BTreeMap<String, Box<RawValue>>,
    /// What is wrong with the fields that were taken, one sentence each.
    pub faults: Vec<String>,
}

impl Object {
    /// Reads one JSON object.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the text.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw = serde_json::from_slice(without_mark(bytes));
        Self::of(raw.map_err(|e| format!("is not valid JSON: {e}"))?)
    }

    /// Interprets one value as an object.
    pub fn of(raw: &RawValue) -> Result<Self, String> {
        expect("an object", raw)?;
        Ok(Self {
            fields: read(raw).map_err(|e| format!("is not valid JSON: {e}"))?,
            faults: Vec::new(),
        })
    }

    /// Takes a field out of the object and reads it. `null` counts as absent, which is how Node-RED leaves a field out. A
    /// field that cannot be used is a fault.
    pub fn take<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&RawValue) -> Result<T, String>,
    ) -> Option<T> {
        let raw = self.fields.remove(name).filter(|raw| !is_null(raw))?;
        read(&raw)
            .map_err(|e| self.faults.push(format!("`{name}` {e}")))
            .ok()
    }

    /// All fields that were not taken. `null` counts as absent.
    pub fn rest(self) -> impl Iterator<Item = (String, Box<RawValue>)> {
        self.fields.into_iter().filter(|(_, raw)| !is_null(raw))
    }
}

fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

/// A JSON text without the byte order mark that Windows tools like to write before it (RFC 8259, section 8.1).
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// See [`without_mark`].
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a person calls the type of a JSON value.
pub fn type_name(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// A value in its own type. All JSON is read as bytes: to read it as text, too, would be 5 KB of the program.
pub fn read<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> serde_json::Result<T> {
    serde_json::from_slice(raw.get().as_bytes())
}

fn expect(wanted: &str, raw: &RawValue) -> Result<(), String> {
    match type_name(raw) {
        given if given == wanted => Ok(()),
        given => Err(format!("must be {wanted}, not {given}")),
    }
}

/// A string without NUL, since every one of ours ends as a path, an argument or an environment variable.
pub fn string(raw: &RawValue) -> Result<String, String> {
    expect("a string", raw)?;
    let text: String = read(raw).map_err(|e| format!("is not a valid string: {e}"))?;
    if text.contains('\0') {
        return Err("must not contain a NUL character".into());
    }
    Ok(text)
}

/// The items of an array, not interpreted yet.
pub fn array(raw: &RawValue) -> Result<Vec<Box<RawValue>>, String> {
    expect("an array", raw)?;
    read(raw).map_err(|e| format!("is not a valid array: {e}"))
}

/// `true` or `false`.
pub fn boolean(raw: &RawValue) -> Result<bool, String> {
    read(raw).map_err(|_| format!("must be true or false, not {}", type_name(raw)))
}

/// A longer duration counts as this long (136 years): the clock cannot tell a moment beyond its own end.
pub const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A number as far as a double can tell it, which is how schemas and most languages read it. `None`: no number. It is not
/// [`str::parse`], whose tables are 15 KB of the program.
fn number(raw: &RawValue) -> Option<f64> {
    match (type_name(raw), read(raw)) {
        ("a number", Ok(number)) => Some(number),
        ("a number", Err(_)) if raw.get().starts_with('-') => Some(f64::NEG_INFINITY),
        ("a number", Err(_)) => Some(f64::INFINITY), // larger than a double can be
        _ => None,
    }
}

/// A duration in seconds, fractions allowed. `None`: no number, or less than nothing.
pub fn duration(raw: &RawValue) -> Option<Duration> {
    let seconds = number(raw)?.min(FOREVER.as_secs_f64());
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    // what is shorter than a moment is not nothing
    let least = Duration::from_nanos((seconds > 0.0).into());
    Some(duration.max(least))
}

/// A duration in seconds that is longer than nothing.
pub fn seconds(raw: &RawValue) -> Result<Duration, String> {
    let given = match number(raw) {
        Some(_) => brief(raw.get()),
        None => type_name(raw).to_owned(),
    };
    let duration = duration(raw).filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| format!("must be a number of seconds greater than 0, not {given}"))
}

/// A whole number from 1, also as `2.0` or `2e0`.
pub fn count(raw: &RawValue) -> Result<u32, String> {
    let is_count =
        |value: &f64| value.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(value);
    match number(raw).filter(is_count) {
        Some(count) => Ok(count as u32),
        None => Err(format!(
            "must be a whole number from 1 to {}, not {}",
            u32::MAX,
            brief(raw.get())
        )),
    }
}

/// A value for an error message: enough to recognise it.
pub fn brief(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((cut, _)) => format!("{}…", &text[..cut]),
    }
}
