//! Weights times activation rows, split over the pool by output rows.
//!
//! Inside a weight row all activation rows are visited, so the weights stay in the first-level cache. A result depends only on
//! its weight row and its activation row.

use crate::{Kernel, Pool, SharedMut};

/// A task has at least this many weights times activations, so that claiming it costs little beside it.
const TASK_PRODUCTS: usize = 1 << 15;

/// `y[r, o] = weights[o] · x[r]` for `n_rows` activation rows and `n_out` weight rows of `n_in` elements.
///
/// `x` holds `n_rows` rows in the kernel's activation form, one after the other; `y` is row-major `[n_rows, n_out]`.
///
/// # Panics
/// A length does not fit.
#[expect(clippy::too_many_arguments, reason = "three slices with their shapes")]
pub fn matmul(
    pool: &Pool,
    kernel: Kernel,
    weights: &[u8],
    n_in: usize,
    n_out: usize,
    x: &[u8],
    n_rows: usize,
    y: &mut [f32],
) {
    matmul_batched(pool, kernel, weights, n_in, n_out, 1, x, n_rows, y);
}

/// `n_batch` independent matrices, such as one per attention head, each with its own input:
/// `y[r, b, o] = weights[b, o] · x[r, b]`.
///
/// `weights` is `[n_batch, n_out]` rows, `x` is `[n_rows, n_batch]` activation rows, `y` is row-major `[n_rows, n_batch, n_out]`.
///
/// # Panics
/// A length does not fit.
#[expect(clippy::too_many_arguments, reason = "three slices with their shapes")]
pub fn matmul_batched(
    pool: &Pool,
    kernel: Kernel,
    weights: &[u8],
    n_in: usize,
    n_out: usize,
    n_batch: usize,
    x: &[u8],
    n_rows: usize,
    y: &mut [f32],
) {
    let (row_bytes, x_bytes) = (kernel.row_bytes(n_in), kernel.x_bytes(n_in));
    let total = n_batch * n_out;
    assert_eq!(weights.len(), total * row_bytes, "weights length");
    assert_eq!(x.len(), n_rows * n_batch * x_bytes, "activations length");
    assert_eq!(y.len(), n_rows * total, "output length");
    if y.is_empty() {
        return;
    }
    let rows_per_task = rows_per_task(pool.threads(), total, n_in * n_rows);
    let y = SharedMut::new(y);
    pool.run(total.div_ceil(rows_per_task), &|task| {
        let from = task * rows_per_task;
        for row in from..total.min(from + rows_per_task) {
            let w = &weights[row * row_bytes..][..row_bytes];
            let b = row / n_out;
            for r in 0..n_rows {
                let value = kernel.dot(w, &x[(r * n_batch + b) * x_bytes..][..x_bytes], n_in);
                // SAFETY: element (r, row) belongs to the only task that has this weight row.
                unsafe { y.write(r * total + row, value) };
            }
        }
    });
}

/// Output rows per task: enough products to be worth claiming, yet several tasks per thread so that a slow one can be
/// made up for.
fn rows_per_task(threads: usize, rows: usize, products_per_row: usize) -> usize {
    let worthwhile = TASK_PRODUCTS.div_ceil(products_per_row.max(1));
    let even = rows.div_ceil(threads * 8);
    worthwhile.max(even.min(64)).clamp(1, rows)
}
