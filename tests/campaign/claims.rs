//! What lies in a pool's directory: read as a bystander does, who locks nothing.

use super::support::pool::{claims as names, directory};
use serde_json::Value;
use std::fs;
use std::path::Path;

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
}

/// The claims that count. One that cannot be read, as where it has another name by now, is looked for again, and passed over in the
/// end.
pub fn claims(drive: &Path) -> Vec<Claim> {
    let look = || -> Vec<Option<Claim>> {
        let names = names(drive).into_iter();
        let names = names.filter(|name| name.starts_with("c-"));
        names.map(|name| read(drive, &name)).collect()
    };
    let mut tries = (0..TRIES).map(|_| look());
    let whole = tries.find(|claims| claims.iter().all(Option::is_some));
    whole.unwrap_or_else(look).into_iter().flatten().collect()
}

/// `None` also where it is done by now, and empty.
fn read(drive: &Path, name: &str) -> Option<Claim> {
    let content = fs::read(directory(drive).join(name)).ok()?;
    let mut parts = name.splitn(4, '-').skip(1);
    let (seq, rand, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let first = content.iter().position(|byte| *byte == b'\n')?;
    let header: Value = serde_json::from_slice(&content[..first]).ok()?;
    let bytes = header["bytes"].as_u64()? as usize;
    let (request, document) = content[first + 1..].split_at_checked(bytes)?;
    let token: Value = serde_json::from_slice(request).ok()?;
    // one that is cut short does not count
    let whole = document.strip_prefix(b"\n")?.strip_suffix(b"\n");
    Some(Claim {
        request: format!("{seq}-{rand}"),
        rest: rest.to_owned(),
        token: token["env"]["TOKEN"].as_str()?.to_owned(),
        document: whole.and_then(|document| serde_json::from_slice(document).ok()),
    })
}
