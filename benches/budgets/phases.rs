//! What a cycle asks of the kernel, phase by phase, and how many instructions it takes: figures that do not depend on what else
//! the machine does.

use crate::Place;
use crate::machine::first_line;
use crate::report::table as markdown;
use crate::worker::{command, earlier_program, program, static_program, time};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Each phase, and what is in the trace when it begins. `DIR` is the directory of the job.
const PHASES: [(&str, &[&str]); 8] = [
    ("start", &["execve("]),
    ("connect", &["socket(AF_INET"]),
    ("take", &["recv", "/pending"]),
    ("prepare", &["open", "DIR\""]),
    ("spawn", &["fork", "CLONE_VFORK"]),
    ("end", &["SIGCHLD"]),
    ("publish", &["/results/"]),
    ("leave", &["\"@"]),
];

/// Where a phase begins: all of these are in the line, but of `spawn` and `leave`.
fn begins(phase: &str, line: &str, dir: &str) -> bool {
    let has = |text: &str| line.contains(&text.replace("DIR", dir));
    let (_, marks) = PHASES.iter().find(|(name, _)| *name == phase).expect("one");
    match phase {
        "spawn" => marks.iter().any(|mark| has(mark)),
        "leave" => line.contains("recv") && has(marks[0]),
        _ => marks.iter().all(|mark| has(mark)),
    }
}

/// The tables, or why there are none.
pub fn table(at: &Place) -> String {
    let mut programs = vec![("", program())];
    programs.extend(earlier_program().map(|program| ("earlier: ", program)));
    let mut counted = Vec::new();
    for (which, program) in &programs {
        match count(at, program) {
            Some(counts) => counted.push((which, counts)),
            None => return "\nNo system calls by phase: strace is missing.\n".into(),
        }
    }
    let cells = |phase: usize| {
        let mut cells = [PHASES[phase].0.to_owned(), String::new(), String::new()];
        for (which, counts) in &counted {
            let [calls, faults] = counts[phase];
            cells[1] += &format!("{}{calls} ", if which.is_empty() { "" } else { "/ " });
            cells[2] += &format!("{}{faults} ", if which.is_empty() { "" } else { "/ " });
        }
        cells
    };
    let mut rows: Vec<_> = (0..PHASES.len()).map(cells).collect();
    let sum = |of: usize| {
        let sums = counted
            .iter()
            .map(|(_, counts)| counts.iter().map(|count| count[of]).sum());
        let sums: Vec<String> = sums.map(|sum: usize| sum.to_string()).collect();
        format!("**{}**", sums.join(" / "))
    };
    rows.push(["all".into(), sum(0), sum(1)]);
    let titles = ["phase", "system calls", "page faults"];
    format!("\n{}\n{}", markdown(&titles, rows), instructions(at))
}

/// System calls and page faults of one cycle in each phase, without those of the step itself. No faults without `perf`.
fn count(at: &Place, program: &Path) -> Option<[[usize; 2]; PHASES.len()]> {
    let scratch = at.memory.dir("trace");
    let (trace, data) = (scratch.join("strace"), scratch.join("perf"));
    let mut traced = command("perf", &at.broker, "phases");
    traced.args([
        "record",
        "-q",
        "-k",
        "CLOCK_REALTIME",
        "-e",
        "page-faults",
        "-c",
        "1",
    ]);
    traced.arg("-o").arg(&data).args(["--", "strace"]);
    if !works("perf", "--version") {
        traced = command("strace", &at.broker, "phases");
    }
    if !works("strace", "--version") {
        return None;
    }
    traced
        .args(["-f", "-ttt", "-s", "9999", "-o"])
        .arg(&trace)
        .arg(program);
    let dir = one_job(at, &mut traced);
    let trace = fs::read_to_string(trace).expect("a trace");
    let (mut phase, mut counts, mut begun) = (0, [[0; 2]; PHASES.len()], vec![0.0]);
    let mut step = None;
    for line in trace.lines() {
        let mut fields = line.split_whitespace();
        let (pid, time) = (fields.next()?, fields.next()?.parse::<f64>().ok()?);
        if step == Some(pid) {
            continue;
        }
        if PHASES
            .get(phase + 1)
            .is_some_and(|(next, _)| begins(next, line, &dir))
        {
            phase += 1;
            begun.push(time);
        }
        counts[phase][0] += usize::from(!line.contains(" resumed>") && line.contains('('));
        if phase > 0 && line.contains("execve(") {
            step = Some(pid);
        }
    }
    let faults = Command::new("perf")
        .args(["script", "-F", "tid,time", "--ns", "-i"])
        .arg(data)
        .output();
    let faults = faults.map(|output| output.stdout).unwrap_or_default();
    let threads: Vec<&str> = trace
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    for line in String::from_utf8_lossy(&faults).lines() {
        let mut fields = line.split_whitespace();
        let (Some(thread), Some(time)) = (fields.next(), fields.next()) else {
            continue;
        };
        let time: f64 = time.trim_end_matches(':').parse().unwrap_or(0.0);
        if threads.contains(&thread) && step != Some(thread) {
            let phase = begun.iter().rposition(|begun| *begun <= time).unwrap_or(0);
            counts[phase][1] += 1;
        }
    }
    Some(counts)
}

/// Runs a job under the id `phases`, and tells its directory.
fn one_job(at: &Place, command: &mut Command) -> String {
    at.broker.open_queue("phases");
    let dir = at.memory.dir("phases");
    at.broker
        .client("controller")
        .submit("phases", &dir, &["true"], "");
    time(command);
    dir.display().to_string()
}

fn works(program: &str, argument: &str) -> bool {
    !first_line(program, argument).is_empty()
}

/// Instructions of a cycle outside of the kernel: of the static programs, and of those in `JOB_WORKER_FOREIGN`, which are for
/// other processors.
fn instructions(at: &Place) -> String {
    let mut programs: Vec<PathBuf> = static_program()
        .into_iter()
        .chain(earlier_program())
        .collect();
    let foreign = std::env::var_os("JOB_WORKER_FOREIGN").unwrap_or_default();
    programs.extend(std::env::split_paths(&foreign));
    let rows = programs
        .iter()
        .filter(|path| path.is_file())
        .map(|program| {
            let version = emulated(program, &[]).arg("--version").output();
            let version = version.map(|output| output.stdout).unwrap_or_default();
            let version = String::from_utf8_lossy(&version).trim().to_owned();
            let counted = count_instructions(at, program)
                .map_or("–".into(), |count| format!("{:.0}", count / 1e3));
            [version, counted]
        });
    markdown(
        &["instructions of a cycle outside of the kernel", "thousands"],
        rows,
    )
}

/// The program, or the emulator that runs it: valgrind for this machine's own.
fn emulated(program: &Path, options: &[&str]) -> Command {
    // byte 18 of an ELF file is the machine
    let machine = fs::read(program).map_or(0, |elf| elf.get(18).copied().unwrap_or(0));
    let mut command = match machine {
        183 => Command::new("qemu-aarch64-static"),
        40 => Command::new("qemu-arm-static"),
        _ => return Command::new(program),
    };
    if machine == 40 {
        command.args(["-cpu", "arm1176"]);
    }
    command.args(options).arg(program);
    command
}

/// qemu writes a line for each instruction in single steps, and valgrind counts them.
fn count_instructions(at: &Place, program: &Path) -> Option<f64> {
    let mut emulator = emulated(program, &["-singlestep", "-d", "exec,nochain"]);
    if emulator.get_program() == program {
        emulator = Command::new("valgrind");
        emulator
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(program);
    }
    if !works(&emulator.get_program().to_string_lossy(), "--version") {
        return None;
    }
    let mut command = command(emulator.get_program(), &at.broker, "phases");
    command.args(emulator.get_args()).stderr(Stdio::piped());
    at.broker.open_queue("phases");
    let dir = at.memory.dir("phases");
    at.broker
        .client("controller")
        .submit("phases", &dir, &["true"], "");
    let mut child = command.spawn().ok()?;
    let mut lines = 0.0;
    let mut counted = None;
    for line in BufReader::new(child.stderr.take()?)
        .split(b'\n')
        .map_while(Result::ok)
    {
        let line = String::from_utf8_lossy(&line);
        lines += f64::from(u8::from(line.starts_with("Trace ")));
        if let Some((_, count)) = line.split_once("Collected : ") {
            counted = count.trim().parse().ok();
        }
    }
    child.wait().ok()?;
    counted.or((lines > 0.0).then_some(lines))
}
