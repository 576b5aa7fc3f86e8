//! `doctor` and the speeds that `plan` expects. What is measured differs from machine to machine: shapes and units are held
//! here, and every figure that was measured is masked.

use crate::support::{Place, gguf, package, transcript};

/// The text with every number replaced.
fn masked(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut masked = String::new();
        let mut digits = false;
        for c in line.chars() {
            let is_digit = c.is_ascii_digit() || (digits && c == '.');
            if is_digit && !digits {
                masked.push('#');
            }
            if !is_digit {
                masked.push(c);
            }
            digits = is_digit;
        }
        out.push_str(masked.trim_end());
        out.push('\n');
    }
    out
}

#[test]
fn a_model_is_probed_on_its_own_files() {
    let place = Place::new();
    package(&place, "m");
    let done = place.run("doctor m --quick").expect(0);
    let text = masked(&done.stdout);
    for line in [
        "drive · m",
        "  read ",
        "  filesystem ",
        "  direct reads ",
        "machine\n",
        "  memory read ",
        "  open files ",
    ] {
        assert!(text.contains(line), "no {line:?} in {}", done.stdout);
    }
    assert!(
        text.contains("the experts, # MiB in # files") || text.contains("the experts, # KiB in # files"),
        "{text}"
    );
    assert_eq!(done.stderr, "");
}

#[test]
fn json_has_the_rates_that_others_take() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    let json = place.run("doctor m.gguf --quick --json").expect(0).json();
    for rate in ["read_gb_per_s", "read_latency_us"] {
        // Temporary folders may lie in memory; then there is no rate, and that is said.
        let from_drive = json["drive"]["origin"] == "drive";
        assert_eq!(json[rate].as_f64().is_some_and(|rate| rate > 0.0), from_drive, "{rate} in {json}");
        assert!(from_drive || !json["hints"].as_array().expect("hints").is_empty(), "{json}");
    }
    assert_eq!(json["subject"]["temporary"], false);
    assert!(json["subject"]["cold_bytes_per_token"].as_u64().expect("bytes") > 0);
    assert!(json["processor"]["memory_gb_per_s"]["all"].as_f64().expect("a rate") > 0.0);
    assert!(json["system"]["memory"]["available_bytes"].as_u64().expect("bytes") > 0);
    let cells = json["drive"]["cells"].as_array().expect("cells");
    assert!(cells.iter().all(|cell| cell["gb_per_s"].as_f64().is_some_and(|rate| rate > 0.0)), "{json}");
}

#[test]
fn a_folder_is_probed_with_a_file_that_does_not_stay() {
    let place = Place::new();
    let folder = place.path("drive");
    std::fs::create_dir(&folder).expect("created");
    let json = place.run("doctor drive --quick --json").expect(0).json();
    assert_eq!(json["subject"]["temporary"], true);
    assert_eq!(std::fs::read_dir(&folder).expect("listed").count(), 0);
}

#[test]
fn what_cannot_be_probed_is_an_error() {
    let place = Place::new();
    place.run("doctor absent").expect(2);
    std::fs::write(place.path("m.gguf"), "<!DOCTYPE html>").expect("written");
    place.run("doctor m.gguf").expect(3);
    // A folder with a damaged model is not taken for an empty one.
    place.run("doctor .").expect(3);
}

#[test]
fn plan_predicts_from_given_rates() {
    let place = Place::new();
    package(&place, "m");
    let rates = "--drive 1.5 --memory 20 --compute 30";
    transcript!("plan-rates", place.run(&format!("plan m --bank 4 -c 256 --threads 2 {rates}")).expect(0));
    let json = place.run(&format!("plan m --bank 4 -c 256 {rates} --json")).expect(0).json();
    let expected = &json["forecast"];
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {json}"));
    let cold = number(&json["work"]["cold_bytes"]);
    let drive_s = cold * (1.0 - number(&expected["hit_rate"])) / 1.5e9;
    assert!((number(&expected["drive_s"]) - drive_s).abs() < 1e-8, "{json}");
    let memory_s = number(&json["work"]["memory_bytes"]) / 20e9;
    assert!((number(&expected["memory_s"]) - memory_s).abs() < 1e-8, "{json}");
    let longest = ["drive_s", "memory_s", "compute_s"]
        .map(|key| number(&expected[key]))
        .into_iter()
        .fold(0.0, f64::max);
    assert!((number(&expected["tokens_per_s_high"]) - 1.0 / longest).abs() < 1e-6, "{json}");
    let text = place.run("plan m --no-measure").expect(0).stdout;
    assert!(text.contains("no rate is known"), "{text}");
    place.run("plan m --drive 0").expect(2);
}

#[test]
fn plan_measures_what_is_not_given() {
    let place = Place::new();
    package(&place, "m");
    let json = place.run("plan m --bank 4 -c 256 --drive 2 --json").expect(0).json();
    assert!(json["rates"]["memory_gb_per_s"].as_f64().expect("measured") > 0.0);
    assert!(json["forecast"]["tokens_per_s_low"].as_f64().expect("all rates are known") > 0.0);
    let sources = &json["sources"];
    assert!(sources["compute"].as_str().expect("words").contains("Gweights/s measured"), "{sources}");
    assert_eq!(sources["drive"], "2.00 GB/s given");
}

#[test]
fn a_trace_gives_the_hit_rate_of_its_own_run() {
    let place = Place::new();
    package(&place, "m");
    let run = place
        .run("run Hello -m m -n 30 --ignore-eos -c 64 --bank 4 --trace t.jsonl --stats --json")
        .expect(0);
    let measured = &run.json()["stats"]["planned"];
    let json = place.run("plan m -c 64 --bank 4 --trace t.jsonl --no-measure --json").expect(0).json();
    assert_eq!(json["forecast"]["hit_rate"], measured["hit_rate"], "{measured}");
    let bytes = |value: &serde_json::Value| value.as_f64().expect("bytes");
    let (planned, read) = (bytes(&json["forecast"]["read_bytes"]), bytes(&measured["bytes_per_token"]));
    // Layers differ in bytes per expert, and the hit rate is that of all of them.
    assert!((planned - read).abs() < planned * 0.35, "{planned} {read}");
    assert!(json["sources"]["hit_rate"].as_str().expect("words").contains("t.jsonl"));
    std::fs::write(place.path("empty.jsonl"), "").expect("written");
    place.run("plan m --trace empty.jsonl --no-measure").expect(2);
    place.run("plan m --trace absent.jsonl --no-measure").expect(2);
}

#[test]
fn planned_stands_beside_measured_when_asked_for() {
    let place = Place::new();
    package(&place, "m");
    let done = place.run("run Hello -m m -n 8 --ignore-eos -c 64 --bank 3 --stats").expect(0);
    assert!(done.stderr.contains("planned  measured"), "{}", done.stderr);
    let done = place.run("run Hello -m m -n 8 --ignore-eos -c 64 --bank 3").expect(0);
    assert!(!done.stderr.contains("planned"), "{}", done.stderr);
}

#[test]
fn memory_that_may_be_used_bounds_the_plan() {
    let place = Place::new();
    package(&place, "m");
    let of = |ram: &str| place.run(&format!("plan m -c 64 --no-measure --json --ram {ram}")).expect(0).json();
    let (small, large) = (of("5MiB"), of("1GiB"));
    assert_eq!(small["available_bytes"], 5 << 20);
    assert!(small["total_bytes"].as_u64() <= Some(5 << 20), "{small}");
    assert_eq!(large["work"]["resident_share"], 1.0);
    assert!(small["work"]["resident_share"].as_f64() < Some(1.0));
    let larger =
        |change: &serde_json::Value| change["what"].as_str().expect("words").starts_with("twice the memory");
    assert!(small["changes"].as_array().expect("changes").iter().any(larger), "{small}");
    place.run("plan m --ram many").expect(2);
}

/// Below one token's working set every command says what it needs, whichever way the memory was limited.
#[test]
fn too_little_is_refused_with_what_it_takes() {
    let place = Place::new();
    package(&place, "m");
    transcript!("ram-too-small", place.run("plan m -c 64 --threads 2 --ram 2MiB").expect(5));
    for command in
        ["plan m", "run Hello -m m", "logits m --tokens 1", "bench speed m --prompt 4 --gen 1 --rounds 1"]
    {
        let done = place.run(&format!("{command} --bank 4KiB")).expect(5);
        assert!(
            done.stderr.contains("one token needs 3 slots in each of 3 layers"),
            "{command}: {}",
            done.stderr
        );
        assert!(done.stderr.contains("give the bank at least 1.52 MiB"), "{command}: {}", done.stderr);
        let done = place.run(&format!("{command} -c 64 --ram 2MiB")).expect(5);
        assert!(done.stderr.contains("smallest expert bank 1.5 MiB"), "{command}: {}", done.stderr);
    }
}
