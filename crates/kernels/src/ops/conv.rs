//! A short causal convolution, each channel for itself, with the activation that follows it.

use super::silu;

/// Channels at a time: their outputs stay in the first-level cache from tap to tap.
const CHANNELS: usize = 1024;

/// `out = silu(Σ taps[i] · rows[i])`: `rows` are the inputs of the last positions, oldest first, the position's own last, and `taps` is
/// `[rows.len(), channels]`. Products are added oldest first, fused.
///
/// # Panics
/// The lengths do not fit each other.
pub fn conv_silu(taps: &[f32], rows: &[&[f32]], out: &mut [f32]) {
    let channels = out.len();
    assert!(taps.len() == rows.len() * channels, "taps of a convolution");
    assert!(rows.iter().all(|row| row.len() == channels), "rows of a convolution");
    for (block, out) in out.chunks_mut(CHANNELS).enumerate() {
        let range = block * CHANNELS..block * CHANNELS + out.len();
        out.fill(0.0);
        for (row, taps) in rows.iter().zip(taps.chunks_exact(channels)) {
            tap(&taps[range.clone()], &row[range.clone()], out);
        }
        silu(out);
    }
}

fused! {
    fn tap(taps: &[f32], row: &[f32], out: &mut [f32]) {
        for ((out, tap), x) in out.iter_mut().zip(taps).zip(row) {
            *out = tap.mul_add(*x, *out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, floats};
    use super::*;

    #[test]
    fn matches_f64() {
        for (channels, kernel) in [(1, 4), (48, 4), (1500, 2), (2048, 3)] {
            let (taps, x) = (floats(kernel * channels, 21, 1.0), floats(kernel * channels, 22, 3.0));
            let rows: Vec<&[f32]> = x.chunks(channels).collect();
            let mut out = vec![f32::NAN; channels];
            conv_silu(&taps, &rows, &mut out);
            let want: Vec<f64> = (0..channels)
                .map(|c| {
                    let product = |i: usize| f64::from(taps[i * channels + c]) * f64::from(rows[i][c]);
                    let y: f64 = (0..kernel).map(product).sum();
                    y / (1.0 + (-y).exp())
                })
                .collect();
            assert_close(&out, &want, 1e-6);
        }
    }

    /// The taps have an order: the last one belongs to the position itself.
    #[test]
    fn the_last_tap_is_the_newest_row() {
        let mut out = [0.0];
        conv_silu(&[0.0, 100.0], &[&[1.0], &[2.0]], &mut out);
        assert_eq!(out, [200.0]);
    }
}
