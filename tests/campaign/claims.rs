//! What lies in a pool's directory: read as a bystander does, who locks nothing.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// How often to ask which files are locked.
const LOOKS: usize = 4;

/// How often to look again where a claim got another name meanwhile.
const TRIES: usize = 100;

/// A claim, as its name and its file say.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The identity of the request, in the order of taking: `SEQ-RAND`.
    pub request: String,
    /// The rest of the name: `DIR-ID-N`.
    #[expect(dead_code, reason = "it is there to be read by a person")]
    pub rest: String,
    /// What the campaign knows the request by.
    pub token: String,
    /// Its final document.
    pub document: Option<Value>,
    /// Some process has its lock, as far as the system tells.
    pub is_locked: bool,
}

/// The claims that count.
pub fn claims(pool: &Path) -> Vec<Claim> {
    // one that gets another name meanwhile is looked for again
    let mut claims = (0..TRIES)
        .find_map(|_| look(pool, false))
        .or_else(|| look(pool, true))
        .unwrap_or_default();
    if !claims.is_empty() {
        // the system skips some where others come and go as it tells
        for _ in 0..LOOKS {
            let locked = locked_inodes();
            for (inode, claim) in &mut claims {
                claim.is_locked |= locked.as_ref().is_none_or(|locked| locked.contains(inode));
            }
            if claims.iter().all(|(_, claim)| claim.is_locked) {
                break;
            }
        }
    }
    claims.into_iter().map(|(_, claim)| claim).collect()
}

/// `None` where a claim cannot be read, as where it has another name by now, unless such ones are passed over.
fn look(pool: &Path, passes_over: bool) -> Option<Vec<(u64, Claim)>> {
    let mut claims = Vec::new();
    for name in super::support::site::names(pool) {
        let parts: Vec<&str> = name.split('-').collect();
        if let ["c", seq, rand, rest @ ..] = &*parts {
            let path = pool.join(&name);
            let inode = fs::metadata(&path).map(|metadata| metadata.ino());
            let content = fs::read(path).ok().and_then(|content| read(&content));
            let (Ok(inode), Some((token, document))) = (inode, content) else {
                match passes_over {
                    true => continue,
                    false => return None,
                }
            };
            let claim = Claim {
                request: format!("{seq}-{rand}"),
                rest: rest.join("-"),
                token,
                document,
                is_locked: false,
            };
            claims.push((inode, claim));
        }
    }
    Some(claims)
}

/// The token of the request, and the final document. `None` also where it is done by now, and empty.
fn read(content: &[u8]) -> Option<(String, Option<Value>)> {
    let first = content.iter().position(|byte| *byte == b'\n')?;
    let header: Value = serde_json::from_slice(&content[..first]).ok()?;
    let bytes = header["bytes"].as_u64()? as usize;
    let (request, document) = content[first + 1..].split_at_checked(bytes)?;
    let request: Value = serde_json::from_slice(request).ok()?;
    // one that is cut short does not count
    let whole = document.strip_prefix(b"\n")?.strip_suffix(b"\n");
    let document = whole.and_then(|document| serde_json::from_slice(document).ok());
    Some((request["env"]["TOKEN"].as_str()?.to_owned(), document))
}

/// `None` where the system does not tell. Each time that it does, all who lock anything on this machine wait for it; so threads that
/// ask at the same time share one answer.
fn locked_inodes() -> Option<Arc<BTreeSet<u64>>> {
    static LAST: Mutex<Option<(Instant, Arc<BTreeSet<u64>>)>> = Mutex::new(None);
    let asked = Instant::now();
    let mut last = LAST.lock().unwrap();
    if let Some((begun, locked)) = &*last
        && *begun >= asked
    {
        return Some(locked.clone());
    }
    let begun = Instant::now();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let inode = |line: &str| {
        let file = line.split_whitespace().nth(5)?;
        file.rsplit(':').next()?.parse().ok()
    };
    let locked = Arc::new(locks.lines().filter_map(inode).collect());
    *last = Some((begun, Arc::clone(&locked)));
    Some(locked)
}
