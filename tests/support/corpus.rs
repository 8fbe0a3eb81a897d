//! Requests and definitions, good and bad, with what the worker says of each: for the unit tests, the schemas, and whole workers.
//!
//! In each table a line that begins with `--` has the words that are said against the texts below it; nothing where they are good.

pub const DEFINITIONS: &str = r#"
--
{"steps":[]}
{"steps":["a","",{"run":""}]}
{"steps":null}
{"steps":[{"run":"x","name":"n","timeoutSeconds":0.5,"always":true,"colour":"red"}]}
{"steps":[{"run":"x","name":null,"timeoutSeconds":null,"always":null}]}
{"env":{}}
{"env":null}
{"env":{"A":"x","B":8080,"C":false,"D":1.5,"E":null}}
{"timeoutSeconds":1}
{"timeoutSeconds":0.5}
{"timeoutSeconds":1e-300}
{"timeoutSeconds":1e400}
{"timeoutSeconds":null}
{"maxAttempts":1}
{"maxAttempts":2.0}
{"maxAttempts":1E2}
{"maxAttempts":4294967295}
{"maxAttempts":null}
{"colour":"red"}
-- not valid JSON
steps: [true]
{"steps":["a"]} {}
-- must be an object, not null
null
-- must be an object, not a
[]
"x"
5
-- `steps` must be an array, not a
{"steps":"make"}
{"steps":{}}
{"steps":5}
-- `steps` item 2: must be a string or an object with `run`, not
{"steps":["a",5]}
{"steps":["a",null]}
{"steps":["a",[]]}
-- item 1: an object needs `run`
{"steps":[{"name":"x"}]}
{"steps":[{}]}
{"steps":[{"run":null}]}
-- `run` must be a string, not a
{"steps":[{"run":["a"]}]}
{"steps":[{"run":7}]}
-- must not contain a NUL
{"steps":["a\u0000b"]}
{"steps":[{"run":"a\u0000"}]}
{"steps":[{"run":"x","name":"a\u0000"}]}
{"env":{"A":"\u0000"}}
-- `name` must be a string, not a number
{"steps":[{"run":"x","name":1}]}
-- `always` must be true or false, not a string
{"steps":[{"run":"x","always":"yes"}]}
-- item 1: `timeoutSeconds` must be a number of seconds greater than 0, not
{"steps":[{"run":"x","timeoutSeconds":"1"}]}
{"steps":[{"run":"x","timeoutSeconds":0}]}
-- `timeoutSeconds` must be a number of seconds greater than 0, not
{"timeoutSeconds":-1}
{"timeoutSeconds":0}
{"timeoutSeconds":-0.0}
{"timeoutSeconds":1e-999}
{"timeoutSeconds":-1e400}
{"timeoutSeconds":"1"}
{"timeoutSeconds":true}
{"timeoutSeconds":[]}
-- `maxAttempts` must be a whole number from 1 to 4294967295, not
{"maxAttempts":1.5}
{"maxAttempts":0}
{"maxAttempts":0.0}
{"maxAttempts":-1}
{"maxAttempts":-0}
{"maxAttempts":4294967296}
{"maxAttempts":1e300}
{"maxAttempts":1e400}
{"maxAttempts":"1"}
{"maxAttempts":true}
-- `env` must be an object, not a
{"env":["A=1"]}
{"env":"A=1"}
{"env":5}
-- `env` A: must be a string, not a
{"env":{"A":{}}}
{"env":{"A":[]}}
-- a name must not be empty nor contain = or NUL
{"env":{"A=B":"x"}}
{"env":{"":"x"}}
{"env":{"\u0000":"x"}}
"#;

pub const IDS: &str = r##"
--
"a b-é😀"
"\u00e9\ud83d\ude00"
".."
"\u2028"
7
-1.50
-0
1E2
1e99999
-- `id` is missing
null
-- `id` must be a string or a number, not
true
[]
{"a":"b"}
-- `id` is empty
""
-- `id` must not contain a NUL
"a\u0000"
-- `id` contains '/'
"../pending"
"a/b"
-- none of / + #
"+"
"#"
-- no control characters
"a\nb"
"\u001b[31m"
"\u007f"
"\u0085"
"\u009f"
"\ufdd0"
"\uffff"
"\ud83f\udffe"
"\udbff\udfff"
-- `id` is not a valid string
"\ud800"
"\udc00\ud800"
"##;

/// Requests that are answered by their id, 7.
pub const REQUESTS: &str = r#"
--
{"\u0069d":7,"work\u0044ir":"\u0064"}
{"id":7,"workDir":"\"\\\/\b\f\n\r\t"}
{"id":7,"workDir":"d","":null}
{"id":7,"workDir":"d","x":{"x":{"x":[{},[],"",0,null]}}}
{"id":7,"workDir":"d","$serde_json::private::RawValue":"{"}
{"id":7,"workDir":"d","$serde_json::private::Number":"1"}
{"id":{},"workDir":"x","id":7,"workDir":"d"}
{"id":7,"workDir":"d","key":"k\n"}
-- `workDir` is missing
{"id":7}
{"id":7,"workDir":null}
-- `workDir` must be a string, not a number
{"id":7,"workDir":5}
-- `workDir` is empty
{"id":7,"workDir":""}
-- must not contain a NUL
{"id":7,"workDir":"d\u0000"}
{"id":7,"workDir":"d","key":"\u0000"}
-- `workDir` is not a valid string
{"id":7,"workDir":"\ud800x"}
-- `key` must be a string, not a number
{"id":7,"workDir":"d","key":7}
-- `key` has 0 characters; expected are 1 to 128
{"id":7,"workDir":"d","key":""}
"#;

/// What names no job, up to the corners of RFC 8259.
pub const NAMELESS: &str = r#"
-- not valid JSON
run my job please

{"id":"a","workDir":"/tm
{"id":"a","workDir":"d"} trailing
{"id":"a","workDir":"d",}
{"id":"a" "workDir":"d"}
{"id":"a","workDir":"d"}}
{'id':'a','workDir':'d'}
{id:"a",workDir:"d"}
{"id":"a","workDir":"d"/**/}
{"id":01,"workDir":"d"}
{"id":+1,"workDir":"d"}
{"id":.5,"workDir":"d"}
{"id":1.,"workDir":"d"}
{"id":1e,"workDir":"d"}
{"id":0x1,"workDir":"d"}
{"id":NaN,"workDir":"d"}
{"id":-Infinity,"workDir":"d"}
{"id":TRUE,"workDir":"d"}
{"id":"a","workDir":"\u00g0"}
{"id":"a","workDir":"\x41"}
-- must be an object, not
[{"id":"a","workDir":"/tmp"}]
"job_of_the_table"
null
1
-- `id` is missing
{"workDir":"/tmp"}
{}
"#;

/// What is neither text nor JSON.
pub const BYTES: [&[u8]; 7] = [
    b"{\"id\":\"job\xff\",\"workDir\":\"/tmp\"}",
    b"\xff\xfe{\0}\0",
    b"{\0\"\0i\0d\0\"\0:\0",
    b"{\"id\":\"a\",\"workDir\":\"\xc0\xaf\"}",
    b"{\"id\":\"a\",\"workDir\":\"\xed\xa0\x80\"}",
    b"{\"id\":\"a\",\"workDir\":\"a\nb\"}",
    b"{\"id\":\"a\",\"workDir\":\"d\"}\0",
];

/// The words of each class of a table, with its texts.
pub fn classes(table: &'static str) -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    let classes = table.trim_end_matches('\n').split("\n--").skip(1);
    classes.map(|class| {
        let mut lines = class.split('\n');
        (lines.next().unwrap_or_default().trim(), lines.collect())
    })
}

/// Each text of a table with its words.
pub fn each(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    classes(table).flat_map(|(words, texts)| texts.into_iter().map(move |text| (words, text)))
}

/// One text of each class that something is said against.
pub fn one_of_each(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let bad = classes(table).filter(|(words, _)| !words.is_empty());
    bad.map(|(words, texts)| (words, texts[0]))
}

/// A request that is good but for its id.
pub fn request_with_id(id: &str) -> String {
    format!(r#"{{"id":{id},"workDir":"d"}}"#)
}

/// A request that is good but for what it has of a definition; `None` where that is no object.
pub fn request_with(definition: &str, work_dir: &str) -> Option<String> {
    let fields = definition.strip_prefix('{')?;
    Some(format!(r#"{{"id":7,"workDir":"{work_dir}",{fields}"#))
}
