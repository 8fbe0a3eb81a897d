//! `JOB_ROOT` as a fence: a path is walked from there on, and nothing outside is looked at (docs/reference.md, "JOB_ROOT").

use rustix::fs::{Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Linux: how many links a path may lead over.
const MAX_LINKS: usize = 40;

/// Opens the directory at `path`, which must begin with `root` or with what that really is; `start` is the open root. Returns the path
/// from there on.
///
/// # Errors
/// What the system said, or nothing where the path lies or leads outside.
pub fn open(
    root: &Path,
    real: PathBuf,
    start: OwnedFd,
    path: &Path,
) -> Result<(PathBuf, OwnedFd), Option<Errno>> {
    let fence = [fold(root), real];
    let (base, names) = below(&fence, path).ok_or(None)?;
    let handle = walk(&fence, start, names)?;
    Ok((base.iter().chain(names).collect(), handle))
}

/// A path whose `..` are taken for what they seem to be.
fn fold(path: &Path) -> PathBuf {
    let mut folded = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(folded.pop()),
            part => folded.push(part),
        }
    }
    folded
}

/// The beginning of a path that is one of the names of JOB_ROOT, as it is set and as it really is, and the rest of the path;
/// `None` where it does not begin so.
fn below<'a>(fence: &[PathBuf; 2], path: &'a Path) -> Option<(PathBuf, &'a Path)> {
    let mut folded = PathBuf::new();
    let mut rest = path.components();
    while !fence.contains(&folded) {
        match rest.next()? {
            Component::ParentDir => drop(folded.pop()),
            part => folded.push(part),
        }
    }
    Some((folded, rest.as_path()))
}

/// Walks from `root` on, in our own mount namespace, link by link: so neither a directory that is swapped meanwhile nor
/// a magic link (`/proc/PID/root`) leads out.
fn walk(fence: &[PathBuf; 2], root: OwnedFd, names: &Path) -> Result<OwnedFd, Option<Errno>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let reversed = |path: &Path| path.iter().rev().map(OsStr::to_owned).collect::<Vec<_>>();
    let mut ahead = reversed(names);
    let (mut way, mut links) = (vec![root], 0);
    while let Some(name) = ahead.pop() {
        let here = way.last().ok_or(None)?;
        if name == ".." {
            way.pop();
            continue;
        }
        match openat(here, &name, flags, Mode::empty()) {
            Ok(next) => way.push(next),
            Err(error @ (Errno::NOTDIR | Errno::LOOP)) => {
                let target = readlinkat(here, &name, Vec::new()).map_err(|_| Some(error))?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                links += 1;
                if links > MAX_LINKS {
                    return Err(Some(Errno::LOOP));
                }
                match target.is_absolute() {
                    true => {
                        way.truncate(1);
                        ahead.extend(reversed(below(fence, &target).ok_or(None)?.1));
                    }
                    false => ahead.extend(reversed(&target)),
                }
            }
            Err(error) => return Err(Some(error)),
        }
    }
    way.pop().ok_or(None)
}
