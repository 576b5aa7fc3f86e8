//! `eval`: counts, groups, samples.

use crate::support::{Place, package};

fn write(place: &Place, name: &str, text: &str) {
    std::fs::write(place.path(name), text).expect("written");
}

#[test]
fn items_are_counted_and_do_not_depend_on_the_bank() {
    let place = Place::new();
    package(&place, "m");
    // A toy knows nothing: its own greedy continuation is the one right answer.
    let text = place.run("run Hello -m m -n 12 --temp 0 -q").expect(0).stdout;
    let right = serde_json::json!({"prompt": "Hello", "answer": text.trim(), "group": "own", "chance": 0.5});
    let wrong = serde_json::json!({"prompt": "Hello", "answer": "certainly not this", "group": "other", "chance": 0.0});
    write(&place, "items.jsonl", &format!("{right}\n\n{wrong}\n"));
    let floor = place.run("eval m --items items.jsonl --json -q --bank 3").expect(0).json();
    assert_eq!(floor["items"], 2);
    assert_eq!(floor["attention"], "sparse");
    assert_eq!(floor["groups"]["other"]["right"], 0);
    assert_eq!(floor["chance"], 0.25);
    assert_eq!(floor, place.run("eval m --items items.jsonl --json -q --bank all").expect(0).json());
    let table = place.run("eval m --items items.jsonl -q --attention dense").expect(0).stdout;
    assert!(table.contains("accuracy") && table.contains("dense other"), "{table}");
    let details = place.run("eval m --items items.jsonl -q --details").expect(0).stdout;
    assert_eq!(details.lines().count(), 3);
}

#[test]
fn samples_are_json_lines_with_their_seeds() {
    let place = Place::new();
    package(&place, "m");
    let args = [
        "eval",
        "m",
        "--sample",
        "3",
        "--prompt",
        "Once upon",
        "-n",
        "6",
        "--temp",
        "1",
        "--seed",
        "40",
        "-q",
    ];
    let done = place.run_args(&args).expect(0);
    let lines: Vec<serde_json::Value> =
        done.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines.iter().map(|l| l["seed"].as_u64().expect("seed")).collect::<Vec<_>>(), [40, 41, 42]);
    assert!(lines.iter().all(|l| l["text"].as_str().is_some_and(|t| t.starts_with("Once upon"))));
    assert_eq!(done.stdout, place.run_args(&args).expect(0).stdout);
}

#[test]
fn bad_items_name_their_line() {
    let place = Place::new();
    package(&place, "m");
    write(&place, "items.jsonl", "{\"prompt\":\"a\",\"answer\":\"b\"}\n{\"prompt\":\"a\"}\n");
    let done = place.run("eval m --items items.jsonl").expect(3);
    assert!(done.stderr.contains("line 2") && done.stderr.contains("answer"), "{}", done.stderr);
    write(&place, "empty.jsonl", "\n");
    place.run("eval m --items empty.jsonl").expect(3);
    place.run("eval m --items absent.jsonl").expect(2);
    place.run("eval m").expect(2);
}
