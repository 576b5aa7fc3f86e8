//! `bench speed` and `bench kernels`: shapes and counts, never speeds.

use crate::support::{Place, package, silent};

#[test]
fn speed_measures_what_was_asked_and_counts_tokens() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    let done = place
        .run(
            "bench speed m.gguf --prompt 7,20 --gen 5 --depth 3 --rounds 3 --bank all -t 2 --ubatch 8 --json",
        )
        .expect(0);
    assert_eq!(done.stderr, "");
    let json = done.json();
    assert_eq!(
        (
            json["engine"].as_str(),
            json["n_vocab"].as_u64(),
            json["threads"].as_u64(),
            json["warm_up_rounds"].as_u64()
        ),
        (Some("slotbank"), Some(288), Some(2), Some(1))
    );
    assert_eq!(json["options"]["ubatch"], 8);
    let tests = json["tests"].as_array().expect("tests");
    let shape: Vec<_> = tests
        .iter()
        .map(|t| (t["test"].as_str().expect("a name"), t["tokens"].as_u64().expect("a count")))
        .collect();
    assert_eq!(shape, [("prefill", 7), ("prefill", 20), ("decode", 5)]);
    for test in tests {
        let rounds = test["rounds"].as_array().expect("rounds");
        assert_eq!(rounds.len(), 3);
        let speed = |key: &str| test["tokens_per_s"][key].as_f64().expect("a number");
        assert!(0.0 < speed("min") && speed("min") <= speed("median") && speed("median") <= speed("max"));
        for round in rounds {
            assert!(round["wall_ns"].as_u64() > Some(0));
            // Everything is resident: nothing is read, nothing missed.
            assert_eq!((round["bytes_read"].as_u64(), round["misses"].as_u64()), (Some(0), Some(0)));
            assert!(round["hits"].as_u64() > Some(0));
        }
    }
    // One for a prompt's last position, one for each single token.
    let likeliest = |i: usize| tests[i]["likeliest"].as_array().expect("ids").len();
    assert_eq!([likeliest(0), likeliest(1), likeliest(2)], [1, 1, 5]);
}

#[test]
fn speed_runs_the_given_tokens_and_any_bank_computes_the_same() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    std::fs::write(place.path("ids.json"), "{\"tokens\": [5, 80, 9, 200, 31, 7], \"text\": \"\"}")
        .expect("written");
    std::fs::write(place.path("ids.txt"), "5 80\n9,200, 31 7\n").expect("written");
    let run = |extra: &str| {
        let args = format!("bench speed m.gguf --prompt 0 --gen 6 --rounds 2 --warm-up 3 --json {extra}");
        place.run(&args).expect(0).json()
    };
    let ids = |json: &serde_json::Value| json["tests"][0]["likeliest"].clone();
    let (all, few) = (run("--tokens ids.json --bank all"), run("--tokens ids.txt --bank 3"));
    assert_eq!(ids(&all), ids(&few));
    assert_ne!(ids(&all), ids(&run("--bank all")));
    // Three slots per layer cannot hold what six tokens use: experts are read in every round.
    let rounds = few["tests"][0]["rounds"].as_array().expect("rounds").clone();
    assert!(
        rounds.iter().all(|r| r["bytes_read"].as_u64() > Some(0) && r["misses"].as_u64() > Some(0)),
        "{rounds:?}"
    );
    assert!(few["tests"][0]["bytes_read_per_token"]["median"].as_f64() > Some(0.0));
}

/// The logits of all prompt tokens cost the last layer's experts for each; the last one's are the same.
#[test]
fn speed_computes_the_last_layer_for_the_logits_that_are_wanted() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    let run = |extra: &str| {
        let args =
            format!("bench speed m.gguf --prompt 6 --gen 0 --rounds 1 --bank all --json --parts {extra}");
        let json = place.run(&args).expect(0).json();
        let hits = json["tests"][0]["rounds"][0]["hits"].as_u64().expect("hits");
        assert!(json["tests"][0]["parts_ms_per_token"]["experts"].as_f64() > Some(0.0), "{json}");
        (hits, json["tests"][0]["likeliest"].clone())
    };
    let ((last, one), (all, of_all)) = (run(""), run("--all-logits"));
    assert!(last < all && one == of_all, "{last} {all} {one} {of_all}");
    assert_eq!(one.as_array().map(Vec::len), Some(1));
}

const AGAINST: &str = "bench speed m --prompt 6 --gen 5 --rounds 3 --warm-up 3 -t 2";

fn against(place: &Place, words: &str, extra: &str) -> crate::support::Done {
    let args: Vec<&str> = AGAINST.split(' ').chain(extra.split_whitespace()).collect();
    place.run_args(&[&args[..], &["--against", words]].concat())
}

/// Both sides have what they would have by themselves: bank, reader, policy; rounds read as much as in a run of their own.
#[test]
fn speed_compares_two_sides_in_turns() {
    let place = Place::new();
    package(&place, "m");
    let words = "--bank 4 --policy lru --reader sim --no-hits-first --prefetch off";
    let json = against(&place, words, "--bank all --json").expect(0).json();
    let other = &json["against"];
    assert_eq!(other["given"], words);
    assert_eq!(
        (&json["options"]["bank"], &other["options"]["bank"]),
        (&"All".into(), &"SlotsPerLayer(4)".into())
    );
    assert_eq!((&json["slots"], &other["slots"]), (&36.into(), &12.into()));
    assert_eq!(
        (&json["options"]["hits_first"], &other["options"]["hits_first"]),
        (&true.into(), &false.into())
    );
    assert_ne!(json["reader"], other["reader"]);
    let (mine, others, ratios) = (&json["tests"], &other["tests"], &other["ratios"]);
    assert_eq!([mine, others, ratios].map(|list| list.as_array().expect("a list").len()), [2; 3]);
    for i in 0..2 {
        assert_eq!(mine[i]["likeliest"], others[i]["likeliest"]);
        assert_eq!((&ratios[i]["test"], &ratios[i]["tokens"]), (&mine[i]["test"], &mine[i]["tokens"]));
        let (rounds, by_round) = (mine[i]["rounds"].as_array().expect("rounds"), &ratios[i]["rounds"]);
        assert_eq!((rounds.len(), by_round.as_array().map(Vec::len)), (3, Some(3)));
        for (round, ratio) in by_round.as_array().expect("ratios").iter().enumerate() {
            let speed =
                |side: &serde_json::Value| side[i]["rounds"][round]["tokens_per_s"].as_f64().expect("a rate");
            let expected = speed(mine) / speed(others);
            assert!((ratio.as_f64().expect("a ratio") / expected - 1.0).abs() < 1e-9, "{ratio} {expected}");
            // All resident, against four slots per layer.
            assert_eq!(mine[i]["rounds"][round]["misses"], 0);
            assert!(others[i]["rounds"][round]["misses"].as_u64() > Some(0));
        }
        let of = |key: &str| ratios[i][key].as_f64().expect("a number");
        assert!(of("min") <= of("median") && of("median") <= of("max"));
    }
}

/// What a side does in its turns is what it does alone: the same misses in a cold bank, whoever had the engine before.
#[test]
fn speed_against_leaves_nothing_to_the_next_round() {
    let place = Place::new();
    package(&place, "m");
    // No policy that remembers what left the bank: a run of its own goes on with that from round to round.
    let cold = "--cold --policy lru --prefetch off --json";
    let both = against(&place, "--bank 25%", &format!("{cold} --bank 5")).expect(0).json();
    let alone = |bank: &str| place.run(&format!("{AGAINST} {cold} --bank {bank}")).expect(0).json();
    for (side, by_itself) in [(&both, &alone("5")), (&both["against"], &alone("25%"))] {
        assert_eq!(side["slots"], by_itself["slots"]);
        for test in 0..2 {
            for round in 0..3 {
                let counts = |json: &serde_json::Value| {
                    let round = &json["tests"][test]["rounds"][round];
                    ["hits", "misses", "bytes_read", "cold"].map(|key| round[key].as_u64().expect("a count"))
                };
                assert_eq!(counts(side), counts(by_itself), "{test} {round}");
                assert!(counts(side)[1] > 0);
            }
        }
    }
}

#[test]
fn speed_against_has_every_format() {
    let place = Place::new();
    package(&place, "m");
    let words = "--prefetch off";
    let table = against(&place, words, "--bank 5 -q --parts").expect(0).stdout;
    assert_eq!(table.lines().filter(|line| line.trim_start().starts_with(words)).count(), 4, "{table}");
    assert_eq!(table.matches("times the tokens/s of --prefetch off").count(), 2, "{table}");
    let csv = against(&place, words, "--bank 5 -o csv").expect(0).stdout;
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 5, "{csv}");
    assert!(lines[0].ends_with("against,ratio,ratio_min,ratio_max"), "{csv}");
    assert!(lines[2].ends_with("\"--prefetch off\",,,") && !lines[1].contains("--prefetch off"), "{csv}");
    let jsonl = against(&place, words, "--bank 5 -o jsonl").expect(0).stdout;
    let records: Vec<serde_json::Value> =
        jsonl.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect();
    assert_eq!(records.len(), 4);
    for pair in records.chunks(2) {
        assert_eq!(pair[0]["test"], pair[1]["test"]);
        let of = |key: &str| pair[0][key].as_f64().expect("a number");
        assert!(0.0 < of("ratio_min") && of("ratio_min") <= of("ratio") && of("ratio") <= of("ratio_max"));
        assert!(pair[1]["ratio"].is_null() && pair[1]["against"] == words);
    }
    let md = against(&place, words, "--bank 5 -o md").expect(0).stdout;
    assert!(md.lines().count() == 6 && md.contains("| ratio |"), "{md}");
    // The same again, which shows the noise.
    let same = against(&place, "", "--bank 5 -q").expect(0).stdout;
    assert!(same.contains("times the tokens/s of the same again"), "{same}");
}

#[test]
fn speed_against_refuses_what_it_cannot_compare() {
    let place = Place::new();
    package(&place, "m");
    for (words, extra, needle) in [
        ("--threads 1", "", "--threads"),
        ("--ctx 64", "", "--ctx"),
        ("--moe-topk 1", "", "--moe-topk"),
        ("--attention dense", "", "--attention"),
        ("--moe-force-expert 1", "", "routing"),
        ("--trace t.jsonl", "", "--trace"),
        ("--dump d.json", "", "--dump"),
        ("--bank 5", "--trace t.jsonl", "--against"),
        ("--prompt 5", "", "--prompt"),
        ("--bank many", "", "many"),
        ("m", "", "m"),
        ("--stripe", "", "--stripe"),
        ("--moe-mode oracle-prefetch", "", "--moe-trace"),
        ("--moe-prefill-layer-major --strict", "", "--moe-prefill-layer-major"),
    ] {
        let done = against(&place, words, extra).expect(2);
        assert!(done.stdout.is_empty() && done.stderr.contains(needle), "{words}: {}", done.stderr);
    }
    assert!(!place.path("t.jsonl").exists());
}

#[test]
fn speed_prints_a_table() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    let done = place.run("bench speed m.gguf --prompt 4 --gen 2 --rounds 1 --bank all -q").expect(0);
    assert!(done.stdout.contains("prefill 4") && done.stdout.contains("decode 2"), "{}", done.stdout);
    assert!(done.stdout.contains("m.gguf · cpu"), "{}", done.stdout);
}

/// What a round went into, reads that are waited for included, is all of its time; the drive's time lies inside it.
#[test]
fn speed_accounts_for_all_of_the_time() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    let args = "bench speed m.gguf --prompt 0 --gen 8 --rounds 1 --bank 3 -q --parts";
    let table = place.run(args).expect(0).stdout;
    assert!(table.contains("I/O wall/token") && table.contains("waiting for reads"), "{table}");
    let row = table.lines().find(|line| line.trim_start().starts_with("decode 8  ")).expect("a row");
    let rate: f64 = row.split_whitespace().nth(2).expect("a rate").parse().expect("a number");
    let line = table.lines().find(|line| line.contains("decode 8:")).expect("parts");
    let ms = line.split('(').skip(1).map(|part| part.split_once(" ms)").expect("milliseconds").0);
    let parts: Vec<f64> = ms.map(|ms| ms.parse().expect("a number")).collect();
    // Each is rounded to a hundredth.
    let (whole, sum) = (1e3 / rate, parts.iter().sum::<f64>());
    assert!((whole - sum).abs() < 0.005 * (parts.len() + 1) as f64 + whole * 1e-3, "{whole} {sum}\n{table}");
    let json = place.run(&format!("{args} --json")).expect(0).json();
    let round = &json["tests"][0]["rounds"][0];
    let ns = |key: &str| round[key].as_u64().unwrap_or_else(|| panic!("no {key} in {round}"));
    assert!(ns("io_wall_ns") > 0 && ns("io_wall_ns") <= ns("wall_ns"), "{round}");
    assert!(ns("stall_ns") <= ns("wall_ns"), "{round}");
    assert!(json["tests"][0]["io_wall_ms_per_token"]["median"].as_f64() > Some(0.0), "{json}");
}

#[test]
fn speed_refuses_what_it_cannot_run() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    std::fs::write(place.path("bad.txt"), "1 two").expect("written");
    std::fs::write(place.path("empty.txt"), " \n").expect("written");
    std::fs::write(place.path("large.txt"), "288").expect("written");
    for (extra, code) in [
        ("--prompt 0 --gen 0", 2),
        ("--rounds 0", 2),
        ("--tokens missing.txt", 2),
        ("--tokens bad.txt", 3),
        ("--tokens empty.txt", 3),
        ("--tokens large.txt", 2),
        ("--prompt 100000 --gen 0", 5),
    ] {
        let done = place.run(&format!("bench speed m.gguf --json {extra}")).expect(code);
        assert_eq!(done.stdout, "", "{extra}");
    }
}

#[test]
fn kernels_measures_every_figure_of_the_formats_asked_for() {
    let place = Place::new();
    let done = place
        .run("bench kernels --formats q4_k,F32 --columns 3,0 --working-set 1 --n-in 512 --n-out 8 --rounds 2 -t 2 --json")
        .expect(0);
    let json = done.json();
    let positive = |pair: &serde_json::Value| {
        for side in ["one", "all"] {
            let [min, median, max] =
                ["min", "median", "max"].map(|key| pair[side][key].as_f64().expect("a number"));
            assert!(0.0 < min && min <= median && median <= max, "{pair}");
            assert_eq!(pair[side]["rounds"].as_array().map(Vec::len), Some(2));
        }
    };
    for ceiling in
        ["read_gb_per_s", "int8_gop_per_s", "int8_narrow_gop_per_s", "int16_gop_per_s", "f32_gflop_per_s"]
    {
        positive(&json["ceilings"][ceiling]);
    }
    let formats = json["formats"].as_array().expect("formats");
    let names: Vec<_> = formats.iter().map(|f| f["format"].as_str().expect("a name")).collect();
    assert_eq!(names, ["Q4_K", "F32"]);
    for (format, bits) in formats.iter().zip([4.5, 32.0]) {
        assert_eq!(format["bits_per_weight"].as_f64(), Some(bits));
        positive(&format["decode_gb_per_s"]);
        positive(&format["decode_gweights_per_s"]);
        let ratio = |key: &str| format[key]["one"]["median"].as_f64().expect("a number");
        assert!((ratio("decode_gb_per_s") * 8.0 / bits / ratio("decode_gweights_per_s") - 1.0).abs() < 1e-9);
        let prefill = format["prefill"].as_array().expect("prefill");
        assert_eq!((prefill.len(), prefill[0]["columns"].as_u64()), (1, Some(3)));
        positive(&prefill[0]["gflop_per_s"]);
    }
}

#[test]
fn kernels_knows_its_formats() {
    let place = Place::new();
    let done = place.run("bench kernels --formats none --working-set 1 --rounds 1").expect(0);
    assert!(done.stdout.contains("memory read") && done.stdout.contains("GB/s"), "{}", done.stdout);
    let done = place.run("bench kernels --formats Q9_Z").expect(2);
    assert!(done.stderr.contains("Q9_Z") && done.stderr.contains("IQ1_M"), "{}", done.stderr);
    place.run("bench kernels --n-in 100").expect(2);
    let done = place.run("bench kernels --formats F32 --n-in 1048576 --working-set 1").expect(2);
    assert!(done.stderr.contains("F32") && done.stderr.contains("--working-set"), "{}", done.stderr);
}

/// Each idea beside its opposite, which gives the same bits (the measurement itself checks that).
#[test]
fn kernels_measures_what_its_ideas_are_worth() {
    let place = Place::new();
    let small = "--columns 16 --working-set 1 --n-in 512 --n-out 8 --rounds 2 -t 2";
    let run = |extra: &str| place.run(&format!("bench kernels {small} {extra}")).expect(0);
    let json = run("--formats IQ1_M,Q4_K --ablate --dispatch --json").json();
    let positive = |figure: &serde_json::Value| {
        assert!(figure["median"].as_f64().is_some_and(|x| x > 0.0), "{figure}");
    };
    let ablations = json["ablations"].as_array().expect("ablations");
    assert_eq!(ablations.len(), 2);
    for ideas in ablations {
        let unpack = &ideas["unpack_once"][0];
        assert_eq!(unpack["columns"].as_u64(), Some(16));
        positive(&unpack["once_gflop_per_s"]);
        positive(&unpack["each_gflop_per_s"]);
        positive(&ideas["quantize_once"]["once_gweights_per_s"]);
        positive(&ideas["quantize_once"]["each_gweights_per_s"]);
    }
    assert!(ablations[1]["packed"].is_null(), "Q4_K has no packed form");
    let dispatch = json["dispatch"].as_array().expect("dispatch");
    assert_eq!(dispatch[0]["threads"].as_u64(), Some(1));
    for kind in ["empty_us", "short_us", "short_after_silence_us"] {
        positive(&dispatch[0][kind]);
    }
    let text = run("--formats Q4_K --ablate --dispatch").stdout;
    assert!(text.contains("unpack once for 16 columns") && text.contains("after 1 ms"), "{text}");
}

#[test]
fn speed_prints_what_llama_bench_prints() {
    let place = Place::new();
    package(&place, "m");
    let args = "bench speed m -p 4 -n 3 -r 1 --bank 3 -t 1 -o";
    let csv = place.run(&format!("{args} csv")).expect(0).stdout;
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 3, "{csv}");
    for column in ["model", "n_threads", "test", "avg_ts", "hit_rate", "gb_per_token", "cpu_s_per_token"] {
        assert!(lines[0].split(',').any(|name| name == column), "no {column} in {}", lines[0]);
    }
    assert!(lines[1].contains("\"pp4\"") && lines[2].contains("\"tg3\""), "{csv}");
    let jsonl = place.run(&format!("{args} jsonl")).expect(0).stdout;
    for line in jsonl.lines() {
        let record: serde_json::Value = serde_json::from_str(line).expect("an object per line");
        assert!(record["avg_ts"].as_f64().expect("a number") > 0.0);
    }
    let md = place.run(&format!("{args} md")).expect(0).stdout;
    assert!(md.starts_with("| model | ") && md.lines().count() == 4, "{md}");
    assert_eq!(place.run(&format!("{args} json")).expect(0).json()["tests"][0]["test"], "prefill");
}
