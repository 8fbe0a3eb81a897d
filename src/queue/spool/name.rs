//! The names of claims: `c-KEY-DIRECTORY`. The key tells the order of taking, and the directory which requests have to wait for each
//! other.

use crate::contract::fnv_1a;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The name of a claim, with the prefix that says whether it counts.
pub fn name(prefix: &str, key: u64, work_dir: &Path) -> String {
    format!("{prefix}{key:016x}-{}", directory(work_dir))
}

/// When the request was taken, in nanoseconds since 1970; later for each request.
pub fn key_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.split('-').nth(1)?, 16).ok()
}

/// What stands for the directory of the request. All that has the same waits for each other.
pub fn directory_of(name: &str) -> Option<&str> {
    name.split('-').nth(2)
}

/// What stands for a directory.
pub fn directory(work_dir: &Path) -> String {
    format!("{:016x}", fnv_1a(work_dir.as_os_str().as_bytes()))
}

/// Where a request is to run, as far as its text tells: nothing is opened, since any directory may hang whoever does that.
pub fn place(root: &Path, work_dir: &str) -> PathBuf {
    root.join(work_dir).components().collect() // without `.` and what is doubled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_when_and_where() {
        let place = place(Path::new("/data"), "a");
        let name = name("c-", 5, &place);
        assert_eq!(key_of(&name), Some(5));
        assert_eq!(directory_of(&name), Some(&*directory(&place)));
        for other in ["c-", "c-x", "bad", "c-zz-1"] {
            assert_eq!(key_of(other), None);
        }
        assert_eq!(directory_of("c-5"), None);
    }

    #[test]
    fn a_directory_is_told_by_its_path() {
        let root = Path::new("/data");
        for same in ["a", "./a", "a/", "/data/a", "/data/./a//"] {
            assert_eq!(place(root, same), Path::new("/data/a"));
        }
        assert_ne!(directory(&place(root, "a")), directory(&place(root, "b")));
    }
}
