//! Softmax.

use super::dot::sum_body;
use super::exp;

vectorized! {
    /// `x = e^(x − max) / Σ e^(x − max)`, in place. Entries of −∞ become 0; an empty slice stays empty.
    pub fn softmax(x: &mut [f32]) {
        let (blocks, tail) = x.as_chunks::<16>();
        let mut largest = [f32::NEG_INFINITY; 16];
        for x in blocks {
            for i in 0..16 {
                largest[i] = if x[i] > largest[i] { x[i] } else { largest[i] };
            }
        }
        let largest = largest.iter().chain(tail).fold(f32::NEG_INFINITY, |a, x| if *x > a { *x } else { a });
        x.iter_mut().for_each(|x| *x = exp(*x - largest));
        let total = sum_body(x, |x| x);
        x.iter_mut().for_each(|x| *x /= total);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, floats};
    use super::*;

    #[test]
    fn matches_f64() {
        for n in [1, 2, 15, 16, 64, 100, 2048] {
            let x = floats(n, 13, 30.0);
            let e: Vec<f64> = x.iter().map(|x| f64::from(*x).exp()).collect();
            let total: f64 = e.iter().sum();
            let mut got = x.clone();
            softmax(&mut got);
            assert_close(&got, &e.iter().map(|e| e / total).collect::<Vec<_>>(), 2e-6);
        }
    }

    #[test]
    fn masked_entries_vanish_and_large_ones_do_not_overflow() {
        let mut x = [f32::NEG_INFINITY, 1e30, 1e30, -1e30];
        softmax(&mut x);
        assert_eq!(x, [0.0, 0.5, 0.5, 0.0]);
        softmax(&mut []);
    }

    #[test]
    fn nan_is_not_hidden() {
        let mut x = [1.0, f32::NAN, 2.0];
        softmax(&mut x);
        assert!(x.iter().all(|x| x.is_nan()));
    }
}
