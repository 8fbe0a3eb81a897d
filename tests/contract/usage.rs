//! The command line (docs/reference.md, "Commands" and "Exit status").

use crate::support::worker::{job_worker, said};

fn of(arguments: &[&str]) -> (String, String, Option<i32>) {
    said(job_worker().args(arguments))
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
        let (help, wrong, status) = of(&line.split(' ').collect::<Vec<_>>());
        assert_eq!((status, &*wrong), (Some(0), ""));
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
    let (shown, _, status) = of(&["--version"]);
    // with the target, such as x86_64-unknown-linux-musl
    let start = concat!("job-worker ", env!("CARGO_PKG_VERSION"), " (");
    assert!(
        shown.starts_with(start) && shown.contains("-linux-"),
        "{shown}"
    );
    assert_eq!((status, shown.lines().count()), (Some(0), 1));
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
        let (shown, said, status) = of(&arguments);
        assert_eq!((status, &*shown), (Some(64), ""), "{line}");
        let is_one_line = said.lines().count() == 1;
        let end = "; job-worker --help says what there is\n";
        assert!(is_one_line && said.ends_with(end), "{line}: {said}");
        let unknown = said.starts_with("job-worker: unknown option \"--fast\"; ");
        assert_eq!(unknown, line.ends_with("--fast"), "{line}: {said}");
    }
}

#[test]
fn usage_comes_before_configuration() {
    for (arguments, code, word) in [
        (&["start"][..], 64, "start"),
        (&[], 78, "JOB_TIMEOUT=\"soon\""),
        (&["supervise"], 78, "JOB_TIMEOUT=\"soon\""),
        (&["run", "."], 78, "JOB_TIMEOUT=\"soon\""),
    ] {
        let mut command = job_worker();
        command.args(arguments).env("JOB_TIMEOUT", "soon");
        let (_, told, status) = said(&mut command);
        assert_eq!(status, Some(code), "{arguments:?}");
        assert!(told.contains(word), "{arguments:?}: {told}");
    }
}
