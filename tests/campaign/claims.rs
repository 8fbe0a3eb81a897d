//! What lies in a pool's directory: read as a bystander does, who locks nothing.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How often to ask which files are locked.
const LOOKS: usize = 4;

/// A claim, as its file says.
#[derive(Clone, Debug)]
pub struct Claim {
    pub name: String,
    /// Of its request.
    pub token: String,
    /// The workers that took it, one after the other.
    pub takers: Vec<String>,
    /// Its final document.
    pub document: Option<Value>,
    /// Somebody has its lock; as far as the system tells.
    pub is_locked: bool,
}

impl Claim {
    pub fn taken_by(&self, worker: &str) -> usize {
        self.takers.iter().filter(|taker| *taker == worker).count()
    }

    pub fn last_taker(&self) -> &str {
        self.takers.last().map_or("", String::as_str)
    }
}

/// The claims that count.
pub fn claims(pool: &Path) -> Vec<Claim> {
    let mut claims: Vec<(u64, Claim)> = Vec::new();
    for name in super::support::site::names(pool) {
        let path = pool.join(&name);
        if name.starts_with("c-")
            && let (Ok(content), Ok(metadata)) = (fs::read_to_string(&path), fs::metadata(&path))
            && let Some(claim) = read(name, &content)
        {
            claims.push((metadata.ino(), claim));
        }
    }
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

fn read(name: String, content: &str) -> Option<Claim> {
    let mut lines = content.split_inclusive('\n');
    let json = |line: &str| serde_json::from_str::<Value>(line.strip_suffix('\n')?).ok();
    let request = json(lines.next()?)?["request"].as_str()?.to_owned();
    let request: Value = serde_json::from_str(&request).ok()?;
    let mut claim = Claim {
        name,
        token: request["env"]["TOKEN"].as_str()?.to_owned(),
        takers: Vec::new(),
        document: None,
        is_locked: false,
    };
    for event in lines.filter_map(json) {
        if let Some(taker) = event["taken"].as_str() {
            claim.takers.push(taker.to_owned());
        }
        if event["result"].is_object() {
            claim.document = Some(event["result"].clone());
        }
    }
    Some(claim)
}

/// `None` where the system does not tell.
fn locked_inodes() -> Option<BTreeSet<u64>> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let inode = |line: &str| {
        let file = line.split_whitespace().nth(5)?;
        file.rsplit(':').next()?.parse().ok()
    };
    Some(locks.lines().filter_map(inode).collect())
}
