//! Which rotary embedding a model asks for, and what that does to its softmax.

use kernels::ops::{Pairing, Yarn};

use crate::Error;
use crate::backend::RopeSpec;
use crate::keys::Keys;

/// Rotations per transformers' defaults: pairs that turn more often than the first keep their frequency, pairs that turn less
/// often than the second are interpolated.
const BETA_FAST: f32 = 32.0;
const BETA_SLOW: f32 = 1.0;

/// Base frequency where the file has none.
const THETA: f32 = 10_000.0;

/// A rotary embedding over the first `dim` elements that it is applied to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeConfig {
    pub(crate) dim: usize,
    pub(crate) pairing: Pairing,
    pub(crate) theta: f32,
    /// All frequencies are divided by it.
    pub(crate) linear: f32,
    pub(crate) yarn: Option<Yarn>,
    /// YaRN's temperature: its square multiplies the softmax scale. 1 without.
    pub(crate) mscale: f32,
}

impl RopeConfig {
    /// As MLA has it: neighbours turn together, and YaRN's temperature may be the softmax's.
    pub(crate) fn read(keys: &Keys<'_>) -> Result<Self, Error> {
        let dim = keys.size("rope.dimension_count")?;
        let log_multiplier = keys.f32_if_any("rope.scaling.yarn_log_multiplier")?;
        Self::with(keys, dim, Pairing::Interleaved, keys.f32("rope.freq_base")?, log_multiplier)
    }

    /// As heads with keys of their own have it: the halves of the rotated part turn together, which is all of `head_dim` unless the
    /// file says otherwise, and YaRN's temperature is on cosines and sines.
    pub(crate) fn halves(keys: &Keys<'_>, head_dim: usize) -> Result<Self, Error> {
        let name = "rope.dimension_count";
        let dim = if keys.has(name) { keys.size(name)? } else { head_dim };
        if dim > head_dim {
            return Err(keys.wrong(format!("{name} {dim} is above attention.key_length {head_dim}")));
        }
        let theta = if keys.has("rope.freq_base") { keys.f32("rope.freq_base")? } else { THETA };
        Self::with(keys, dim, Pairing::Halves, theta, None)
    }

    fn with(
        keys: &Keys<'_>,
        dim: usize,
        pairing: Pairing,
        theta: f32,
        log_multiplier: Option<f32>,
    ) -> Result<Self, Error> {
        if !dim.is_multiple_of(2) {
            return Err(keys.wrong(format!("rope.dimension_count {dim} is odd")));
        }
        let plain = Self { dim, pairing, theta, linear: 1.0, yarn: None, mscale: 1.0 };
        match keys.str("rope.scaling.type")? {
            Some("none") => Ok(plain),
            // A factor alone means this, too.
            None | Some("linear") => {
                let linear =
                    if keys.has("rope.scaling.factor") { keys.f32("rope.scaling.factor")? } else { 1.0 };
                Ok(Self { linear, ..plain })
            }
            Some("yarn") => {
                let (yarn, mscale) = yarn(keys, log_multiplier)?;
                Ok(Self { yarn: Some(yarn), mscale, ..plain })
            }
            Some(other) => Err(keys.wrong(format!("rope.scaling.type `{other}` is not implemented"))),
        }
    }

    /// For steps of `rows` tokens.
    pub(crate) fn spec(&self, rows: usize) -> RopeSpec {
        RopeSpec {
            dim: self.dim,
            pairing: self.pairing,
            rows,
            theta: self.theta,
            yarn: self.yarn,
            factors: (self.linear != 1.0).then(|| vec![self.linear; self.dim / 2]),
        }
    }
}

/// YaRN's tables and the factor whose square scales the softmax.
fn yarn(keys: &Keys<'_>, log_multiplier: Option<f32>) -> Result<(Yarn, f32), Error> {
    let factor = keys.f32("rope.scaling.factor")?;
    let (attention_factor, mscale) = temperature(log_multiplier, factor);
    let beta = |name: &str, default: f32| -> Result<f32, Error> {
        if keys.has(name) { keys.f32(name) } else { Ok(default) }
    };
    let yarn = Yarn {
        factor,
        original_context: keys.size("rope.scaling.original_context_length")? as u32,
        beta_fast: beta("rope.scaling.yarn_beta_fast", BETA_FAST)?,
        beta_slow: beta("rope.scaling.yarn_beta_slow", BETA_SLOW)?,
        truncate: true,
        attention_factor: attention_factor * keys.f32_if_any("rope.scaling.attn_factor")?.unwrap_or(1.0),
    };
    Ok((yarn, mscale))
}

/// The factor on cosines and sines, and the one whose square scales the softmax.
///
/// `yarn_log_multiplier` carries 0.1 * mscale_all_dim; with it the two mscales cancel on cosines and sines. Without, the configuration
/// had no mscale_all_dim, and cosines and sines take the default factor.
fn temperature(log_multiplier: Option<f32>, factor: f32) -> (f32, f32) {
    let log = if factor > 1.0 { factor.ln() } else { 0.0 };
    match log_multiplier {
        Some(multiplier) if multiplier != 0.0 => (1.0, 1.0 + multiplier * log),
        _ => (1.0 + 0.1 * log, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The softmax scales of DeepSeek-V3 (factor 40) and of Kimi K2 (32) and K2.5 (64), all with heads of 192.
    #[test]
    fn temperatures_of_published_models() {
        for (factor, scale) in [(40.0, 0.135_234), (32.0, 0.130_861), (64.0, 0.144_680)] {
            let (angles, mscale) = temperature(Some(0.1), factor);
            assert_eq!(angles, 1.0);
            assert!((mscale * mscale / 192f32.sqrt() - scale).abs() < 1e-6, "factor {factor}");
        }
        let (angles, mscale) = temperature(None, 40.0);
        assert!((angles - 1.368_888).abs() < 1e-5 && mscale == 1.0);
        assert_eq!(temperature(Some(0.1), 1.0), (1.0, 1.0));
    }
}
