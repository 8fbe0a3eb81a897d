//! What a cycle asks of the kernel, phase by phase, and how many instructions it takes: figures that do not depend on what else
//! the machine does.

use crate::Place;
use crate::machine::first_line;
use crate::report::table;
use crate::worker::{command, earlier_program, program, static_program, time};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each phase, and what is in the trace when it begins: all words of a group. `DIR` is the directory of the job.
const PHASES: [(&str, &[&[&str]]); 8] = [
    ("start", &[&["execve("]]),
    ("connect", &[&["socket(AF_INET"]]),
    ("take", &[&["recv", "/pending"]]),
    ("prepare", &[&["open", "DIR\""], &["open", "DIR/.\""]]),
    ("spawn", &[&["fork("], &["CLONE_VFORK"]]),
    ("end", &[&["SIGCHLD"]]),
    ("publish", &[&["/results/"]]),
    ("leave", &[&["recv", "\"@"]]), // PUBACK
];

/// By phase, and instructions.
pub fn tables(at: &Place) -> String {
    if first_line("strace", "--version").is_empty() {
        return "\nNo system calls by phase: strace is missing.\n".into();
    }
    let programs: Vec<PathBuf> = [program()].into_iter().chain(earlier_program()).collect();
    let counted: Vec<_> = programs.iter().map(|program| count(at, program)).collect();
    let both = |of: &dyn Fn(&[[usize; 2]]) -> usize| {
        let numbers = counted.iter().map(|counts| of(counts).to_string());
        numbers.collect::<Vec<_>>().join(" / ")
    };
    let phase = |at: usize| {
        let name = PHASES[at].0.to_owned();
        [
            name,
            both(&|counts| counts[at][0]),
            both(&|counts| counts[at][1]),
        ]
    };
    let sum = |of| both(&move |counts| counts.iter().map(|count| count[of]).sum());
    let rows = (0..PHASES.len())
        .map(phase)
        .chain([["all".into(), sum(0), sum(1)]]);
    let titles = ["phase", "system calls", "page faults"];
    format!("\n{}\n{}", table(&titles, rows), instructions(at))
}

/// System calls and page faults of one cycle in each phase, without those of the step itself. No faults without `perf`.
fn count(at: &Place, program: &Path) -> Vec<[usize; 2]> {
    let scratch = at.memory.dir("trace");
    let (trace, data) = (scratch.join("strace"), scratch.join("perf"));
    let perf = "perf record -q -k CLOCK_REALTIME -e page-faults -c 1 -o";
    let has_perf = !first_line("perf", "--version").is_empty();
    let mut traced = command(
        if has_perf { "perf" } else { "strace" },
        &at.broker,
        "phases",
    );
    if has_perf {
        traced
            .args(perf.split(' ').skip(1))
            .arg(&data)
            .args(["--", "strace"]);
    }
    traced
        .args(["-f", "-ttt", "-s", "9999", "-o"])
        .arg(&trace)
        .arg(program);
    let dir = one_job(at, || _ = time(&mut traced));
    let trace = fs::read_to_string(trace).expect("a trace");
    let fields = |line: &str| {
        let mut fields = line.split_whitespace();
        let (thread, time) = (fields.next()?.to_owned(), fields.next()?);
        Some((thread, time.trim_end_matches(':').parse::<f64>().ok()?))
    };
    let (mut counts, mut begun, mut ours, mut step) = (vec![[0; 2]], vec![0.0], vec![], None);
    for line in trace.lines() {
        let Some((thread, time)) = fields(line).filter(|(thread, _)| step.as_ref() != Some(thread))
        else {
            continue;
        };
        let has = |group: &&[&str]| {
            group
                .iter()
                .all(|word| line.contains(&word.replace("DIR", &dir)))
        };
        if PHASES
            .get(counts.len())
            .is_some_and(|(_, groups)| groups.iter().any(has))
        {
            counts.push([0; 2]);
            begun.push(time);
        }
        let at = counts.len() - 1;
        counts[at][0] += usize::from(line.contains('(') && !line.contains(" resumed>"));
        if at > 0 && line.contains("execve(") {
            step = Some(thread.clone());
        }
        ours.push(thread);
    }
    let mut script = Command::new("perf");
    script
        .args(["script", "-F", "tid,time", "--ns", "-i"])
        .arg(data);
    let faults = script
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    for (thread, time) in String::from_utf8_lossy(&faults).lines().filter_map(fields) {
        if ours.contains(&thread) && step.as_ref() != Some(&thread) {
            let phase = begun.iter().rposition(|begun| *begun <= time).unwrap_or(0);
            counts[phase][1] += 1;
        }
    }
    counts.resize(PHASES.len(), [0; 2]);
    counts
}

/// Lets a job be run under the id `phases`, and tells its directory.
fn one_job(at: &Place, run: impl FnOnce()) -> String {
    at.broker.open_queue("phases");
    let dir = at.memory.dir("phases");
    at.broker
        .client("controller")
        .submit("phases", &dir, "true");
    run();
    dir.display().to_string()
}

/// Instructions of a cycle outside of the kernel: of the static programs, and of those in `JOB_WORKER_FOREIGN`, which are for
/// other processors. valgrind counts them; qemu writes a line for each in single steps.
fn instructions(at: &Place) -> String {
    let foreign = std::env::var_os("JOB_WORKER_FOREIGN").unwrap_or_default();
    let own = static_program().into_iter().chain(earlier_program());
    let programs = own
        .chain(std::env::split_paths(&foreign))
        .filter(|path| path.is_file());
    let rows = programs.map(|program| {
        // byte 18 of an ELF file is the machine
        let machine = fs::read(&program).map_or(0, |elf| elf.get(18).copied().unwrap_or(0));
        let (emulator, count) = match machine {
            183 => ("qemu-aarch64-static", "-singlestep -d exec,nochain"),
            40 => (
                "qemu-arm-static -cpu arm1176",
                "-singlestep -d exec,nochain",
            ),
            _ => (
                "",
                "valgrind --tool=callgrind --callgrind-out-file=/dev/null",
            ),
        };
        let script =
            format!("{emulator} \"$0\" --version; {emulator} {count} \"$0\" 2>&1 | grep -c ^Trace");
        let valgrind =
            format!("\"$0\" --version; {count} \"$0\" 2>&1 | sed -n 's/.*Collected : //p'");
        let mut counting = command("/bin/sh", &at.broker, "phases");
        counting
            .arg("-c")
            .arg(if emulator.is_empty() {
                valgrind
            } else {
                script
            })
            .arg(&program);
        counting.stdout(std::process::Stdio::piped());
        let mut told = String::new();
        one_job(at, || {
            let output = counting
                .output()
                .map(|output| output.stdout)
                .unwrap_or_default();
            told = String::from_utf8_lossy(&output).into_owned();
        });
        let mut lines = told.lines().map(ToOwned::to_owned);
        [
            lines.next().unwrap_or_default(),
            lines.next().unwrap_or_default(),
        ]
    });
    table(
        &["program", "instructions of a cycle outside of the kernel"],
        rows,
    )
}
