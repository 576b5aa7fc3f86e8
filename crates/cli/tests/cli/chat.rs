//! `chat` through a pipe: each line is a turn.

use std::io::Write;
use std::process::Stdio;

use crate::support::{Done, Place, package, silent, talking};

fn chat(place: &Place, args: &str, input: &str) -> Done {
    let mut child = place
        .command()
        .arg("chat")
        .args(args.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    place.done(child.wait_with_output().expect("ends"))
}

const ARGS: &str = "-m m -n 8 --temp 0 -q";

#[test]
fn every_line_gets_a_reply_and_the_bank_does_not_matter() {
    let place = Place::new();
    package(&place, "m");
    let input = "hello\nand then?\n";
    let floor = chat(&place, &format!("{ARGS} --bank 3"), input).expect(0);
    let all = chat(&place, &format!("{ARGS} --bank all"), input).expect(0);
    assert_eq!(floor.stdout, all.stdout);
    assert!(floor.stdout.lines().count() >= 2 && floor.stderr.is_empty(), "{floor:?}");
}

#[test]
fn the_cached_prefix_does_not_change_the_reply() {
    let place = Place::new();
    package(&place, "m");
    // After /clear the second conversation shares only the template's head with the cache.
    let twice = chat(&place, ARGS, "hello\n/clear\nhello\n").expect(0);
    let (first, second) = twice.stdout.split_at(twice.stdout.len() / 2);
    assert_eq!(first, second);
    assert!(twice.stderr.contains("empty again"), "{}", twice.stderr);
}

#[test]
fn commands_answer_on_stderr() {
    let place = Place::new();
    package(&place, "m");
    let done = chat(&place, ARGS, "/help\n/stats\n/nonsense\n\n/exit\nnot read any more\n").expect(0);
    assert_eq!(done.stdout, "");
    for needle in ["/clear", "hit rate", "there is no `/nonsense`"] {
        assert!(done.stderr.contains(needle), "{needle}: {}", done.stderr);
    }
}

#[test]
fn the_system_text_is_part_of_the_conversation() {
    let place = Place::new();
    package(&place, "m");
    let without = chat(&place, "-m m -n 1 --temp 0 --no-stats", "hello\n").expect(0);
    let with = place
        .command()
        .args([
            "chat",
            "--system",
            "Answer in verse.",
            "-m",
            "m",
            "-n",
            "1",
            "--temp",
            "0",
            "-q",
            "--dump",
            "d.jsonl",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            child.stdin.take().expect("piped").write_all(b"hello\n")?;
            child.wait_with_output()
        })
        .expect("runs");
    assert!(with.status.success());
    assert!(without.stderr.contains("expert bank") && !without.stderr.contains("hit rate"));
    let dump = std::fs::read_to_string(place.path("d.jsonl")).expect("dump");
    let last = dump.lines().last().expect("lines");
    let position = serde_json::from_str::<serde_json::Value>(last).expect("JSON")["position"]
        .as_u64()
        .expect("position");
    assert!(position > 16, "system text, role tokens and the turn: {last}");
}

#[test]
fn a_full_context_is_said_and_ends_a_script_with_its_code() {
    let place = Place::new();
    package(&place, "m");
    let long = "word ".repeat(100);
    let done = chat(&place, "-m m -n 4 --temp 0 -q -c 64", &format!("{long}\nhi\n")).expect(5);
    assert!(done.stderr.contains("context"), "{}", done.stderr);
    assert!(!done.stdout.is_empty(), "the next turn still works");
}

#[test]
fn models_that_cannot_chat_say_so() {
    let place = Place::new();
    silent().write(&place.path("silent.gguf"));
    let done = chat(&place, "-m silent.gguf -q", "hello\n").expect(4);
    assert!(done.stderr.contains("no tokenizer"), "{}", done.stderr);

    let mut toy = talking();
    toy.config.vocab_size = 300;
    toy.write(&place.path("ok.gguf"));
    chat(&place, "-m ok.gguf -q -n 2", "hello\n").expect(0);
}
