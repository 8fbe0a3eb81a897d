//! Hostile input from good input, the same at every run.

/// xorshift64* (Vigna 2016): small, and good enough to be unfair.
pub struct Random(u64);

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
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % end.max(1)
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let (a, b) = (self.below(length + 1), self.below(length + 1));
        a.min(b)..a.max(b)
    }

    /// One of these, changed in up to four places.
    pub fn mutate(&mut self, good: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = good[self.below(good.len())].clone();
        for _ in 0..self.below(5) {
            let at = self.below(bytes.len() + 1);
            match self.below(9) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                2 | 3 => {
                    drop(bytes.splice(at..at, TOKENS[self.below(TOKENS.len())].iter().copied()))
                }
                4 => drop(bytes.drain(self.range(bytes.len()))),
                5 => {
                    let part = bytes[self.range(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
                6 => {
                    let other = &good[self.below(good.len())];
                    let part = &other[self.range(other.len())];
                    bytes.splice(at..at, part.iter().copied());
                }
                7 if self.below(8) == 0 => bytes.truncate(at),
                8 if self.below(8) == 0 => {
                    let (token, count) = (TOKENS[self.below(6)], self.below(2000));
                    bytes.splice(at..at, token.repeat(count));
                }
                _ => {}
            }
        }
        bytes
    }
}
