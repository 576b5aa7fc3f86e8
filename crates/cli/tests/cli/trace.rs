//! `trace record`, `replay`, `simulate`: counts equal those of a run, foreign traces are refused, reports stand alone.

use std::fs;

use crate::support::{Place, gguf, silent, talking, transcript};

const RUN: &str = "run Hello -m m.gguf -n 24 --ignore-eos --temp 0 --json -q";

/// A model and a trace of 40 given tokens, 8 of them as a prompt.
fn recorded(place: &Place) {
    silent().write(&place.path("m.gguf"));
    let ids: Vec<String> = (0..60).map(|i| ((i * i * 7 + i) % 288).to_string()).collect();
    fs::write(place.path("ids.txt"), ids.join(" ")).expect("written");
    let done = place
        .run("trace record t.jsonl -m m.gguf --tokens ids.txt --prompt-tokens 8 -n 32 --bank 4 --policy lfu --prefetch next-layer -q")
        .expect(0);
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""));
}

#[test]
fn a_replay_counts_what_the_run_counted() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    for (bank, policy) in [("3", "lru"), ("5", "lfu"), ("7", "lrfu"), ("all", "lru"), ("2MiB", "lrfu")] {
        let run = format!("{RUN} --bank {bank} --policy {policy} --trace t.jsonl");
        let live = place.run(&run).expect(0).json()["stats"]["experts"].clone();
        // The bank and the policy of the run are found beside the trace.
        let replayed = place.run("trace replay t.jsonl -m m.gguf --json").expect(0).json();
        assert_eq!(replayed["policy"], policy);
        for key in ["hits", "misses"] {
            assert_eq!(replayed["total"][key], live[key], "{bank}, {policy}: {key}");
        }
        assert_eq!(replayed["hit_rate"], live["hit_rate"]);
    }
    // The last trace, through the banks of other runs.
    for bank in ["3", "6"] {
        let live = place.run(&format!("{RUN} --bank {bank} --policy lru")).expect(0).json();
        let replay = format!("trace replay t.jsonl -m m.gguf --json --bank {bank} --policy lru");
        let replayed = place.run(&replay).expect(0).json();
        for key in ["hits", "misses", "bytes_read"] {
            assert_eq!(replayed["total"][key], live["stats"]["experts"][key], "{bank}: {key}");
        }
    }
}

#[test]
fn simulated_policies_count_what_runs_count() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    place.run(&format!("{RUN} --bank 3 --trace t.jsonl")).expect(0);
    // 25, 50 and 75 % of twelve experts.
    let json =
        place.run("trace simulate t.jsonl -m m.gguf --sizes 25,50,75 --prompts --json").expect(0).json();
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 5 * 2 * 3);
    for policy in ["lru", "lfu", "lrfu"] {
        for slots in [3, 6, 9] {
            let live = place.run(&format!("{RUN} --bank {slots} --policy {policy}")).expect(0).json();
            let live = &live["stats"]["experts"];
            let row = rows.iter().find(|row| {
                row["policy"] == policy && row["budget"] == "per-layer" && row["slots"] == slots * 3
            });
            let row = row.expect("a row per policy and size");
            for key in ["hits", "misses", "hit_rate"] {
                assert_eq!(row[key], live[key], "{policy}, {slots}: {key}");
            }
            let optimum = rows.iter().find(|other| {
                other["policy"] == "belady"
                    && other["budget"] == row["budget"]
                    && other["slots"] == row["slots"]
            });
            assert!(optimum.expect("the optimum")["misses"].as_u64() <= row["misses"].as_u64());
        }
    }
}

#[test]
fn record_takes_a_text_or_ids() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    let text = [
        "trace",
        "record",
        "a.jsonl",
        "Once upon a time",
        "-m",
        "m.gguf",
        "-n",
        "6",
        "--temp",
        "0",
        "--bank",
        "5",
    ];
    let done = place.run_args(&text).expect(0);
    assert!(!done.stdout.trim().is_empty() && done.stderr.contains("a.jsonl.model.json"), "{done:?}");
    let ran = place
        .run_args(&["run", "Once upon a time", "-m", "m.gguf", "-n", "6", "--temp", "0", "-q"])
        .expect(0);
    assert_eq!(done.stdout, ran.stdout);
    let lines = |name: &str| fs::read_to_string(place.path(name)).expect("a trace");
    let keys = r#"{"seq":0,"layer":1,"n_expert_used":3,"n_tokens":"#;
    assert!(lines("a.jsonl").starts_with(keys), "no header: {}", lines("a.jsonl"));
    // Two passes, three layers each: a prompt of two tokens, and one token after it.
    fs::write(place.path("ids.txt"), "5 80 9").expect("written");
    place.run("trace record b.jsonl -m m.gguf --tokens ids.txt --prompt-tokens 2 -q").expect(0);
    let trace = lines("b.jsonl");
    let tokens: Vec<_> = trace.lines().map(|line| line.contains("\"n_tokens\":2,")).collect();
    // In the prompt's last layer only the last token is computed.
    assert_eq!(tokens, [true, true, false, false, false, false]);
    for (args, code) in [
        ("trace record c.jsonl -m m.gguf", 2),
        ("trace record c.jsonl Hi -m m.gguf --tokens ids.txt", 2),
        ("trace record c.jsonl Hi -m m.gguf --trace d.jsonl", 2),
        ("trace record c.jsonl -m m.gguf --tokens ids.txt --prompt-tokens 3", 2),
        ("trace record c.jsonl -m m.gguf --tokens absent.txt", 2),
    ] {
        place.run(args).expect(code);
    }
}

#[test]
fn a_trace_of_another_model_is_refused() {
    let place = Place::new();
    recorded(&place);
    let mut other = talking();
    other.config.n_routed_experts = 16;
    other.write(&place.path("other.gguf"));
    transcript!("trace-foreign", place.run("trace replay t.jsonl -m other.gguf").expect(3));
    // A trace that says nothing about its model is checked by its calls.
    fs::remove_file(place.path("t.jsonl.model.json")).expect("removed");
    transcript!("trace-no-bank", place.run("trace replay t.jsonl -m m.gguf").expect(2));
    place.run("trace replay t.jsonl -m m.gguf --bank 4").expect(0);
    let text = fs::read_to_string(place.path("t.jsonl")).expect("the trace");
    let without_layer: Vec<&str> = text.lines().filter(|line| !line.contains("\"layer\":2,")).collect();
    fs::write(place.path("u.jsonl"), without_layer.join("\n")).expect("written");
    transcript!("trace-foreign-layers", place.run("trace simulate u.jsonl -m m.gguf").expect(3));
    let done = place.run("trace replay t.jsonl -m m.gguf --bank 4 --moe-topk 2").expect(3);
    assert!(done.stderr.contains("3 experts per token, here 2"), "{}", done.stderr);
    for (name, text) in
        [("bad.jsonl", "{\"layer\":1}"), ("expert.jsonl", &text.replace("\"experts\":[", "\"experts\":[1"))]
    {
        fs::write(place.path(name), text).expect("written");
        let done = place.run(&format!("trace replay {name} -m m.gguf --bank 4")).expect(3);
        assert!(done.stderr.contains("trace line 1"), "{}", done.stderr);
    }
    fs::write(place.path("empty.jsonl"), "").expect("written");
    place.run("trace replay empty.jsonl -m m.gguf --bank 4").expect(2);
    place.run("trace replay absent.jsonl -m m.gguf --bank 4").expect(2);
    place.run("trace replay t.jsonl -m m.gguf --bank auto").expect(2);
    place.run("trace replay t.jsonl -m m.gguf --bank 2").expect(5);
    fs::write(place.path("t.jsonl.model.json"), "{\"slotbank_trace\":1}").expect("written");
    place.run("trace replay t.jsonl -m m.gguf").expect(3);
}

#[test]
fn tables_of_replay_and_simulate() {
    let place = Place::new();
    recorded(&place);
    transcript!("trace-replay", place.run("trace replay t.jsonl -m m.gguf").expect(0));
    transcript!(
        "trace-simulate",
        place
            .run("trace simulate t.jsonl -m m.gguf --sizes 25,50,80 --read-gb-per-s 0.5 --read-latency-us 40 --compute-ms 1.5")
            .expect(0)
    );
}

#[test]
fn time_needs_both_a_drive_and_computing() {
    let place = Place::new();
    recorded(&place);
    let simulate = |extra: &str| {
        place.run(&format!("trace simulate t.jsonl -m m.gguf --sizes 30 --policies lru,belady {extra}"))
    };
    let rates = |extra: &str| {
        let json = simulate(&format!("--budget global --json {extra}")).expect(0).json();
        let rows = json["rows"].as_array().expect("rows").clone();
        let rate = |row: &serde_json::Value, key: &str| row["time"][key].as_f64().expect("a prediction");
        let pair = |row| (rate(row, "ideal_tokens_per_s"), rate(row, "dependency_tokens_per_s"));
        (pair(&rows[0]), pair(&rows[1]))
    };
    fs::write(place.path("disk.json"), r#"{"read_gb_per_s": 0.1, "read_latency_us": 100, "drive": {}}"#)
        .expect("written");
    let parts = "--layer-ms 0.2 --shared-ms 0.05 --expert-ms 0.1 --other-ms 0.3";
    let ((ideal, dependency), (best_ideal, best)) = rates(&format!("--disk disk.json {parts}"));
    assert!(0.0 < dependency && dependency < ideal && best_ideal >= ideal && best >= dependency);
    let by_hand = rates(&format!("--read-gb-per-s 0.1 --read-latency-us 100 {parts}"));
    assert_eq!(by_hand.0, (ideal, dependency));
    // Reads that begin earlier help, as far as the dependencies go and no further.
    let ((same, ahead), _) = rates(&format!("--disk disk.json {parts} --lookahead 0.8:0.2"));
    assert!(same == ideal && dependency < ahead && ahead < ideal, "{dependency} {ahead} {ideal}");
    for extra in [
        "--read-gb-per-s 1",
        "--compute-ms 3",
        "--lookahead 0.5",
        "--read-gb-per-s 1 --compute-ms 3 --lookahead 2",
        "--read-gb-per-s 0 --compute-ms 3",
        "--read-latency-us 3 --compute-ms 3",
        "--read-gb-per-s 1 --layer-ms 1",
        "--warm-up 40",
        "--sizes 0",
        "--policies best",
    ] {
        assert_eq!(simulate(extra).expect(2).stdout, "", "{extra}");
    }
    fs::write(place.path("disk.json"), r#"{"read_gb_per_s": null}"#).expect("written");
    simulate("--disk disk.json --compute-ms 3").expect(3);
}

#[test]
fn pictures_and_pages_stand_alone() {
    let place = Place::new();
    recorded(&place);
    place
        .run("trace simulate t.jsonl -m m.gguf --sizes 30,60 --read-gb-per-s 1 --compute-ms 2 --svg s.svg --html s.html")
        .expect(0);
    let read = |name: &str| fs::read_to_string(place.path(name)).expect("a report");
    let (svg, html) = (read("s.svg"), read("s.html"));
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(
        html.starts_with("<!DOCTYPE html>") && html.contains(&svg) && html.trim_end().ends_with("</html>")
    );
    for outside in ["src=", "href=", "@import", "url(", "<script"] {
        assert!(!html.contains(outside), "{outside}");
    }
    // The name of the XML namespace is no address that is loaded.
    assert_eq!(html.matches("http").count(), 1);
    // Five curves in each of four panels, for both ways to share slots.
    assert_eq!(svg.matches("class=\"curve").count(), 5 * 4 * 2 + 5 + 2);
    assert!(html.contains("hit rate, one budget for all layers"));
    place.run("trace simulate t.jsonl -m m.gguf --svg absent/s.svg").expect(2);
}

#[test]
fn pins_come_from_a_trace() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    place.run(&format!("{RUN} --bank 3 --trace t.jsonl")).expect(0);
    let run = format!("{RUN} --bank 8 --policy lru");
    let live = place.run(&format!("{run} --pin t.jsonl --trace u.jsonl")).expect(0).json();
    let count = |extra: &str| place.run(&format!("trace replay u.jsonl -m m.gguf --json {extra}")).expect(0);
    let (plain, pinned) = (count(""), count("--pin t.jsonl"));
    assert!(plain.stderr.contains("pinned") && pinned.stderr.is_empty(), "{plain:?}");
    for key in ["hits", "misses", "bytes_read"] {
        assert_eq!(pinned.json()["total"][key], live["stats"]["experts"][key], "{key}");
    }
    assert_ne!(plain.json()["layers"], pinned.json()["layers"], "pins change who stays");
    place.run(&format!("{run} --pin absent.jsonl")).expect(2);
}
