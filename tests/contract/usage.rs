//! The command line (docs/reference.md, "Commands" and "Exit status").

use crate::support::worker::binary;
use std::process::{Command, Output, Stdio};

fn output(arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn help_and_version_go_to_stdout() {
    for line in [
        "--help",
        "-h",
        "run --help",
        "check DIR -h",
        "supervise --help",
    ] {
        let output = output(&line.split(' ').collect::<Vec<_>>());
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
    let said = String::from_utf8(output.stdout).unwrap();
    // with the target, such as x86_64-unknown-linux-musl
    let start = concat!("job-worker ", env!("CARGO_PKG_VERSION"), " (");
    assert!(
        said.starts_with(start) && said.contains("-linux-"),
        "{said}"
    );
    assert_eq!((output.status.code(), said.lines().count()), (Some(0), 1));
}

#[test]
fn what_is_no_command_is_exit_64_and_a_line_that_says_where_help_is() {
    for line in [
        "start",
        "",
        "--fast",
        "run",
        "run a b",
        "run a --id",
        "run a --fast",
        "supervise now",
        "check a b",
        "check --fast",
        "--help me",
        "--version 2",
    ] {
        let arguments: Vec<_> = line.split(' ').collect();
        let output = output(&arguments);
        assert_eq!(output.status.code(), Some(64), "{line}: {output:?}");
        assert!(output.stdout.is_empty());
        let said = String::from_utf8_lossy(&output.stderr);
        let end = "; job-worker --help says what there is\n";
        assert!(
            said.ends_with(end) && said.lines().count() == 1,
            "{line}: {said}"
        );
        let unknown = said.starts_with("job-worker: unknown option \"--fast\"; ");
        assert_eq!(unknown, line.ends_with("--fast"), "{line}: {said}");
    }
}

#[test]
fn usage_comes_before_configuration() {
    for (arguments, code, said) in [
        (&["start"][..], 64, "start"),
        (&[], 78, "JOB_TIMEOUT=\"soon\""),
        (&["supervise"], 78, "JOB_TIMEOUT=\"soon\""),
        (&["run", "."], 78, "JOB_TIMEOUT=\"soon\""),
    ] {
        let mut command = Command::new(binary());
        command.args(arguments).env("JOB_TIMEOUT", "soon");
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(said), "{arguments:?}: {told}");
    }
}
