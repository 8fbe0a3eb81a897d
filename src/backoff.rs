//! A pause between tries that doubles, so that trying again is quick at first and cheap for ever.

use std::time::Duration;

/// How long to pause before each further try.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses for `first`, then for twice as long each time, and never for longer than `last`.
    pub const fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            next: first,
        }
    }

    /// The pause before the next try.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.last);
        pause
    }

    /// The next pause is the first again: the trouble has passed.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_millis(350);

    fn pauses(backoff: &mut Backoff, count: usize) -> Vec<u128> {
        std::iter::repeat_with(|| backoff.next_pause().as_millis())
            .take(count)
            .collect()
    }

    #[test]
    fn a_pause_doubles_up_to_the_last() {
        let mut backoff = Backoff::new(FIRST, LAST);
        assert_eq!(pauses(&mut backoff, 5), [100, 200, 350, 350, 350]);
    }

    #[test]
    fn after_a_reset_the_pauses_begin_anew() {
        let mut backoff = Backoff::new(FIRST, LAST);
        pauses(&mut backoff, 4);
        backoff.reset();
        assert_eq!(pauses(&mut backoff, 2), [100, 200]);
    }
}
