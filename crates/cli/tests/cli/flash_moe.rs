//! Command lines of Flash-MoE's model cards: accepted, mapped, and honest about what does nothing here.

use crate::support::{Place, flip, package};

const RUN: &str = "run Hello -m m -n 12 --ignore-eos --temp 0";

#[test]
fn a_model_cards_command_line_works_and_says_once_what_has_no_effect() {
    let place = Place::new();
    package(&place, "m");
    let reference = place.run(&format!("{RUN} -q")).expect(0).stdout;
    let card = "--moe-sidecar m --moe-mode slot-bank --moe-slot-bank 5 --moe-topk 0 --slot8 --moe-prefetch-temporal \
                --moe-prefill-layer-major --moe-prefill-batch 8K --moe-prefill-micro-batch auto --moe-trace-harness";
    let done = place.run(&format!("{RUN} {card}")).expect(0);
    assert_eq!(done.stdout, reference);
    let notes: Vec<&str> = done.stderr.lines().filter(|line| line.contains("no effect here")).collect();
    assert_eq!(notes.len(), 1, "{}", done.stderr);
    for flag in ["--moe-trace-harness", "--moe-prefill-layer-major", "--moe-prefill-micro-batch"] {
        assert!(notes[0].contains(flag), "{}", notes[0]);
    }
    let done = place.run(&format!("{RUN} {card} --strict")).expect(2);
    assert!(done.stderr.contains("--moe-trace-harness") && done.stdout.is_empty(), "{}", done.stderr);
    let idle = "--moe-mode slot-bank --moe-slot-bank 5 --strict -q";
    assert_eq!(place.run(&format!("{RUN} {idle}")).expect(0).stdout, reference);
}

#[test]
fn every_mode_gives_the_same_text() {
    let place = Place::new();
    package(&place, "m");
    let reference = place.run(&format!("{RUN} -q --trace t.jsonl --bank 5")).expect(0).stdout;
    for mode in [
        "stock",
        "resident",
        "resident-bank",
        "resident-slot-bank --moe-slot-bank 4",
        "slot-bank --moe-slot-bank 3",
        "oracle-prefetch --moe-slot-bank 4 --moe-trace t.jsonl",
        "oracle-all-hit --moe-slot-bank 12 --moe-trace t.jsonl",
    ] {
        assert_eq!(place.run(&format!("{RUN} -q --moe-mode {mode}")).expect(0).stdout, reference, "{mode}");
    }
}

#[test]
fn an_oracle_needs_the_trace_of_this_very_run() {
    let place = Place::new();
    package(&place, "m");
    for mode in ["oracle-all-hit", "oracle-prefetch"] {
        let done = place.run(&format!("{RUN} --moe-mode {mode}")).expect(2);
        assert!(done.stderr.contains("--moe-trace"), "{}", done.stderr);
    }
    place.run("run Hi -m m -n 3 --ignore-eos -q --trace other.jsonl").expect(0);
    let done = place.run(&format!("{RUN} -q --moe-mode oracle-prefetch --moe-trace other.jsonl")).expect(2);
    assert!(done.stderr.contains("other.jsonl") && done.stderr.contains("another"), "{}", done.stderr);
}

#[test]
fn verifying_before_the_run_happens_in_every_mode() {
    let place = Place::new();
    let package = package(&place, "m");
    place.run("verify m --write-sums -q").expect(0);
    for mode in ["stock", "slot-bank"] {
        let done = place.run(&format!("{RUN} --moe-verify-sidecar --moe-mode {mode}")).expect(0);
        assert!(done.stderr.contains("ok: "), "{}", done.stderr);
    }
    flip(&package.sidecar.join("layer_002.bin"), 100);
    for mode in ["stock", "slot-bank"] {
        let done = place.run(&format!("{RUN} -q --moe-verify-sidecar --moe-mode {mode}")).expect(7);
        assert!(done.stdout.is_empty() && done.stderr.contains("layer_002.bin"), "{}", done.stderr);
    }
}

/// Every copy, in every mode: by its own sums, and without any by the first copy's bytes.
#[test]
fn verifying_before_the_run_reads_every_copy() {
    for sums in [true, false] {
        let place = Place::new();
        let (_, second) = (package(&place, "a"), package(&place, "b"));
        place.run("verify a --write-sums -q").expect(0);
        if sums {
            place.run("verify b --write-sums -q").expect(0);
        }
        let run = format!("{RUN} -m a --sidecar a/sidecar --sidecar b/sidecar --moe-verify-sidecar")
            .replace("-m m ", "");
        let done = place.run(&run).expect(0);
        assert_eq!(done.stderr.matches("ok: ").count(), 2, "{}", done.stderr);
        flip(&second.sidecar.join("layer_002.bin"), 100);
        for mode in ["stock", "resident-slot-bank --moe-slot-bank 4", "slot-bank"] {
            let done = place.run(&format!("{run} -q --moe-mode {mode}")).expect(7);
            let error = done.stderr.split("error:").nth(1).unwrap_or_default();
            assert!(done.stdout.is_empty() && error.contains("b/sidecar"), "{mode}: {}", done.stderr);
            assert!(done.stderr.contains("b/sidecar/layer_002.bin"), "{mode}: {}", done.stderr);
        }
        let record = run.replace("run Hello", "trace record t.jsonl Hello");
        assert!(place.run(&format!("{record} -q")).expect(7).stderr.contains("b/sidecar/layer_002.bin"));
        assert!(!place.path("t.jsonl").exists());
    }
}

/// Flash-MoE's names for further copies: read like those of --sidecar, and checked like them.
#[test]
fn its_secondary_and_tertiary_sidecars_are_copies() {
    let place = Place::new();
    let (_, _, third) = (package(&place, "m"), package(&place, "b"), package(&place, "c"));
    let reference = place.run(&format!("{RUN} -q")).expect(0).stdout;
    let lanes = "--moe-sidecar m --moe-secondary-sidecar b --moe-tertiary-sidecar c";
    let done = place.run(&format!("{RUN} {lanes} --bank 4")).expect(0);
    assert_eq!(done.stdout, reference);
    assert!(done.stderr.contains("over 3 copies"), "{}", done.stderr);
    let short = "--moe-sidecar m --secondary-sidecar b --bank 4 --stripe -q";
    assert_eq!(place.run(&format!("{RUN} {short}")).expect(0).stdout, reference);
    // The model's own sidecar is the first one where none is named.
    let alone = "--tertiary-sidecar c --bank 4 --stripe -q";
    assert_eq!(place.run(&format!("{RUN} {alone}")).expect(0).stdout, reference);
    let twice = place.run(&format!("{RUN} --moe-sidecar m --moe-secondary-sidecar m")).expect(2);
    assert!(twice.stderr.contains("twice"), "{}", twice.stderr);
    flip(&third.sidecar.join("layer_002.bin"), 100);
    let done = place.run(&format!("{RUN} {lanes} -q --moe-verify-sidecar")).expect(7);
    assert!(done.stderr.contains("c/sidecar/layer_002.bin"), "{}", done.stderr);
}

#[test]
fn diagnostics_give_other_texts() {
    let place = Place::new();
    package(&place, "m");
    let text = |extra: &str| place.run(&format!("{RUN} -q {extra}")).expect(0).stdout;
    assert_ne!(text("--moe-force-expert 3"), text(""));
    assert_eq!(text("--moe-force-expert -1"), text(""));
    assert_eq!(text("--moe-router-only"), text("--moe-shared-only"));
    let done = place.run(&format!("{RUN} --moe-force-expert 99")).expect(2);
    assert!(done.stderr.contains("expert 99") && done.stderr.contains("0 to 11"), "{}", done.stderr);
    place.run(&format!("{RUN} --moe-force-expert -2")).expect(2);
}
