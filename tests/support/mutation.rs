//! Hostile input from good input, the same at every run.

use super::random::Random;

/// What parsers trip over, between spaces.
const TOKENS: &[u8] = b"{ } [ ] \" , : \\ \\u0000 \\ud800 \\udc00 \\uD83D\\uDE00 \\u202e null true 1e999 -0 0.1e-400 \
    18446744073709551616 99999999999999999999999999999999 NaN \xff \xc0\x80 \xed\xa0\x80 \xf4\x90\x80\x80 \xef\xbb\xbf \
    \xef\xbf\xbf \0 \n \x1b[2J / + # .. /etc @ % %00 = id";

impl Random {
    fn index(&mut self, length: usize) -> usize {
        self.below(length.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let (a, b) = (self.index(length + 1), self.index(length + 1));
        a.min(b)..a.max(b)
    }

    /// One of these, changed in up to four places.
    pub fn mutate(&mut self, good: &[Vec<u8>]) -> Vec<u8> {
        let tokens: Vec<&[u8]> = TOKENS.split(|byte| *byte == b' ').collect();
        let mut bytes = good[self.index(good.len())].clone();
        for _ in 0..self.index(5) {
            let at = self.index(bytes.len() + 1);
            match self.index(9) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.index(8),
                1 if at < bytes.len() => bytes[at] = self.index(256) as u8,
                2 | 3 => {
                    let token = tokens[self.index(tokens.len())];
                    bytes.splice(at..at, token.iter().copied());
                }
                4 => drop(bytes.drain(self.range(bytes.len()))),
                5 => {
                    let part = bytes[self.range(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
                6 => {
                    let other = &good[self.index(good.len())];
                    let part = &other[self.range(other.len())];
                    bytes.splice(at..at, part.iter().copied());
                }
                7 if self.index(8) == 0 => bytes.truncate(at),
                8 if self.index(8) == 0 => {
                    let (token, count) = (tokens[self.index(6)], self.index(2000));
                    bytes.splice(at..at, token.repeat(count));
                }
                _ => {}
            }
        }
        bytes
    }
}
