//! Other architectures than the demo's, and files that lack something.

use files::GgmlType;
use files::gguf::Writer;
use toy::{Convention, Layout, Listed, Toy, Types, Vocabulary};

use crate::support::{Place, talking};

const RUN: &str = "run Hello -n 12 --ignore-eos --temp 0";

/// `inspect`, `plan`, `extract` and `run` of a `deepseek2` model, from a GGUF and from a sidecar.
#[test]
fn deepseek2_runs_from_a_gguf_and_from_a_sidecar() {
    let place = Place::new();
    let mut toy = Toy::wide_deepseek2(Types { dense: GgmlType::Q8_0, experts: vec![[GgmlType::Q4_0; 3]] });
    toy.config.vocab_size = 288;
    toy.vocabulary = Vocabulary::Bytes;
    toy.write(&place.path("m.gguf"));
    toy.write_package(&place.path("p"), Convention::Flat, Layout::WholeTensor);
    let inspected = place.run("inspect m.gguf --json").expect(0).json();
    assert_eq!(inspected["architecture"], "deepseek2");
    assert_eq!(inspected["missing"], serde_json::json!([]));
    let done = place.run(&format!("{RUN} -m m.gguf -q")).expect(0);
    assert_eq!(done.stderr, "");
    assert!(!done.stdout.is_empty());
    for streamed in ["-m m.gguf --bank 3", "-m p --bank 4"] {
        assert_eq!(place.run(&format!("{RUN} -q {streamed}")).expect(0).stdout, done.stdout, "{streamed}");
    }
    let recent = place.run(&format!("{RUN} -m m.gguf --attention recent")).expect(2);
    assert!(recent.stderr.contains("--attention") && recent.stdout.is_empty(), "{}", recent.stderr);
}

/// One warning, also where little is said, and none where dense attention was asked for.
#[test]
fn a_model_without_its_indexer_runs_and_says_so_once() {
    let place = Place::new();
    let toy = talking();
    let mut writer = Writer::new(toy.metadata()).expect("sound metadata");
    for spec in toy.tensors().into_iter().filter(|spec| !spec.name.contains(".indexer.")) {
        let (ty, bytes) = (toy.type_of(&spec), toy.bytes(&spec));
        writer.tensor_bytes(spec.name, ty, &spec.shape, bytes).expect("a sound tensor");
    }
    writer.write_file(&place.path("m.gguf")).expect("written");
    let dense = place.run(&format!("{RUN} -m m.gguf -q --attention dense")).expect(0);
    assert_eq!(dense.stderr, "");
    for quiet in ["-q", ""] {
        let done = place.run(&format!("{RUN} -m m.gguf {quiet}")).expect(0);
        assert_eq!(done.stdout, dense.stdout);
        let warnings: Vec<&str> = done.stderr.lines().filter(|line| line.contains("warning")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains("indexer"), "{}", done.stderr);
    }
    assert_eq!(place.run("inspect m.gguf --json").expect(0).json()["missing"], serde_json::json!([]));
}

/// `inspect`, `plan`, `extract --pack` and `logits` of a model whose gates and ups are one tensor: the same logits from all of them.
#[test]
fn fused_experts_go_through_every_command() {
    let place = Place::new();
    let f = Listed::named("gemma4_wide");
    let experts = vec![[GgmlType::IQ1_M, GgmlType::F32, GgmlType::IQ2_XXS]];
    f.write(&Types { dense: GgmlType::Q8_0, experts }, &place.path("m.gguf"));
    let inspected = place.run("inspect m.gguf --json").expect(0).json();
    assert_eq!(
        (&inspected["architecture"], &inspected["missing"]),
        (&"gemma4".into(), &serde_json::json!([]))
    );
    let families: Vec<_> = inspected["experts"]["families"].as_array().expect("a list").iter().collect();
    let named: Vec<_> = families.iter().map(|line| (&line["family"], &line["tensors"])).collect();
    assert_eq!(named, [(&"ffn_down_exps".into(), &3.into()), (&"ffn_gate_up_exps".into(), &3.into())]);
    // 3 matrices of 256 x 256 in each of 8 experts of 3 layers.
    assert_eq!(inspected["parameters"]["experts"], 3 * 256 * 256 * 8 * 3);
    place.run("plan m.gguf --bank 3 --no-measure").expect(0);
    for (folder, options) in [("a", "layer-major"), ("b", "expert-major"), ("c", "expert-major --pack")] {
        // With scalar kernels, among which packing pays everywhere.
        let args = format!("extract m.gguf {folder} -q --dense --layout {options}");
        let mut command = place.command();
        command.env("SLOTBANK_ISA", "scalar").args(args.split_whitespace());
        place.done(command.output().expect("the binary starts")).expect(0);
        place.run(&format!("verify {folder} -q --against m.gguf")).expect(0);
    }
    assert!(place.run("inspect c").expect(0).stdout.contains("; unpacked "));
    let tokens = f.tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let logits =
        |model: &str| place.run(&format!("logits {model} --tokens {tokens} --json")).expect(0).stdout;
    let reference = logits("m.gguf --bank all");
    for model in ["m.gguf --bank 3", "a --bank 4", "b --bank 3", "c --bank 5", "c --bank all"] {
        assert_eq!(logits(model), reference, "{model}");
    }
}
