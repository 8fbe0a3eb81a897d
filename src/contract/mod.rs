//! The wire and file formats (contract sections 1, 2, 3 and 5): parsing and validation, without any I/O.

mod definition;
mod id;
mod json;
mod request;
mod status;
mod topics;

pub use definition::{Definition, MAX_DEFINITION_BYTES, Plan, Step};
pub use id::{JobId, check_name};
pub use request::{MAX_REQUEST_BYTES, Rejection, Request, rejection_notice};
pub use status::{Answer, Document, JobState, Journal, Reason, StepState, StepStatus, Timestamp, millis};
pub use topics::Topics;

/// Text from outside in one line: it cannot make a second line, nor speak to the reader's terminal.
pub fn single_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::single_line;

    #[test]
    fn no_text_from_outside_makes_a_line_of_its_own() {
        assert_eq!(single_line("a\n==> step 1/1: exit 0\u{1b}[2J"), "a\\n==> step 1/1: exit 0\\u{1b}[2J");
        assert_eq!(single_line("déjà vu"), "déjà vu");
    }
}
