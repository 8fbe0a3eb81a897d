//! The command line (docs/reference.md, "Commands" and "Exit status").

use crate::support;

use std::process::{Command, Output, Stdio};
use support::worker::binary;

fn output(arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn help_and_version_go_to_stdout() {
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["run", "--help"],
        &["check", "DIR", "-h"],
        &["supervise", "--help"],
    ] {
        let output = output(arguments);
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
        let help = String::from_utf8(output.stdout).unwrap();
        for word in [
            "supervise",
            "run DIR [--id ID]",
            "check [DIR] [--connect]",
            "--version",
            "124 timeout",
            "JOB_STOP_GRACE=8 ",
        ] {
            assert!(help.contains(word), "{word}: {help}");
        }
    }
    let output = output(&["--version"]);
    let (said, version) = (
        String::from_utf8(output.stdout).unwrap(),
        env!("CARGO_PKG_VERSION"),
    );
    // with the target, such as x86_64-unknown-linux-musl
    assert!(
        said.starts_with(&format!("job-worker {version} (")) && said.contains("-linux-"),
        "{said}"
    );
    assert_eq!((output.status.code(), said.lines().count()), (Some(0), 1));
}

#[test]
fn what_is_no_command_is_exit_64_and_a_line_that_says_where_help_is() {
    for arguments in [
        &["start"][..],
        &[""],
        &["--fast"],
        &["run"],
        &["run", "a", "b"],
        &["run", "a", "--id"],
        &["run", "a", "--fast"],
        &["supervise", "now"],
        &["check", "a", "b"],
        &["check", "--fast"],
        &["--help", "me"],
        &["--version", "2"],
    ] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.ends_with("; job-worker --help says what there is\n") && said.lines().count() == 1,
            "{arguments:?}: {said}"
        );
    }
    for arguments in [
        &["--fast"][..],
        &["run", "a", "--fast"],
        &["check", "--fast"],
    ] {
        let output = output(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        let wording = "job-worker: unknown option \"--fast\"; ";
        assert!(said.starts_with(wording), "{arguments:?}: {said}");
    }
}

#[test]
fn usage_comes_before_configuration() {
    let status = Command::new(binary())
        .arg("start")
        .env("JOB_TIMEOUT", "soon")
        .output()
        .unwrap()
        .status;
    assert_eq!(status.code(), Some(64));
    for arguments in [&[][..], &["supervise"], &["run", "."]] {
        let status = Command::new(binary())
            .args(arguments)
            .env("JOB_TIMEOUT", "soon")
            .output()
            .unwrap()
            .status;
        assert_eq!(status.code(), Some(78), "{arguments:?}");
    }
}
