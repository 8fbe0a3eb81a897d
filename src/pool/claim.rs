//! A claim: a request in progress, in a file of its own. Its name says how far it is, its lock that a process has it.

use super::place::Place;
use crate::contract::{Request, RequestOrigin, fnv_1a};
use crate::job::Claimed;
use crate::mqtt::Message;
use crate::random;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The version of the format. 1 was that of version 0.2 of this program.
const VERSION: u32 = 2;

/// Larger than any claim of ours, in bytes: a message, which MQTT limits to 256 MiB, and the final document.
const MAX_BYTES: u64 = 512 << 20;

/// Sequence numbers have this many digits, and begin with a 0: a larger one is a stray file's.
const DIGITS: usize = 12;

/// The largest of them.
const MAX_SEQ: u64 = 99_999_999_999;

/// The identification of a request whose acknowledgement is confirmed: it is told from others no more.
const CONFIRMED: &str = "0";

/// `c-SEQ-RAND-DIR-ID-N`, or `d-SEQ-RAND-DIR-ID` where the request is done.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Name {
    /// The order of taking.
    pub seq: u64,
    /// Tells two claims with one sequence number apart.
    rand: String,
    /// A hash of the text of `workDir`: claims that have the same wait for each other.
    pub dir: String,
    /// The packet identifier and a hash of the text, until the broker is known to have the acknowledgement.
    pub id: String,
    /// How often the claim was taken; `None` where the request is done.
    pub taken: Option<u32>,
}

impl Name {
    /// The name of the next claim behind those in the directory.
    pub fn next(names: &[Self], dir: String, id: String, taken: Option<u32>) -> Self {
        let latest = names.iter().map(|name| name.seq).max().unwrap_or(0);
        Self {
            seq: MAX_SEQ.min(latest + 1), // behind a stray file, too, a name is one of ours
            rand: format!("{:016x}", random()),
            dir,
            id,
            taken,
        }
    }

    /// The name of something done that is no request.
    pub fn mark(names: &[Self]) -> Self {
        Self::next(names, "0".into(), CONFIRMED.into(), None)
    }

    /// Reads a name; `None` where it is none of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let (seq, rand, dir, id, taken) = match *parts {
            ["c", seq, rand, dir, id, taken] => (seq, rand, dir, id, Some(taken.parse().ok()?)),
            ["d", seq, rand, dir, id] => (seq, rand, dir, id, None),
            _ => return None,
        };
        let seq = seq.parse().ok().filter(|_| seq.len() == DIGITS)?;
        (seq <= MAX_SEQ).then(|| Self {
            seq,
            rand: rand.to_owned(),
            dir: dir.to_owned(),
            id: id.to_owned(),
            taken,
        })
    }

    /// A name under which a claim does not count yet.
    pub fn uncounted(&self) -> String {
        format!("n-{self}")
    }

    /// Whether both are of one request, however far it is.
    pub fn is_same_request(&self, other: &Self) -> bool {
        (self.seq, &self.rand) == (other.seq, &other.rand)
    }

    fn done(&self) -> Self {
        Self {
            taken: None,
            ..self.clone()
        }
    }

    fn taken(&self, taken: u32) -> Self {
        Self {
            taken: Some(taken),
            ..self.clone()
        }
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let Self {
            seq,
            rand,
            dir,
            id,
            taken,
        } = self;
        match taken {
            Some(taken) => write!(f, "c-{seq:0DIGITS$}-{rand}-{dir}-{id}-{taken}"),
            None => write!(f, "d-{seq:0DIGITS$}-{rand}-{dir}-{id}"),
        }
    }
}

/// What tells a request from others of its session, as long as its acknowledgement is not confirmed. At QoS 0 nothing comes again.
pub fn id_of(message: &Message) -> String {
    match message.packet_id {
        Some(packet_id) => format!("{packet_id}.{:016x}", fnv_1a(&message.payload)),
        None => CONFIRMED.to_owned(),
    }
}

/// What stands for the directory of a request, as far as its text tells: nothing is opened, since any directory may hang the head.
pub fn dir_of(message: &Message, root: &Path) -> String {
    let hash = match Request::parse(&message.payload) {
        Ok(request) => {
            let path = root.join(request.work_dir);
            // another host may have the drive elsewhere
            let place = path.strip_prefix(root).unwrap_or(&path);
            // without `.` and what is doubled
            let place: PathBuf = place.components().collect();
            fnv_1a(place.as_os_str().as_bytes())
        }
        Err(_) => fnv_1a(&message.payload),
    };
    format!("{hash:016x}")
}

/// The first line of a claim. Behind it are the request's own bytes, an end of line, and at last the final document.
#[derive(Deserialize, Serialize)]
struct Header {
    version: u32,
    topic: String,
    bytes: usize,
}

/// Who has a claim.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Holder {
    /// This worker.
    Us,
    /// Another worker has taken it, or is done with it: it publishes the result.
    Another,
    /// None: a step or a person has removed the file. Only this worker knows of the request then.
    Gone,
}

/// A claim that this worker has: its file is locked.
#[derive(Debug)]
pub struct Claim {
    place: Place,
    file: File,
    name: Name,
    /// The request, as the broker sent it.
    pub message: Message,
    /// The final document, where the job is over.
    pub document: Option<Vec<u8>>,
    /// It has one, or could not take it.
    is_kept: AtomicBool,
    /// Where the final document begins, in bytes.
    end: u64,
}

impl Claim {
    /// What a new claim holds.
    pub fn begin(message: &Message) -> Vec<u8> {
        let header = Header {
            version: VERSION,
            topic: message.topic.clone(),
            bytes: message.payload.len(),
        };
        let mut content = serde_json::to_vec(&header).unwrap_or_default(); // strings and numbers always serialise
        content.push(b'\n');
        content.extend_from_slice(&message.payload);
        content.push(b'\n');
        content
    }

    /// A claim whose file is locked.
    ///
    /// # Errors
    /// What the system said; `InvalidData` where the file is no claim, `Unsupported` where it is one of another version.
    pub fn read(place: Place, file: File, name: Name) -> io::Result<Self> {
        let no_claim = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let bytes = file.metadata()?.len();
        if bytes > MAX_BYTES {
            return Err(no_claim(format!("it has {bytes} bytes")));
        }
        let mut content = vec![0; bytes as usize];
        file.read_exact_at(&mut content, 0)?;
        let first = content.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let header: Header = serde_json::from_slice(&content[..first])
            .map_err(|error| no_claim(format!("its first line: {error}")))?;
        if header.version != VERSION {
            let error = format!("it is of version {}", header.version);
            return Err(io::Error::new(io::ErrorKind::Unsupported, error));
        }
        let mut payload = content.split_off(first + 1);
        if payload.get(header.bytes) != Some(&b'\n') {
            return Err(no_claim("the request in it is cut short".to_owned()));
        }
        let mut document = payload.split_off(header.bytes + 1);
        payload.pop();
        let end = bytes - document.len() as u64;
        // one that is cut short was never published
        let is_whole = document.pop() == Some(b'\n');
        Ok(Self {
            message: Message {
                topic: header.topic,
                payload: payload.into(),
                packet_id: None,
                redelivered: false,
                subscription: None,
                retained: false,
            },
            end,
            is_kept: is_whole.into(),
            document: is_whole.then_some(document),
            place,
            file,
            name,
        })
    }

    /// Where it is, for a person.
    pub fn path(&self) -> PathBuf {
        self.place.path.join(self.name.to_string())
    }

    /// Whose request it is, and how often it was taken.
    pub fn origin(&self) -> RequestOrigin {
        let (pool, name) = (self.place.name(), &self.name);
        RequestOrigin::Pool {
            identity: format!("{pool} {}-{}", name.seq, name.rand),
            taken: name.taken.unwrap_or(1),
        }
    }

    /// Has the steps inherit the lock, so that no other worker takes the claim while one of them lives.
    ///
    /// # Errors
    /// What the system said.
    pub fn let_steps_inherit(&self) -> io::Result<()> {
        let inherited = rustix::io::FdFlags::empty();
        Ok(rustix::io::fcntl_setfd(&self.file, inherited)?)
    }

    /// Who has it now. A network drive that was away for long may have given the lock to another worker, which has renamed the file.
    fn holder(&self) -> Holder {
        if self.place.dir.leads_to(&self.name.to_string(), &self.file) {
            return Holder::Us;
        }
        let is_it = |name: &Name| name.is_same_request(&self.name);
        match self.place.list() {
            Ok((names, _)) if names.iter().any(is_it) => Holder::Another,
            _ => Holder::Gone,
        }
    }

    fn write_document(&self, document: &[u8]) -> io::Result<()> {
        let mut line = document.to_vec();
        line.push(b'\n');
        self.file.set_len(self.end)?; // a worker that died may have begun to
        let kept = (&self.file)
            .write_all(&line)
            .and_then(|()| self.place.dir.sync_file(&self.file));
        if kept.is_err() {
            let _ = self.file.set_len(self.end); // the first error is the one to tell
        }
        kept
    }

    /// The broker has the result.
    pub fn done(&self) {
        match self.holder() {
            Holder::Us => {
                let renamed = self.rename(&self.name.done());
                // only now: what is cut short counts no more
                if let Err(error) = renamed.and_then(|()| self.file.set_len(0)) {
                    let path = self.path();
                    log::warn!("the claim {} cannot be ended: {error}", path.display());
                }
            }
            Holder::Another => {}
            // the process that has removed it may have removed all of the pool: the next member must not take it for another drive's
            Holder::Gone => {
                if let Err(error) = self.place.make() {
                    log::warn!("{error}");
                }
            }
        }
    }

    /// Gives it back: this worker is asked to stop, and that is no attempt that died.
    pub fn give_back(&self) {
        let taken = self.name.taken.unwrap_or(1).saturating_sub(1);
        if self.holder() == Holder::Us
            && let Err(error) = self.rename(&self.name.taken(taken))
        {
            log::warn!(
                "the claim {} cannot be given back: {error}",
                self.path().display()
            );
        }
    }

    /// Counts that this worker has taken it. A worker that has lost its lock finds its name gone.
    ///
    /// # Errors
    /// What the system said.
    pub fn take(&mut self) -> io::Result<()> {
        let name = self
            .name
            .taken(self.name.taken.unwrap_or(0).saturating_add(1));
        self.rename(&name)?;
        self.name = name;
        self.place.dir.sync()
    }

    /// The broker has the acknowledgement: nothing that it sends is this request any more.
    ///
    /// # Errors
    /// What the system said.
    pub fn confirm(&mut self) -> io::Result<()> {
        let name = confirmed(&self.name);
        self.rename(&name)?;
        self.name = name;
        Ok(())
    }

    fn rename(&self, to: &Name) -> io::Result<()> {
        let (from, to) = (self.name.to_string(), to.to_string());
        match from == to {
            true => Ok(()),
            false => self.place.dir.rename(&from, &to),
        }
    }
}

impl Claimed for Claim {
    fn is_lost(&self) -> bool {
        self.holder() == Holder::Another
    }

    fn keep(&self, document: &[u8]) {
        if !self.is_kept.swap(true, Relaxed)
            && let Err(error) = self.write_document(document)
        {
            let path = self.path();
            log::warn!(
                "the claim {}: {error}; the result is published all the same",
                path.display()
            );
        }
    }
}

/// The name of a request whose acknowledgement is confirmed.
pub fn confirmed(name: &Name) -> Name {
    Name {
        id: CONFIRMED.to_owned(),
        ..name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_when_where_and_how_far() {
        let name = Name::next(&[], "ab".into(), "7.cd".into(), Some(1));
        assert_eq!(name.seq, 1);
        assert_eq!(Name::parse(&name.to_string()), Some(name.clone()));
        let done = name.done();
        assert_eq!(Name::parse(&done.to_string()), Some(done.clone()));
        assert!(done.is_same_request(&name));
        let next = Name::next(&[done], "ab".into(), "8.cd".into(), Some(0));
        assert!(next.seq == 2 && !next.is_same_request(&name));
        let last = Name::parse("d-099999999999-a-0-0").unwrap();
        let next = Name::next(&[last], "ab".into(), "8.cd".into(), Some(0));
        assert!(Name::parse(&next.to_string()).is_some(), "{next}");
        for stray in [
            "c-",
            "c-1-a-b-c-1",
            "c-999999999999-a-b-c-1",
            "c-000000000001-a-b-c-x",
            "d-000000000001-a-b",
            "head.lock",
        ] {
            assert_eq!(Name::parse(stray), None, "{stray}");
        }
    }

    #[test]
    fn a_directory_is_told_by_its_path() {
        let dir_on = |root, work_dir: &str| {
            let payload = format!(r#"{{"id":"a","workDir":"{work_dir}"}}"#);
            let message = Message {
                topic: "t".into(),
                payload: payload.into(),
                packet_id: None,
                redelivered: false,
                subscription: None,
                retained: false,
            };
            dir_of(&message, Path::new(root))
        };
        let dir = |work_dir| dir_on("/data", work_dir);
        for same in ["./a", "a/", "/data/a", "/data/./a//"] {
            assert_eq!(dir(same), dir("a"));
        }
        assert_ne!(dir("b"), dir("a"));
        // members may have the drive at different places
        assert_eq!(dir_on("/mnt", "a"), dir("a"));
        assert_eq!(dir_on("/mnt", "/mnt/./a"), dir("a"));
    }
}
