//! The Walsh–Hadamard transform.

vectorized! {
    /// Multiplies `x` in place by the orthonormal Hadamard matrix of its length (Sylvester's order), which is its own inverse.
    ///
    /// # Panics
    /// The length is not a power of two.
    pub fn hadamard(x: &mut [f32]) {
        let n = x.len();
        assert!(n.is_power_of_two(), "a Hadamard transform of {n} elements");
        let mut width = 1;
        while width < n {
            for pair in x.chunks_exact_mut(2 * width) {
                let (a, b) = pair.split_at_mut(width);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            width *= 2;
        }
        let scale = 1.0 / (n as f32).sqrt();
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, floats};
    use super::*;

    #[test]
    fn matches_the_matrix_and_is_its_own_inverse() {
        for n in [1usize, 2, 8, 64, 128] {
            let x = floats(n, 5, 1.0);
            let mut y = x.clone();
            hadamard(&mut y);
            let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let row = |i| (0..n).map(|j| sign(i, j) * f64::from(x[j])).sum::<f64>() / (n as f64).sqrt();
            assert_close(&y, &(0..n).map(row).collect::<Vec<_>>(), 1e-6);
            hadamard(&mut y);
            assert_close(&y, &x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), 1e-6);
        }
    }
}
