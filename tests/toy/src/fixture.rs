//! The golden numbers of `tests/fixtures/glm_dsa` and `tests/fixtures/deepseek2`, parsed.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::ToyConfig;

/// One toy model and what transformers computed with it.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// File stem.
    pub name: String,
    /// Seed of the weights.
    pub seed: u64,
    /// Epsilon of the two latent norms that transformers used.
    pub latent_eps: f64,
    /// Whether a file of this model names its full and shared layers; the default rule gives the same when not.
    pub schedule_in_file: bool,
    /// The model.
    pub config: ToyConfig,
    /// The input.
    pub tokens: Vec<u32>,
    /// Smallest margin of any discrete choice in the fixture, by kind.
    pub margins: BTreeMap<String, f64>,
    /// `[token][vocab]`.
    pub logits: Vec<Vec<f32>>,
    /// `[0 = embedding, i = after layer i, the last one after the final norm][token]`, Euclidean.
    pub hidden_norms: Vec<Vec<f32>>,
    /// Full layer → per token, the selected positions in ascending order.
    pub selections: BTreeMap<u32, Vec<Vec<u32>>>,
    /// MoE layer → per token, expert ids, best choice first.
    pub experts: BTreeMap<u32, Vec<Vec<u32>>>,
    /// MoE layer → per token, the weight of each of them.
    pub expert_weights: BTreeMap<u32, Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Record {
    name: String,
    seed: u64,
    latent_eps: f64,
    #[serde(default)]
    schedule_in_file: bool,
    config: ToyConfig,
    tokens: Vec<u32>,
    margins: BTreeMap<String, f64>,
    logits: String,
    hidden_norms: String,
    #[serde(default)]
    selections: BTreeMap<String, Vec<Vec<u32>>>,
    experts: BTreeMap<String, Vec<Vec<u32>>>,
    expert_weights: BTreeMap<String, String>,
}

const FILES: [&str; 10] = [
    include_str!("../../fixtures/glm_dsa/share.json"),
    include_str!("../../fixtures/glm_dsa/groups.json"),
    include_str!("../../fixtures/glm_dsa/yarn.json"),
    include_str!("../../fixtures/glm_dsa/million.json"),
    include_str!("../../fixtures/glm_dsa/mixed.json"),
    include_str!("../../fixtures/deepseek2/v3.json"),
    include_str!("../../fixtures/deepseek2/kimi.json"),
    include_str!("../../fixtures/deepseek2/flash.json"),
    include_str!("../../fixtures/deepseek2/v2.json"),
    include_str!("../../fixtures/deepseek2/lite.json"),
];

impl Fixture {
    /// Every fixture.
    pub fn all() -> Vec<Self> {
        FILES.iter().map(|text| Self::parse(text)).collect()
    }

    /// The fixture called `name`.
    pub fn named(name: &str) -> Self {
        Self::all().into_iter().find(|f| f.name == name).unwrap_or_else(|| panic!("no fixture `{name}`"))
    }

    /// The largest logit in absolute value.
    pub fn max_abs_logit(&self) -> f32 {
        self.logits.iter().flatten().fold(0.0, |m, x| m.max(x.abs()))
    }

    fn parse(text: &str) -> Self {
        let r: Record = serde_json::from_str(text).expect("a fixture is valid JSON of the known form");
        let top = r.config.index_topk;
        let all_seen = (0..top.min(r.tokens.len() as u32)).map(|t| (0..=t).collect::<Vec<_>>());
        Self {
            logits: rows(&r.logits, r.config.vocab_size as usize),
            hidden_norms: rows(&r.hidden_norms, r.tokens.len()),
            selections: by_layer(&r.selections, |later| {
                all_seen.clone().chain(later.iter().cloned()).collect()
            }),
            experts: by_layer(&r.experts, Clone::clone),
            expert_weights: by_layer(&r.expert_weights, |hex| {
                rows(hex, r.config.num_experts_per_tok as usize)
            }),
            name: r.name,
            seed: r.seed,
            latent_eps: r.latent_eps,
            schedule_in_file: r.schedule_in_file,
            config: r.config,
            tokens: r.tokens,
            margins: r.margins,
        }
    }
}

pub(crate) fn by_layer<A, B>(map: &BTreeMap<String, A>, convert: impl Fn(&A) -> B) -> BTreeMap<u32, B> {
    map.iter().map(|(layer, value)| (layer.parse().expect("layer index"), convert(value))).collect()
}

/// Little-endian f32 in hexadecimal, cut into rows.
pub(crate) fn rows(hex: &str, width: usize) -> Vec<Vec<f32>> {
    assert!(hex.len().is_multiple_of(8 * width), "{} digits in rows of {width}", hex.len());
    let value = |at: usize| {
        let bits = u32::from_str_radix(&hex[8 * at..8 * at + 8], 16).expect("hexadecimal digits");
        f32::from_bits(bits.swap_bytes())
    };
    (0..hex.len() / (8 * width)).map(|row| (0..width).map(|i| value(row * width + i)).collect()).collect()
}
