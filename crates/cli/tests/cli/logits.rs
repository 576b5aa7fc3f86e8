//! `logits`: the parity tool.

use crate::support::{Place, silent, talking};

fn rows(value: &serde_json::Value) -> Vec<Vec<f32>> {
    serde_json::from_value(value["logits"].clone()).expect("rows of numbers")
}

#[test]
fn one_row_per_token_for_every_bank_bit_for_bit() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    let logits = |extra: &str| {
        let done = place.run(&format!("logits m.gguf --tokens 1,2,3,250,7 --json {extra}")).expect(0);
        assert_eq!(done.stderr, "");
        done
    };
    let reference = logits("--bank all");
    let json = reference.json();
    assert_eq!(json["n_vocab"], 288);
    assert_eq!(json["tokens"], serde_json::json!([1, 2, 3, 250, 7]));
    let values = rows(&json);
    assert_eq!((values.len(), values[0].len()), (5, 288));
    assert!(values.iter().flatten().all(|x| x.is_finite()) && values[0] != values[1]);
    // The text itself is equal, so every bit is.
    assert_eq!(logits("--bank 3").stdout, reference.stdout);
    assert_eq!(logits("-t 1 --bank auto").stdout, reference.stdout);
}

#[test]
fn printed_numbers_read_back_exactly() {
    let place = Place::new();
    talking().write(&place.path("m.gguf"));
    let json = place.run("logits m.gguf --tokens 5,6 --json").expect(0).json();
    for (x, written) in rows(&json)
        .iter()
        .flatten()
        .zip(json["logits"].as_array().expect("rows").iter().flat_map(|r| r.as_array().expect("row")))
    {
        assert_eq!(x.to_bits(), (written.as_f64().expect("number") as f32).to_bits());
        assert_eq!(serde_json::to_string(x).expect("finite"), written.to_string());
    }
}

#[test]
fn fewer_experts_change_the_numbers() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    let logits =
        |extra: &str| place.run(&format!("logits m.gguf --tokens 1,2,3 --json {extra}")).expect(0).stdout;
    assert_ne!(logits(""), logits("--moe-topk 2"));
    assert_ne!(logits(""), logits("--shared-only"));
}

#[test]
fn bad_tokens_are_usage_errors() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    for args in ["--tokens 288", "--tokens 1,x", "--tokens", ""] {
        place.run(&format!("logits m.gguf {args}")).expect(2);
    }
}
