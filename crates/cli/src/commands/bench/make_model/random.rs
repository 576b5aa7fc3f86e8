//! Counter-based random numbers: any value of any tensor without the ones before it, so that threads, chunk sizes and the
//! order of writing cannot change a file.

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// splitmix64's finaliser.
fn mix64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The endless stream of numbers that belongs to a name in a model of a seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream(u64);

impl Stream {
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let name =
            name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
        Self(mix64(seed.wrapping_add(GAMMA)) ^ name)
    }

    /// Number `i`: 64 random bits.
    pub(super) fn bits(self, i: u64) -> u64 {
        mix64(self.0.wrapping_add((i + 1).wrapping_mul(GAMMA)))
    }

    /// Number `i` as a normal deviate: mean 0, variance 1, no value beyond 3.5 (a sum of four uniform ones).
    pub(super) fn normal(self, i: u64) -> f32 {
        let bits = self.bits(i);
        let sum = (bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48);
        // Four uniform integers below 2^16: mean 4 * 32767.5, variance 4 * 2^32 / 12.
        (sum as f32 - 131_070.0) / 37_837.23
    }

    /// Fills `out` with the numbers from `first` on.
    pub(super) fn fill(self, first: u64, out: &mut [u8]) {
        let mut words = out.chunks_exact_mut(8);
        let mut i = first;
        for word in &mut words {
            word.copy_from_slice(&self.bits(i).to_le_bytes());
            i += 1;
        }
        let rest = words.into_remainder();
        let n = rest.len();
        rest.copy_from_slice(&self.bits(i).to_le_bytes()[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_deviates_have_mean_0_and_variance_1() {
        let stream = Stream::new(1, "x");
        let n = 100_000u64;
        let (sum, squares) = (0..n).fold((0.0f64, 0.0f64), |(s, q), i| {
            let x = f64::from(stream.normal(i));
            (s + x, q + x * x)
        });
        let (mean, variance) = (sum / n as f64, squares / n as f64);
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }

    #[test]
    fn a_fill_may_start_anywhere() {
        let stream = Stream::new(3, "y");
        let (mut whole, mut tail) = ([0u8; 44], [0u8; 20]);
        stream.fill(0, &mut whole);
        stream.fill(3, &mut tail);
        assert_eq!(whole[24..], tail);
        assert_ne!(Stream::new(4, "y").bits(0), stream.bits(0));
        assert_ne!(Stream::new(3, "z").bits(0), stream.bits(0));
    }
}
