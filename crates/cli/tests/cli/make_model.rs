//! `bench make-model`: what it writes opens, runs, and is the same each time.

use files::{Checkpoint, Family, GgmlType};

use crate::support::{Place, transcript};

#[test]
fn a_tiny_model_opens_and_runs() {
    let place = Place::new();
    let made = place
        .run("bench make-model --shape tiny m.gguf --stream s.json --stream-tokens 12 --json")
        .expect(0)
        .json();
    assert_eq!(made["shape"]["n_experts"], 16);
    let checkpoint = Checkpoint::open(&place.path("m.gguf")).expect("it opens");
    assert_eq!(made["bytes"], std::fs::metadata(place.path("m.gguf")).expect("a file").len());
    let expert = |family| checkpoint.expert(1, family).expect("layer 1 is routed");
    assert_eq!(expert(Family::Gate).ty, GgmlType::IQ1_M);
    assert_eq!(expert(Family::Down).ty, GgmlType::IQ2_XXS);
    assert!(checkpoint.expert(0, Family::Gate).is_none());

    let stream: serde_json::Value =
        serde_json::from_slice(&std::fs::read(place.path("s.json")).expect("a stream")).expect("JSON");
    let tokens: Vec<String> =
        stream["tokens"].as_array().expect("ids").iter().map(ToString::to_string).collect();
    assert_eq!((tokens.len(), tokens[0].as_str()), (12, "256"));
    let out = place.run(&format!("logits m.gguf --tokens {}", tokens.join(","))).expect(0).json();
    let rows = out["logits"].as_array().expect("rows");
    assert_eq!(rows.len(), 12);
    // Not finite would have been an error of `logits`; all equal would be a model that computes nothing.
    for row in rows {
        let row: Vec<f64> =
            row.as_array().expect("a row").iter().map(|x| x.as_f64().expect("finite")).collect();
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let deviation = (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64).sqrt();
        assert!((0.5..8.0).contains(&deviation), "{deviation}");
    }
}

/// A text of words is tokenised into the ring's ids: the prompt of `run` and the ids of `logits` are the same stream.
#[test]
fn the_text_of_a_stream_is_its_tokens() {
    let place = Place::new();
    place.run("bench make-model --shape tiny m.gguf --stream s.json --stream-tokens 40 -q").expect(0);
    let stream: serde_json::Value =
        serde_json::from_slice(&std::fs::read(place.path("s.json")).expect("a stream")).expect("JSON");
    let text = stream["text"].as_str().expect("a text");
    let trace = place.path("t.jsonl");
    let trace = trace.display().to_string();
    place
        .run_args(&["run", "-m", "m.gguf", "-n", "1", "--trace", &trace, "--temperature", "0", text])
        .expect(0);
    let lines = std::fs::read_to_string(&trace).expect("a trace");
    let prompt: u64 = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .filter(|call| call["layer"] == 1)
        .map(|call| call["n_tokens"].as_u64().expect("a count"))
        .sum();
    assert_eq!(prompt, 40);
}

#[test]
fn the_seed_decides_every_byte() {
    let place = Place::new();
    for (name, seed) in [("a.gguf", 3), ("b.gguf", 3), ("c.gguf", 4)] {
        place.run(&format!("bench make-model --shape tiny --seed {seed} --quiet {name}")).expect(0);
    }
    let read = |name| std::fs::read(place.path(name)).expect("a file");
    assert!(read("a.gguf") == read("b.gguf"));
    assert!(read("a.gguf") != read("c.gguf"));
}

#[test]
fn impossible_models_say_why_and_what_to_do() {
    let place = Place::new();
    for (args, why) in [
        ("--layers 2 --dense-layers 2", "leave no routed one"),
        ("--top-k 17", "17 experts per token of 16 experts"),
        ("--n-embd 200", "no whole blocks"),
        ("--n-ff 32", "IQ2_XXS comes in blocks of 256"),
        ("--vocab 300", "no room"),
        ("--experts-format Q4_K,Q4_K", "2 formats"),
        ("--experts-format Q8_K", "no kernel computes with Q8_K"),
        ("--experts-format IQ4_KS", "needs ik_llama.cpp"),
        ("--noise 2", "from 0 to 1"),
    ] {
        let done = place.run(&format!("bench make-model --shape tiny m.gguf {args}")).expect(2);
        assert!(done.stderr.contains(why), "{args}: {}", done.stderr);
        assert!(!place.path("m.gguf").exists());
    }
    std::fs::write(place.path("m.gguf"), "mine").expect("a file");
    let done = place.run("bench make-model --shape tiny m.gguf").expect(2);
    assert!(done.stderr.contains("--force"), "{}", done.stderr);
    assert_eq!(std::fs::read(place.path("m.gguf")).expect("a file"), b"mine");
}

#[test]
fn the_help_of_make_model() {
    transcript!("bench make-model --help", Place::new().run("bench make-model --help").expect(0));
}
