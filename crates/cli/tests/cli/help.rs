//! Every `--help`, so that a changed flag is a visible change.

use crate::support::{Place, transcript};

macro_rules! help_of {
    ($($test:ident: $args:literal),+ $(,)?) => {
        $(#[test]
        fn $test() {
            transcript!($args, Place::new().run($args).expect(0));
        })+
    };
}

help_of! {
    top: "--help",
    run: "run --help",
    chat: "chat --help",
    plan: "plan --help",
    doctor: "doctor --help",
    inspect: "inspect --help",
    extract: "extract --help",
    verify: "verify --help",
    logits: "logits --help",
    eval: "eval --help",
    bench: "bench --help",
    bench_speed: "bench speed --help",
    bench_kernels: "bench kernels --help",
    trace: "trace --help",
    trace_record: "trace record --help",
    trace_replay: "trace replay --help",
    trace_simulate: "trace simulate --help",
}

#[test]
fn version_is_one_line() {
    let done = Place::new().run("--version").expect(0);
    assert_eq!(done.stdout, format!("slotbank {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn nothing_asked_shows_the_help_as_an_error() {
    let done = Place::new().run("").expect(2);
    assert!(done.stderr.contains("Usage: slotbank <COMMAND>"), "{}", done.stderr);
}
