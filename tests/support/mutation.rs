//! Hostile input from good input, the same at every run.

use super::random::Random;

/// What parsers trip over.
const TOKENS: [&[u8]; 40] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00",
    b"\\uD83D\\uDE00",
    b"\\u202e",
    b"null",
    b"true",
    b"1e999",
    b"-0",
    b"0.1e-400",
    b"18446744073709551616",
    b"99999999999999999999999999999999",
    b"NaN",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
    b"\xef\xbf\xbf",
    b"\0",
    b"\n",
    b"\x1b[2J",
    b"/",
    b"+",
    b"#",
    b"..",
    b"/etc",
    b"@",
    b"%",
    b"%00",
    b"=",
    b"id",
];

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
        let mut bytes = good[self.index(good.len())].clone();
        for _ in 0..self.index(5) {
            let at = self.index(bytes.len() + 1);
            match self.index(9) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.index(8),
                1 if at < bytes.len() => bytes[at] = self.index(256) as u8,
                2 | 3 => {
                    drop(bytes.splice(at..at, TOKENS[self.index(TOKENS.len())].iter().copied()))
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
                    let (token, count) = (TOKENS[self.index(6)], self.index(2000));
                    bytes.splice(at..at, token.repeat(count));
                }
                _ => {}
            }
        }
        bytes
    }
}
