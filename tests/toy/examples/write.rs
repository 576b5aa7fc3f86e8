//! Writes the toy of every golden fixture as a GGUF, for other programs to run: `write FOLDER`. With the name of a type behind it
//! (`write FOLDER Q8_0`) every matrix is stored as that where its rows allow it, in `NAME.TYPE.gguf`, and nothing else is written.
//!
//! `NAME.gguf` is the model of the fixture. `NAME.llama.gguf` has what llama.cpp reads differently taken out of the file, so that there is
//! no difference left to explain: see `tools/goldens/compare_llama_logits.py`.

use std::path::Path;

use files::gguf::Writer;
use files::{GgmlType, Metadata};
use slotbank_toy::{Family, Fixture, Listed, Scoring, Toy, Types};

fn main() {
    let Some(folder) = std::env::args_os().nth(1) else {
        panic!("name a folder");
    };
    if let Some(name) = std::env::args().nth(2) {
        let ty = GgmlType::from_name(&name).unwrap_or_else(|| panic!("no type {name}"));
        return quantised(Path::new(&folder), ty);
    }
    for fixture in Fixture::all() {
        let toy = Toy::from_fixture(&fixture);
        toy.write(&Path::new(&folder).join(format!("{}.gguf", fixture.name)));
        if toy.config.family == Family::Deepseek2 {
            let (toy, metadata) = for_llama(toy);
            write(&toy, metadata, &Path::new(&folder).join(format!("{}.llama.gguf", fixture.name)));
        }
    }
    for toy in Listed::all() {
        toy.write(&Types::all(GgmlType::F32), &Path::new(&folder).join(format!("{}.gguf", toy.name)));
        if toy.architecture() == "gpt-oss" {
            let path = Path::new(&folder).join(format!("{}.llama.gguf", toy.name));
            toy.write_edited(&Types::all(GgmlType::F32), &path, |_| true, rounded_ramp);
        } else if toy.architecture() == "qwen3moe" && toy.tensors.iter().any(|t| t.name.contains(GATE_UP)) {
            apart(&toy, &Path::new(&folder).join(format!("{}.llama.gguf", toy.name)));
        }
    }
}

const GATE_UP: &str = "ffn_gate_up_exps";

/// llama.cpp takes gate and up of this architecture from two tensors only.
fn apart(toy: &Listed, path: &Path) {
    let mut writer = Writer::new(toy.metadata.clone()).expect("toy metadata is sound");
    for spec in &toy.tensors {
        let bytes = toy.bytes(spec, GgmlType::F32);
        if !spec.name.contains(GATE_UP) {
            writer
                .tensor_bytes(spec.name.clone(), GgmlType::F32, &spec.shape, bytes)
                .expect("a sound tensor");
            continue;
        }
        let [hidden, both, experts] = spec.shape[..] else { panic!("{} is no stack", spec.name) };
        let half = 4 * (hidden * both / 2) as usize;
        for (i, part) in ["ffn_gate_exps", "ffn_up_exps"].into_iter().enumerate() {
            let rows = bytes.chunks_exact(half).skip(i).step_by(2).flatten().copied().collect::<Vec<u8>>();
            let name = spec.name.replace(GATE_UP, part);
            writer
                .tensor_bytes(name, GgmlType::F32, &[hidden, both / 2, experts], rows)
                .expect("a sound tensor");
        }
    }
    writer.write_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// llama.cpp rounds the ends of YaRN's ramp to whole pairs, outwards, and does not read where they are. These numbers of rotations are
/// where it puts them.
fn rounded_ramp(m: &mut Metadata) {
    let number =
        |key: &str| f64::from(m.f32(&format!("gpt-oss.{key}")).ok().flatten().expect("a toy with YaRN"));
    let (base, dim) = (number("rope.freq_base"), number("attention.key_length"));
    let full = number("rope.scaling.original_context_length") / std::f64::consts::TAU;
    let pair = |rotations: f64| dim * (full / rotations).ln() / (2.0 * base.ln());
    let rotations = |pair: f64| (full * base.powf(-2.0 * pair / dim)) as f32;
    let ends = [rotations(pair(32.0).floor()), rotations(pair(1.0).ceil())];
    for (name, end) in ["fast", "slow"].into_iter().zip(ends) {
        m.insert(format!("gpt-oss.rope.scaling.yarn_beta_{name}"), end);
    }
}

/// Every toy whose experts' rows hold whole blocks of `ty`.
fn quantised(folder: &Path, ty: GgmlType) {
    let path = |name: &str| folder.join(format!("{name}.{ty}.gguf"));
    for fixture in Fixture::all() {
        if ty.row_bytes(fixture.config.moe_intermediate_size.into()).is_some() {
            let toy = Toy { types: Types::all(ty), ..Toy::from_fixture(&fixture) };
            toy.write(&path(&fixture.name));
        }
    }
    for toy in Listed::all() {
        if ty.row_bytes(toy.expert_row_divisor()).is_some() {
            toy.write(&Types::all(ty), &path(&toy.name));
        }
    }
}

fn for_llama(mut toy: Toy) -> (Toy, Metadata) {
    if toy.config.q_lora_rank == 0 {
        // llama.cpp knows by the number of layers that there is no query latent.
        toy.config.num_hidden_layers = 27;
    }
    let mut metadata = toy.metadata();
    // Never read: the ramp is between 32 and 1 rotations.
    metadata.retain(|key| !key.contains("yarn_beta"));
    if toy.config.scoring_func == Scoring::Softmax {
        // The two best experts speak for a group whatever the router is; V2's best one does.
        metadata.retain(|key| !key.contains("expert_group"));
    }
    if toy.config.rope_parameters.yarn.as_ref().is_some_and(|yarn| yarn.mscale_all_dim == 0.0) {
        // No factor on cosines and sines, where transformers has its default.
        metadata.retain(|key| !key.contains("rope.scaling"));
    }
    (toy, metadata)
}

fn write(toy: &Toy, metadata: Metadata, path: &Path) {
    let mut writer = Writer::new(metadata).expect("toy metadata is sound");
    for spec in toy.tensors() {
        let (ty, bytes) = (toy.type_of(&spec), toy.bytes(&spec));
        writer.tensor_bytes(spec.name, ty, &spec.shape, bytes).expect("toy tensors are sound");
    }
    writer.write_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
