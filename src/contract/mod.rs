//! The wire and file formats: parsing and validation, without any I/O.

mod definition;
mod earlier_run;
mod json;
mod plan;
mod request;
mod status;
mod topics;

pub use definition::{Definition, MAX_DEFINITION_BYTES, Step, nearest};
pub use earlier_run::{Attempt, Decision, EarlierRun};
pub use json::{BYTE_ORDER_MARK, duration, without_mark};
pub use plan::Plan;
pub use request::{
    MAX_REQUEST_BYTES, Rejection, Request, RequestOrigin, fnv_1a, rejection_notice, told,
};
pub use status::{
    Document, JobState, MAX_PATH_BYTES, Reason, StepState, StepStatus, millis, now, now_in_seconds,
    seconds, took,
};
pub use topics::{JobId, Topics, check_name};

/// Text from outside in one line: it cannot make a second line, speak to the reader's terminal, or show its characters in
/// another order than they are in (<https://trojansource.codes>).
pub fn single_line(text: &str) -> String {
    // Unicode's Bidi_Control, of which right-to-left scripts need none
    let turns_writing = |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let deceives =
        |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || turns_writing(c);
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match deceives(c) {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

#[cfg(test)]
#[allow(dead_code)] // other tests use the rest of it
#[path = "../../tests/support/corpus.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use super::single_line;

    #[test]
    fn no_text_from_outside_makes_a_line_of_its_own() {
        assert_eq!(
            single_line("a\n==> step 1/1: exit 0\u{1b}[2J"),
            "a\\n==> step 1/1: exit 0\\u{1b}[2J"
        );
        for c in [
            '\r', '\u{b}', '\u{7f}', '\u{85}', '\u{9b}', '\u{2028}', '\u{2029}', '\u{200f}',
            '\u{202e}', '\u{2066}',
        ] {
            assert!(!single_line(&format!("a{c}b")).contains(c), "{c:?}");
        }
        assert_eq!(
            single_line("déjà vu \\ שלום 日本 👩‍👩‍👧"),
            "déjà vu \\ שלום 日本 👩‍👩‍👧"
        );
    }
}
