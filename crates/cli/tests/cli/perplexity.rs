//! `perplexity` and `kl`: against the logits that `logits` prints, and against each other.

use crate::support::{Place, gguf, silent};

/// Negative log-likelihoods of the second half of each window of `length`, from the logits of each window.
fn by_hand(place: &Place, tokens: &[u32], length: usize) -> Vec<f64> {
    let mut nll = Vec::new();
    for window in tokens.chunks_exact(length) {
        let ids: Vec<String> = window.iter().map(ToString::to_string).collect();
        let json = place.run(&format!("logits m.gguf --json --tokens {}", ids.join(","))).expect(0).json();
        let rows: Vec<Vec<f64>> = serde_json::from_value(json["logits"].clone()).expect("rows of numbers");
        for j in length / 2..length - 1 {
            let total: f64 = rows[j].iter().map(|x| x.exp()).sum();
            nll.push(total.ln() - rows[j][window[j + 1] as usize]);
        }
    }
    nll
}

/// A model without a tokenizer, and 50 tokens for it.
fn place() -> (Place, Vec<u32>) {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    let tokens: Vec<u32> = (0..50).map(|i| (i * i * 7 + i * 3) % 288).collect();
    std::fs::write(place.path("ids.json"), serde_json::to_string(&tokens).expect("numbers"))
        .expect("written");
    (place, tokens)
}

#[test]
fn windows_are_counted_as_by_hand() {
    let (place, tokens) = place();
    let json = place.run("perplexity m.gguf --tokens ids.json -c 16 --json -q").expect(0).json();
    let nll = by_hand(&place, &tokens, 16);
    let mean = nll.iter().sum::<f64>() / nll.len() as f64;
    assert_eq!((json["windows"].as_u64(), json["tokens"].as_u64()), (Some(3), Some(21)));
    assert!((json["nll"].as_f64().expect("a number") - mean).abs() < 1e-5, "{json} {mean}");
    assert!((json["perplexity"].as_f64().expect("a number") - mean.exp()).abs() < 1e-3 * mean.exp());
    let variance = nll.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / nll.len() as f64;
    let error = mean.exp() * (variance / (nll.len() - 1) as f64).sqrt();
    assert!((json["error"].as_f64().expect("a number") / error - 1.0).abs() < 1e-3);
    // Streamed and resident are one.
    let streamed = place.run("perplexity m.gguf --tokens ids.json -c 16 --json -q --bank 3").expect(0).json();
    assert_eq!(streamed, json);
    // Windows of 16 + 4, each counting its last 8.
    let strided =
        place.run("perplexity m.gguf --tokens ids.json -c 16 --stride 8 --json -q").expect(0).json();
    assert_eq!((strided["window"].as_u64(), strided["windows"].as_u64()), (Some(20), Some(4)));
    assert_eq!(strided["tokens"].as_u64(), Some(32));
    let line = place.run("perplexity m.gguf --tokens ids.json -c 16 --chunks 1 -q").expect(0).stdout;
    assert!(line.starts_with("perplexity ") && line.contains("7 predictions in 1 windows of 16"), "{line}");
}

#[test]
fn runs_that_compute_the_same_do_not_diverge() {
    let (place, _) = place();
    let kl = |extra: &str| {
        place.run_args(
            &[&["kl", "m.gguf", "-c", "16", "--json", "-q"], extra.split('|').collect::<Vec<_>>().as_slice()]
                .concat(),
        )
    };
    let same = kl("--tokens|ids.json|--bank|3|--against|--bank all --no-slot8").expect(0).json();
    assert_eq!((same["kl"]["max"].as_f64(), same["same_top"].as_f64()), (Some(0.0), Some(1.0)));
    assert_eq!(same["max_log_probability_difference"].as_f64(), Some(0.0));
    assert_eq!(same["perplexity"], same["reference_perplexity"]);
    // Other weights and other options do.
    let other = kl("--tokens|ids.json|--against|--shared-only").expect(0).json();
    assert!(other["kl"]["mean"].as_f64() > Some(1e-4), "{other}");
    kl("--tokens|ids.json|--against|--shared-only|--fail-above|0.00001").expect(9);
    kl("--tokens|ids.json|--against||--fail-above|0").expect(0);
    assert_eq!(kl("--tokens|ids.json|--reference|m.gguf").expect(0).json()["kl"]["max"].as_f64(), Some(0.0));
}

#[test]
fn kept_predictions_are_compared_with_later_runs() {
    let (place, _) = place();
    place.run("perplexity m.gguf --tokens ids.json -c 16 -q --save-logits base").expect(0);
    let kept = place.run("kl m.gguf --base base --json -q --bank 3").expect(0).json();
    // Rounded to 16 bits, that is to steps of up to 16 / 65,535.
    assert!(kept["kl"]["max"].as_f64() < Some(1e-4) && kept["same_top"].as_f64() == Some(1.0), "{kept}");
    assert_eq!((kept["windows"].as_u64(), kept["tokens"].as_u64()), (Some(3), Some(21)));
    let other = place.run("kl m.gguf --base base -q -c 24").expect(2).stderr;
    assert!(other.contains("is not the window of base, which is 16"), "{other}");
    let table = place.run("kl m.gguf --base base -q --shared-only").expect(0).stdout;
    assert!(table.contains("KL divergence") && table.contains("same likeliest token"), "{table}");
    std::fs::write(place.path("bad"), &std::fs::read(place.path("base")).expect("readable")[..999])
        .expect("written");
    let error = place.run("kl m.gguf --base bad -q").expect(3).stderr;
    assert!(error.contains("bad file of predictions") && error.contains("999 bytes"), "{error}");
}

#[test]
fn text_needs_a_tokenizer_and_a_window() {
    let place = Place::new();
    gguf(&place, "talks.gguf");
    silent().write(&place.path("silent.gguf"));
    std::fs::write(place.path("text"), "the theatre in the other inner area ".repeat(4)).expect("written");
    let json = place.run("perplexity talks.gguf -f text -c 16 --json -q").expect(0).json();
    assert!(json["perplexity"].as_f64() > Some(1.0), "{json}");
    let short = place.run("perplexity talks.gguf -f text -c 4096 -q").expect(2).stderr;
    assert!(short.contains("one window takes 4096"), "{short}");
    place.run("perplexity silent.gguf -f text -q").expect(4);
    place.run("perplexity talks.gguf -f nowhere -q").expect(2);
    place.run("perplexity talks.gguf -q").expect(2);
    place.run("perplexity talks.gguf -f text -c 16 --stride 16 -q").expect(0);
    place.run("kl talks.gguf -f text -q").expect(2);
}
