//! `run` on a toy: the text does not depend on the bank, figures and files come out, pipes behave.

use std::io::{Read, Write};
use std::process::Stdio;

use crate::support::{Place, gguf, package, silent, transcript};

const BANKS: [&str; 6] = ["3", "5", "all", "auto", "2MiB", "12"];

#[test]
fn greedy_and_seeded_text_is_the_same_for_every_bank() {
    let place = Place::new();
    package(&place, "m");
    for sampling in
        ["--temp 0", "--temp 0.9 --seed 7 --top-k 40 --top-p 0.95 --min-p 0.01 --repeat-penalty 1.1"]
    {
        let texts: Vec<String> = BANKS
            .iter()
            .map(|bank| {
                let args = format!("run Hello -m m -n 24 --ignore-eos -q --bank {bank} {sampling}");
                place.run(&args).expect(0).stdout
            })
            .collect();
        assert!(texts[0].len() > 8, "{texts:?}");
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    }
}

#[test]
fn another_seed_gives_another_text() {
    let place = Place::new();
    package(&place, "m");
    let text = |seed| {
        place.run(&format!("run Hello -m m -n 24 --ignore-eos -q --temp 1 --seed {seed}")).expect(0).stdout
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn threads_and_reader_do_not_change_the_text() {
    let place = Place::new();
    package(&place, "m");
    let text = |extra: &str| {
        place.run(&format!("run Hello -m m -n 16 --ignore-eos -q --temp 1 --bank 3 {extra}")).expect(0).stdout
    };
    let reference = text("");
    for extra in
        ["--threads 1", "--threads 3", "--reader buffered", "--reader sim", "--reader pread --io-split 4"]
    {
        assert_eq!(text(extra), reference, "{extra}");
    }
}

#[test]
fn plan_comes_before_and_figures_after() {
    let place = Place::new();
    package(&place, "m");
    let done = place.run("run Hello -m m -n 8 --ignore-eos --bank 3").expect(0);
    let at =
        |needle: &str| done.stderr.find(needle).unwrap_or_else(|| panic!("no {needle:?} in {}", done.stderr));
    assert!(at("expert bank") < at("total") && at("total") < at("prompt"), "{}", done.stderr);
    assert!(at("generation") < at("hit rate"), "{}", done.stderr);
    for needle in ["tokens/s", "read (", "stalled on reads", "reader", "8 tokens"] {
        at(needle);
    }
    assert!(done.stderr.lines().count() < 24, "one screen");
    let done = place.run("run Hello -m m -n 8 --ignore-eos --bank 3 --no-stats").expect(0);
    assert!(done.stderr.contains("expert bank") && !done.stderr.contains("hit rate"), "{}", done.stderr);
    assert_eq!(place.run("run Hello -m m -n 8 --ignore-eos -q").expect(0).stderr, "");
}

#[test]
fn the_plan_before_loading_is_what_plan_prints() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    let plan = place.run("plan m.gguf --bank 4 -c 128 --threads 2 --no-measure").expect(0).stdout;
    let run = place.run("run Hello -m m.gguf -n 1 --bank 4 -c 128 --threads 2").expect(0).stderr;
    let without_available = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.contains("available")).map(str::to_owned).collect()
    };
    let (plan, _) = plan.split_once("\n\n").expect("the memory, then the speed");
    let plan = without_available(plan);
    assert_eq!(plan, without_available(&run)[..plan.len()]);
}

#[test]
fn plan_transcript() {
    let place = Place::new();
    package(&place, "m");
    transcript!("plan", place.run("plan m --bank 4 -c 256 --threads 2 --no-measure").expect(0));
    let json = place.run("plan m --bank 4 -c 256 --no-measure --json").expect(0).json();
    let rows: u64 =
        json["rows"].as_array().expect("rows").iter().map(|r| r["bytes"].as_u64().expect("bytes")).sum();
    assert_eq!(json["total_bytes"], rows);
}

#[test]
fn json_holds_text_tokens_and_figures() {
    let place = Place::new();
    package(&place, "m");
    let plain = place.run("run Hello -m m -n 8 --ignore-eos -q --temp 0").expect(0).stdout;
    let json = place.run("run Hello -m m -n 8 --ignore-eos -q --temp 0 --json --bank 3").expect(0).json();
    assert_eq!(json["text"].as_str().expect("text").trim_end_matches('\n'), plain.trim_end_matches('\n'));
    assert_eq!(json["tokens"].as_array().expect("tokens").len(), 8);
    assert_eq!(json["finish"], "length");
    let experts = &json["stats"]["experts"];
    assert!(
        experts["bytes_read"].as_u64().expect("bytes") > 0 && experts["misses"].as_u64().expect("misses") > 0
    );
}

/// Computing, waiting and the rest are all of the time; the drive's time lies inside it and is the sum of the layers'.
#[test]
fn figures_add_up_to_the_whole() {
    let place = Place::new();
    package(&place, "m");
    let json =
        place.run("run Hello -m m -n 24 --ignore-eos --temp 0 --json --bank 3 --stats").expect(0).json();
    let stats = &json["stats"];
    let ns = |value: &serde_json::Value| value.as_u64().expect("nanoseconds");
    for (whole, went) in [("prompt_ns", "prompt_went"), ("decode_ns", "decode_went")] {
        let parts = stats[went].as_array().expect("parts");
        assert_eq!(parts.iter().map(|part| ns(&part[1])).sum::<u64>(), ns(&stats[whole]), "{stats}");
        let named: Vec<_> = parts.iter().map(|part| part[0].as_str().expect("a name")).collect();
        assert!(named.contains(&"waiting for reads") && named.contains(&"other"), "{named:?}");
    }
    let (experts, whole) = (&stats["experts"], ns(&stats["prompt_ns"]) + ns(&stats["decode_ns"]));
    assert!(ns(&experts["io_wall_ns"]) > 0 && ns(&experts["io_wall_ns"]) <= whole, "{stats}");
    let layers = stats["layers"].as_array().expect("layers");
    let ms = |key: &str| layers.iter().map(|layer| layer[key].as_f64().expect("a figure")).sum::<f64>();
    let tokens = (ns(&stats["prompt_tokens"]) + ns(&stats["decode_passes"])) as f64;
    for (key, total) in [("io_wall_ms_per_token", "io_wall_ns"), ("stall_ms_per_token", "stall_ns")] {
        let total = ns(&experts[total]) as f64 / 1e6 / tokens;
        assert!((ms(key) - total).abs() < 1e-9 + total * 1e-9, "{key}: {stats}");
    }
    // What lies inside the layers' calls is a part of the whole.
    let inside = ms("computing_ms_per_token") + ms("stall_ms_per_token");
    assert!(inside > 0.0 && inside * tokens * 1e6 <= whole as f64 * (1.0 + 1e-9), "{stats}");
    let done = place.run("run Hello -m m -n 4 --ignore-eos --bank 3 --stats").expect(0);
    assert!(done.stderr.contains("I/O wall/token") && done.stderr.contains("I/O wall "), "{}", done.stderr);
}

#[test]
fn the_prompt_comes_from_stdin_when_it_is_piped() {
    let place = Place::new();
    package(&place, "m");
    let expected = place.run("run Hello -m m -n 12 --ignore-eos -q --temp 0").expect(0).stdout;
    for args in [&["run", "-"][..], &["run"][..]] {
        let mut child = place
            .command()
            .args(args)
            .args("-m m -n 12 --ignore-eos -q --temp 0".split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        child.stdin.take().expect("piped").write_all(b"Hello\n").expect("written");
        let done = place.done(child.wait_with_output().expect("ends")).expect(0);
        assert_eq!(done.stdout, expected);
    }
}

#[test]
fn a_closed_pipe_is_a_quiet_success() {
    let place = Place::new();
    package(&place, "m");
    let mut child = place
        .command()
        .args("run Hello -m m -n 4000 -c 4096 --ignore-eos".split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut first = [0; 1];
    child.stdout.take().expect("piped").read_exact(&mut first).expect("some text");
    // The reader is dropped: everything after the first byte meets a closed pipe.
    let done = place.done(child.wait_with_output().expect("ends")).expect(0);
    assert!(!done.stderr.contains("error") && !done.stderr.contains("hit rate"), "{}", done.stderr);
}

#[test]
fn trace_and_dump_are_json_lines_of_every_routed_call() {
    let place = Place::new();
    package(&place, "m");
    place.run("run Hello -m m -n 6 --ignore-eos -q --bank 4 --trace t.jsonl --dump d.jsonl").expect(0);
    let lines = |name: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(place.path(name)).expect(name);
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    };
    let trace = lines("t.jsonl");
    // One prompt pass and five decode passes through three MoE layers.
    assert_eq!(trace.len(), 6 * 3);
    for (i, line) in trace.iter().enumerate() {
        assert_eq!(line["seq"], i);
        assert_eq!(line["n_expert_used"], 3);
        let n = line["n_tokens"].as_u64().expect("tokens") as usize * 3;
        assert_eq!(line["experts"].as_array().expect("experts").len(), n);
        assert_eq!(line["slots"].as_array().expect("slots").len(), n);
    }
    let dump = lines("d.jsonl");
    assert!(dump.iter().any(|line| line["selected"].is_array()));
    assert!(dump.iter().any(|line| line["experts"].is_array()));
}

#[test]
fn every_command_takes_the_model_after_m_too() {
    let place = Place::new();
    package(&place, "m");
    for command in ["plan --no-measure", "inspect", "verify -q", "logits --tokens 1 -q"] {
        let by_flag = place.run(&format!("{command} -m m")).expect(0).stdout;
        // The words of a command end where its flags begin, so the model can come last.
        assert_eq!(place.run(&format!("{command} m")).expect(0).stdout, by_flag);
    }
}

#[test]
fn the_forks_spellings_work() {
    let place = Place::new();
    let package = package(&place, "m");
    let plain = place.run("run Hello -m m -n 8 --ignore-eos -q --temp 0").expect(0).stdout;
    let (dense, sidecar) = (package.dense.display(), package.sidecar.display());
    let args = format!(
        "run -m {dense} --moe-sidecar {sidecar} --moe-slot-bank 4 --moe-trace t.jsonl -p Hello -n 8 --ignore-eos -q --temp 0"
    );
    assert_eq!(place.run(&args).expect(0).stdout, plain);
    assert!(place.path("t.jsonl").exists());
}

#[test]
fn every_diagnostic_flag_runs() {
    let place = Place::new();
    package(&place, "m");
    let base = "run Hello -m m -n 4 --ignore-eos -q --temp 0";
    for flag in [
        "--attention dense",
        "--attention recent",
        "--moe-topk 2",
        "--shared-only",
        "--latent-eps 1e-5",
        "--cache-type f32",
        "--ubatch 2",
        "-c 64",
    ] {
        place.run(&format!("{base} {flag}")).expect(0);
    }
}

#[test]
fn a_model_without_a_vocabulary_is_told_apart() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    transcript!("run-no-vocabulary", place.run("run Hello -m m.gguf -q").expect(4));
}
