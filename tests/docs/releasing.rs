//! What makes a release (docs/releasing.md): the workflows, and the text of the release.

use crate::support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use support::temp_dir::TempDir;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A tag can be moved to other code, a commit cannot.
#[test]
fn every_action_is_pinned_by_its_commit_and_says_its_version() {
    let mut count = 0;
    for entry in fs::read_dir(repository().join(".github/workflows")).expect("workflows") {
        let path = entry.expect("an entry").path();
        let workflow = fs::read_to_string(&path).expect("a workflow is text");
        let uses = workflow.lines().filter_map(|line| {
            let line = line.trim_start();
            line.strip_prefix("- ")
                .unwrap_or(line)
                .strip_prefix("uses: ")
        });
        for action in uses {
            let (_, pin) = action.split_once('@').expect(action);
            let (commit, version) = pin.split_once(" # v").expect(action);
            let is_commit = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(
                is_commit && !version.is_empty(),
                "{}: {action}",
                path.display()
            );
            count += 1;
        }
    }
    assert!(count > 5, "only {count} actions");
}

fn release_notes(changelog: &str, tag: &str) -> Output {
    let dir = TempDir::new();
    fs::create_dir(dir.path().join(".ci")).expect("the directory can be written");
    for file in [".ci/release-notes", "Cargo.toml"] {
        symlink(repository().join(file), dir.path().join(file)).expect("a link");
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
    let labels = Command::new(repository().join(".ci/labels"))
        .output()
        .expect("bash is there");
    let labels = String::from_utf8(labels.stdout).expect("labels are text");
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        labels.contains(&format!("image.version={version}\n")),
        "{labels}"
    );
    assert!(labels.contains(&format!(
        "image.description={}\n",
        env!("CARGO_PKG_DESCRIPTION")
    )));
    for file in [
        "Dockerfile",
        "compose.yaml",
        ".github/workflows/release.yml",
    ] {
        let text = fs::read_to_string(repository().join(file)).expect("it is there");
        assert!(!text.contains(version), "{file} names the version");
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
        let block = Command::new(repository().join("tests/readme.sh"))
            .arg(way)
            .output()
            .expect("sh is there");
        let lines = block.stdout.split(|byte| *byte == b'\n').count() - 1;
        assert!((4..10).contains(&lines), "{way}: {lines} lines");
        let test = fs::read_to_string(repository().join("tests").join(test)).expect("it is there");
        let runs = [way.to_owned(), format!("\"{way}\"")];
        assert!(
            runs.iter()
                .any(|way| test.contains(&format!("tests/readme.sh {way}"))),
            "{way}"
        );
    }
}
