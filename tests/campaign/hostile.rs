//! Hostile input: whatever comes is answered, and the worker lives on (docs/reference.md, "Bad input"). The mutations
//! have a fixed seed;
//! `HOSTILE_CASES` sets their number, 1,000 unless set. The fuzz targets in `fuzz/` go further.

use crate::support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use job_worker::contract::{Definition, EarlierRun, Request};
use serde_json::json;
use support::mutation::Random;
use support::properties;
use support::site::Site;
use support::worker::Worker;

fn cases() -> usize {
    std::env::var("HOSTILE_CASES").map_or(1000, |number| {
        number.parse().expect("HOSTILE_CASES is a number")
    })
}

const REQUESTS: [&[u8]; 6] = [
    br#"{ "id": "job_2026_01", "workDir": "good", "steps": ["npm install", "npm run build"] }"#,
    br#"{"id":17,"workDir":"good","env":{"A":"1","B":2,"C":true},"timeoutSeconds":3600,"maxAttempts":3}"#,
    br#"{"id":"a","workDir":"nowhere","steps":[{"run":"true","name":"n","timeoutSeconds":0.5,"always":true}]}"#,
    br#"{"id":"\u00e9","workDir":"../out","steps":null,"env":null,"unknown":[[[{}]]]}"#,
    br#"{"workDir":"good"}"#,
    b"[1, 2]",
];

const JOURNALS: [&[u8]; 3] = [
    br#"{"id":"a","status":"success","logFile":"/d/job.log","exitCode":0,"attempt":1,"worker":"w","steps":[],"key":"k","origin":"w 5 7 ab"}"#,
    br#"{"id":"a","status":"running","logFile":null,"exitCode":null,"attempt":2,"worker":"w","steps":[{"status":"running"}]}"#,
    br#"{"id":"a","status":"interrupted","attempt":4294967295}"#,
];

const ENVIRONMENTS: [&[u8]; 4] = [
    b"MQTT_URL=mqtt://me:hunter2@[::1]:1883/\0MQTT_PROTOCOL_VERSION=5\0WORKER_ID=w\0JOB_TIMEOUT=1.5",
    b"MQTT_URL=mqtts://u:p%40hunter2@host\0MQTT_TOPIC_ROOT=a/b\0WORKER_ID=g\0MQTT_KEEP_ALIVE=60",
    b"MQTT_PASSWORD=hunter2\0MQTT_USERNAME=me\0JOB_STOP_GRACE=8\0JOB_DIR_WAIT=0\0JOB_LOG_LIMIT=1000000",
    b"JOB_MAX_ATTEMPTS=3\0JOB_ON_STOP=finish\0JOB_PAYLOAD_STEPS=deny\0JOB_SHELL=sh\0PATH=/bin",
];

fn try_all(seed: u64, good: &[&[u8]], holds: fn(&[u8])) {
    let mut random = Random::new(seed);
    good.iter().for_each(|input| holds(input));
    for _ in 0..cases() * 20 {
        holds(&random.mutate(good));
    }
}

#[test]
fn mutated_requests_are_parsed_or_refused() {
    try_all(1, &REQUESTS, properties::request);
}

#[test]
fn mutated_definitions_are_parsed_or_refused() {
    try_all(2, &REQUESTS, properties::definition);
}

#[test]
fn mutated_journals_never_answer_for_another_job() {
    try_all(3, &JOURNALS, properties::journal);
}

#[test]
fn mutated_environments_are_read_or_refused_without_a_password_in_sight() {
    try_all(4, &ENVIRONMENTS, properties::environment);
}

/// What the fuzz targets start from, and what they have found.
#[test]
fn what_the_fuzz_targets_start_from_holds() {
    let target = |name: &'static str, holds: fn(&[u8])| (name, holds);
    for (name, holds) in [
        target("request", properties::request),
        target("definition", properties::definition),
        target("journal", properties::journal),
        target("environment", properties::environment),
    ] {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/seeds")
            .join(name);
        let seeds: Vec<_> = fs::read_dir(seeds).expect("seeds").collect();
        assert!(!seeds.is_empty(), "{name}");
        for seed in seeds {
            holds(&fs::read(seed.expect("a seed").path()).expect("a seed"));
        }
    }
}

/// The corners of RFC 8259, each in a request that is good but for it.
#[test]
fn json_is_what_rfc_8259_says() {
    let taken: [&[u8]; 14] = [
        br#"{"id":"a","workDir":"d"}"#,
        b"\xef\xbb\xbf{\"id\":\"a\",\"workDir\":\"d\"}",
        b" \t\r\n{ \"id\"\t:\r\"a\"\n, \"workDir\" : \"d\" } \n",
        br#"{"\u0069d":"a","work\u0044ir":"\u0064"}"#,
        br#"{"id":"\ud83d\ude00","workDir":"\"\\\/\b\f\n\r\t"}"#,
        br#"{"id":-0,"workDir":"d"}"#,
        br#"{"id":1E2,"workDir":"d"}"#,
        br#"{"id":1e99999,"workDir":"d"}"#,
        br#"{"id":"a","workDir":"d","":null}"#,
        br#"{"id":"a","workDir":"d","x":{"x":{"x":[{},[],"",0,null]}}}"#,
        br#"{"id":"a","workDir":"d","$serde_json::private::RawValue":"{"}"#,
        br#"{"id":"a","workDir":"d","$serde_json::private::Number":"1"}"#,
        br#"{"id":{},"workDir":"x","id":"a","workDir":"d"}"#,
        "{\"id\":\"a\u{7f}\",\"id\":\"a\u{2028}\",\"workDir\":\"d\"}".as_bytes(),
    ];
    for payload in taken {
        let shown = String::from_utf8_lossy(payload);
        assert!(
            Request::parse(payload).is_ok(),
            "{shown}: {:?}",
            Request::parse(payload)
        );
        properties::request(payload);
    }
    let refused: [&[u8]; 36] = [
        b"",
        b" ",
        b"null",
        b"\"a\"",
        b"1",
        br#"{"id":"a","workDir":"d",}"#,
        br#"{"id":"a" "workDir":"d"}"#,
        br#"{"id":"a","workDir":"d"}}"#,
        br#"{"id":"a","workDir":"d"}{}"#,
        br#"{"id":"a","workDir":"d""#,
        br#"{'id':'a','workDir':'d'}"#,
        br#"{id:"a",workDir:"d"}"#,
        br#"{"id":"a","workDir":"d"/**/}"#,
        b"// c\n{\"id\":\"a\",\"workDir\":\"d\"}",
        br#"{"id":01,"workDir":"d"}"#,
        br#"{"id":+1,"workDir":"d"}"#,
        br#"{"id":.5,"workDir":"d"}"#,
        br#"{"id":1.,"workDir":"d"}"#,
        br#"{"id":1e,"workDir":"d"}"#,
        br#"{"id":0x1,"workDir":"d"}"#,
        br#"{"id":NaN,"workDir":"d"}"#,
        br#"{"id":-Infinity,"workDir":"d"}"#,
        br#"{"id":TRUE,"workDir":"d"}"#,
        br#"{"id":"\ud800","workDir":"d"}"#,
        br#"{"id":"\udc00\ud800","workDir":"d"}"#,
        br#"{"id":"a","workDir":"\ud800x"}"#,
        br#"{"id":"a","workDir":"\u00g0"}"#,
        br#"{"id":"a","workDir":"\x41"}"#,
        br#"{"id":"a","workDir":"\u0000"}"#,
        b"{\"id\":\"a\",\"workDir\":\"a\nb\"}",
        b"{\"id\":\"a\",\"workDir\":\"\xff\"}",
        b"{\"id\":\"a\",\"workDir\":\"\xc0\xaf\"}",
        b"{\"id\":\"a\",\"workDir\":\"\xed\xa0\x80\"}",
        b"{\0\"\0i\0d\0\"\0:\0",
        b"\xff\xfe{\0}\0",
        b"{\"id\":\"a\",\"workDir\":\"d\"}\0",
    ];
    for payload in refused {
        assert!(
            Request::parse(payload).is_err(),
            "{}",
            String::from_utf8_lossy(payload)
        );
        properties::request(payload);
    }
    let last = Request::parse(br#"{"id":"a","id":"b","workDir":"x","workDir":"d"}"#)
        .expect("duplicate keys are no error");
    assert_eq!(
        (last.id.as_str(), last.work_dir.as_str()),
        ("b", "d"),
        "the last one counts, as in JavaScript"
    );
}

#[test]
fn a_mebibyte_of_anything_is_dealt_with() {
    const MEBIBYTE: usize = 1 << 20;
    for token in [
        "{",
        "[",
        "\"",
        "\\",
        "[[",
        "{\"a\":",
        "[{\"a\":[",
        "1",
        "\0",
        " ",
        "\u{feff}",
        "-",
        "é",
        "{\"id\":\"a\",",
    ] {
        let mut text = token.repeat(MEBIBYTE / token.len());
        for close in ["", "]}"] {
            text.push_str(close);
            properties::request(text.as_bytes());
            properties::definition(text.as_bytes());
            properties::journal(text.as_bytes());
            for field in [
                "id",
                "workDir",
                "steps",
                "env",
                "timeoutSeconds",
                "maxAttempts",
                "unknown",
            ] {
                let inside = format!("{{\"id\":\"a\",\"workDir\":\"d\",\"{field}\":{text}}}");
                properties::request(inside.as_bytes());
            }
        }
    }
    let nested = |depth: usize| {
        format!(
            "{{\"id\":\"a\",\"workDir\":\"d\",\"x\":{}{}}}",
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    properties::request(nested(500_000).as_bytes());
    let many = format!("{{\"steps\":[{}\"\"]}}", "\"\",".repeat(300_000));
    assert_eq!(
        Definition::parse(many.as_bytes())
            .expect("as many steps as fit")
            .steps
            .map(|steps| steps.len()),
        Some(300_001)
    );
    let id = job_worker::contract::JobId::from_text("a").expect("a good id");
    let deep = format!(
        "{{\"id\":\"a\",\"status\":\"success\",\"x\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(EarlierRun::read(deep.as_bytes(), &id).is_some());
}

/// Each of many mutated requests is answered exactly once, and then a good job is run.
fn a_worker_survives_them(version: &str) {
    let site = Site::start();
    let root = site.directory("root");
    site.prepare("root/good", json!({ "steps": ["true"] }));
    let configure = |command: &mut Command| {
        // nothing of a mutated command line is run
        command
            .env("JOB_ROOT", &root)
            .env("JOB_PAYLOAD_STEPS", "deny")
            .env("JOB_DIR_WAIT", "0");
        command
            .env("MQTT_PROTOCOL_VERSION", version)
            .env("RUST_LOG", "warn,job_worker=warn");
    };
    site.open_queue(configure);
    let mut random = Random::new(5);
    let count = cases();
    for _ in 0..count {
        site.controller
            .publish("jobs/pending", random.mutate(&REQUESTS));
    }
    let supervisor = Worker::spawn(&site.broker, |command| {
        command.arg("supervise");
        configure(command);
    });
    site.request(json!({ "id": "the last one", "workDir": "good" }));
    let answers = || {
        let results = site.controller.heard("jobs/results/").len();
        (
            results + site.controller.heard("jobs/rejected").len(),
            results,
        )
    };
    // the more cases, the longer it may take
    let end = Instant::now()
        + support::wait::DEADLINE
        + Duration::from_millis(50) * u32::try_from(count).expect("few");
    while site
        .controller
        .heard("jobs/results/the last one")
        .is_empty()
    {
        assert!(
            Instant::now() < end,
            "{:?} of {count} are answered:\n{}",
            answers(),
            supervisor.stderr()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let last = site.result("the last one").json();
    assert_eq!(last["status"], "success", "{last}");
    assert_eq!(answers().0, count + 1, "each is answered once");
    assert!(answers().1 > count / 10, "some of them have an id");
    let log = supervisor.stderr();
    assert!(
        !log.contains("defect") && !log.contains("the worker ended with status"),
        "{log}"
    );
    supervisor.sigterm();
    let mut supervisor = supervisor;
    supervisor.exits_with(0);
}

on_both_protocols!(a_worker_survives_them);
