//! The deterministic weights of every toy: a counter-based hash, so that no weights are in the repository and any single
//! value can be computed without the others.
//!
//! The rule is the one written down in `tools/goldens/glm_dsa_goldens.py`; both sides pin the same values.

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// splitmix64's finaliser.
pub fn mix64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a over the bytes of a name.
pub fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

/// The endless stream of 64-bit numbers that belongs to a name.
#[derive(Clone, Copy, Debug)]
pub struct Stream(u64);

impl Stream {
    /// The stream of tensor `name` in a model of `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        Self(mix64(seed) ^ fnv1a64(name))
    }

    /// Number `i`.
    pub fn bits(self, i: u64) -> u64 {
        mix64(self.0.wrapping_add((i + 1).wrapping_mul(GAMMA)))
    }

    /// Number `i` as a multiple of 2^-23 in [-1, 1).
    pub fn uniform(self, i: u64) -> f32 {
        // 24 bits minus 2^23 and the division by a power of two are exact.
        ((self.bits(i) >> 40) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
    }
}

/// All `n` values of tensor `name`, contiguous dimension fastest.
pub fn values(seed: u64, name: &str, n: usize) -> Vec<f32> {
    let (offset, scale) = if name.ends_with("norm.weight") {
        (1.0, 0.25)
    } else if name.ends_with("k_norm.bias") {
        (0.0, 0.25)
    } else if name.ends_with("exp_probs_b.bias") {
        (0.0, 0.125)
    } else {
        (0.0, 0.1875)
    };
    values_in(seed, name, n, offset, scale)
}

/// The same, spread over `offset - scale..offset + scale` whatever the name says.
pub fn values_in(seed: u64, name: &str, n: usize, offset: f32, scale: f32) -> Vec<f32> {
    let stream = Stream::new(seed, name);
    (0..n as u64).map(|i| offset + scale * stream.uniform(i)).collect()
}

/// `n` token ids below `vocab`, as the goldens of configuration `name` use them.
pub fn tokens(name: &str, n: usize, vocab: u32) -> Vec<u32> {
    let base = fnv1a64(&format!("tokens.{name}"));
    (0..n as u64)
        .map(|i| {
            let z = mix64(base.wrapping_add((i + 1).wrapping_mul(GAMMA)));
            ((z >> 40) % u64::from(vocab)) as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by numpy from `tools/goldens/glm_dsa_goldens.py`.
    #[test]
    fn numpy_computes_the_same_values() {
        let bits = |name: &str, i: usize| values(7, name, i + 1)[i].to_bits();
        assert_eq!(bits("token_embd.weight", 0), 0xbccc_83dc);
        assert_eq!(bits("token_embd.weight", 999), 0x3cfd_ab80);
        assert_eq!(bits("blk.3.ffn_gate_exps.weight", 12345), 0xbe09_743a);
        assert_eq!(bits("blk.0.attn_norm.weight", 5), 0x3f5c_edca);
        assert_eq!(bits("blk.2.indexer.k_norm.weight", 0), 0x3f6a_d072);
        assert_eq!(bits("blk.2.indexer.k_norm.bias", 1), 0xbccc_49a0);
        assert_eq!(bits("blk.4.exp_probs_b.bias", 3), 0xbdad_71e0);
        assert_eq!(tokens("share", 6, 96), [4, 0, 0, 23, 65, 59]);
    }
}
