//! What makes a release (docs/releasing.md): the workflows, and the text of the release.

use crate::support::site::names;
use crate::support::temp_dir::TempDir;
use crate::{file, output, text};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};

/// A tag can be moved to other code, a commit cannot.
#[test]
fn every_action_is_pinned_by_its_commit_and_says_its_version() {
    let mut count = 0;
    for name in names(&file(".github/workflows")) {
        let workflow = text(&format!(".github/workflows/{name}"));
        let lines = workflow
            .lines()
            .map(|line| line.trim_start_matches([' ', '-']));
        for action in lines.filter_map(|line| line.strip_prefix("uses: ")) {
            let (_, pin) = action.split_once('@').expect(action);
            let (commit, version) = pin.split_once(" # v").expect(action);
            let is_commit = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(is_commit && !version.is_empty(), "{name}: {action}");
            count += 1;
        }
    }
    assert!(count > 5, "only {count} actions");
}

fn release_notes(changelog: &str, tag: &str) -> Output {
    let dir = TempDir::new();
    fs::create_dir(dir.path().join(".ci")).expect("the directory can be written");
    for name in [".ci/release-notes", "Cargo.toml"] {
        symlink(file(name), dir.path().join(name)).expect("a link");
    }
    fs::write(dir.path().join("CHANGELOG.md"), changelog).expect("the directory can be written");
    let mut notes = Command::new(dir.path().join(".ci/release-notes"));
    notes.arg(tag).output().expect("bash is there")
}

#[test]
fn the_text_of_a_release_is_that_of_its_version() {
    let version = env!("CARGO_PKG_VERSION");
    let tag = format!("v{version}");
    let dated = format!(
        "# Changelog\n\n## [{version}] - 2026-12-01\n\n- new\n\n## [0.0.1] - 2020-01-01\n\n- old\n"
    );
    let notes = release_notes(&dated, &tag);
    assert_eq!(String::from_utf8_lossy(&notes.stdout), "\n- new\n\n");
    assert!(notes.status.success());
    assert!(!release_notes(&dated, "v99.0.0").status.success());
    let undated = dated.replace(" - 2026-12-01", ", not released yet");
    assert!(!release_notes(&undated, &tag).status.success());
}

#[test]
fn the_version_of_the_image_is_that_of_the_program() {
    let labels = output(&mut Command::new(file(".ci/labels")));
    let version = env!("CARGO_PKG_VERSION");
    for (name, value) in [
        ("version", version),
        ("description", env!("CARGO_PKG_DESCRIPTION")),
    ] {
        let label = format!("image.{name}={value}\n");
        assert!(labels.contains(&label), "{labels}");
    }
    for name in [
        "Dockerfile",
        "compose.yaml",
        ".github/workflows/release.yml",
    ] {
        assert!(!text(name).contains(version), "{name} names the version");
    }
}

/// `tests/readme.sh` hands them out.
#[test]
fn each_way_to_run_it_is_short_and_run_by_a_test() {
    for (way, test) in [
        ("Docker", "docker.sh"),
        ("Debian package", "package.sh"),
        ("Static binary", "static.sh"),
    ] {
        let lines = output(Command::new(file("tests/readme.sh")).arg(way));
        let lines = lines.lines().count();
        assert!((4..10).contains(&lines), "{way}: {lines} lines");
        let test = text(&format!("tests/{test}")).replace('"', "");
        assert!(test.contains(&format!("tests/readme.sh {way}")), "{way}");
    }
}
