//! Sidecars with packed experts through the command line. The forms are asked for by name and size nowhere: they may change.

use files::GgmlType;
use toy::{Toy, Types};

use crate::support::{Place, flip, gguf, talking, transcript};

const RUN: &str = "run Hello -n 12 --ignore-eos -q --temp 0 -m";

/// A model that talks, some of whose experts have a packed form.
fn model(place: &Place) {
    let experts = vec![[GgmlType::IQ1_M, GgmlType::IQ1_M, GgmlType::IQ2_XXS], [GgmlType::Q8_0; 3]];
    let wide = Toy::wide(Types { dense: GgmlType::Q8_0, experts });
    Toy { types: wide.types, ..talking() }.write(&place.path("m.gguf"));
}

/// `extract` with scalar kernels everywhere, among which no packed form is slower than its source, whatever the processor.
fn pack(place: &Place, args: &str) -> crate::support::Done {
    let args = format!("extract m.gguf {args} --layout expert-major --pack");
    let mut command = place.command();
    command.env("SLOTBANK_ISA", "scalar").args(args.split_whitespace());
    place.done(command.output().expect("the binary starts"))
}

#[test]
fn packed_sidecars_are_written_verified_and_run() {
    let place = Place::new();
    model(&place);
    let reference = place.run(&format!("{RUN} m.gguf")).expect(0).stdout;
    let json = pack(&place, "out --dense --json -q").expect(0).json();
    let forms = json["forms"].as_array().expect("a list");
    let bytes = |ty: &str| {
        let line = forms.iter().find(|line| line["type"] == ty).expect("a line per type");
        (line["form"].as_str(), line["source_bytes"].as_u64(), line["bytes"].as_u64())
    };
    let (form, before, after) = bytes("IQ1_M");
    assert!(form.is_some() && after > before, "{forms:?}");
    let (form, before, after) = bytes("Q8_0");
    assert!(form.is_none() && after == before, "{forms:?}");

    assert!(place.run("verify out -q").expect(0).stdout.starts_with("ok: "));
    place.run("verify out -q --against m.gguf").expect(0);
    let name = bytes("IQ1_M").0.expect("a form");
    let inspected = place.run("inspect out").expect(0).stdout;
    assert!(inspected.contains(&format!("{name} ×")) && inspected.contains("; unpacked "), "{inspected}");
    let plan = place.run("plan out --bank 3 --no-measure").expect(0).stdout;
    assert!(plan.contains("note: experts are packed: a token without a hit reads "), "{plan}");
    for bank in ["3", "all"] {
        for promote in ["never", "always"] {
            let args = format!("{RUN} out --bank {bank} --promote {promote}");
            assert_eq!(place.run(&args).expect(0).stdout, reference, "{args}");
        }
    }
    let mut scalar = place.command();
    scalar.env("SLOTBANK_ISA", "scalar").args(format!("{RUN} out").split_whitespace());
    assert_eq!(place.done(scalar.output().expect("it starts")).expect(0).stdout, reference);

    flip(&place.path("out/layer_001.bin"), 10_000);
    place.run("verify out -q").expect(7);
    let done = place.run("verify out -q --against m.gguf").expect(7);
    assert_eq!(done.stdout.lines().filter(|line| line.starts_with("bad: ")).count(), 1, "{}", done.stdout);
}

#[test]
fn extract_says_per_type_what_it_packed() {
    let place = Place::new();
    model(&place);
    let done = pack(&place, "out").expect(0);
    let line = |part: &str| done.stdout.lines().filter(|line| line.contains(part)).count();
    assert_eq!((line(" times as much"), line("Q8_0 ×")), (2, 1), "{}", done.stdout);
    assert_eq!(line(" as they were: no packed form"), 1, "{}", done.stdout);
}

#[test]
fn pack_is_refused_where_it_makes_no_sense() {
    let place = Place::new();
    model(&place);
    transcript!("pack-layer-major", place.run("extract m.gguf out --pack").expect(2));
    pack(&place, "packed -q").expect(0);
    transcript!("pack-no-way-back", place.run("extract packed again --layout expert-major").expect(2));
    gguf(&place, "m.gguf");
    transcript!("pack-nothing", pack(&place, "out").expect(2));
}

#[test]
fn another_version_of_a_form_is_refused() {
    let place = Place::new();
    model(&place);
    pack(&place, "out --dense -q").expect(0);
    let path = place.path("out/manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("a manifest")).expect("json");
    for entry in manifest["entries"].as_array_mut().expect("a list") {
        if entry["packed"]["source_type"] == "IQ1_M" {
            (entry["quant_type"], entry["packed"]["version"]) =
                ("IQ1_M new".into(), "0123456789abcdef".into());
        }
    }
    std::fs::write(&path, manifest.to_string()).expect("written");
    transcript!("packed-unknown-form", place.run(&format!("{RUN} out")).expect(4));
    place.run("inspect out").expect(0);
}
