//! Weights times activation rows, split over the pool by output rows.
//!
//! Inside a weight row all activation rows are visited, so the weights stay in the first-level cache. A result depends only on
//! its weight row and its activation row.

use crate::{Kernel, Pool, SharedMut, TILE_COLUMNS, TILE_ROWS};

/// A task has at least this many weights times activations, so that claiming it costs little beside it.
const TASK_PRODUCTS: usize = 1 << 15;
/// Weight rows that several activation rows pass by, one call of a kernel each.
const ROWS_TOGETHER: usize = 4;

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
    let y = SharedMut::new(y);
    if n_batch == 1 && kernel.prefers_tiles(n_rows) {
        return tiles(pool, kernel, weights, n_in, n_out, x, n_rows, &y);
    }
    let rows_per_task = rows_per_task(pool.threads(), total, n_in * n_rows);
    pool.run(total.div_ceil(rows_per_task), &|task| {
        let last = total.min((task + 1) * rows_per_task);
        let mut row = task * rows_per_task;
        while row < last {
            // A few rows at a time stay in the first-level cache while the activations pass by.
            let (b, count) = (row / n_out, (last - row).min(n_out - row % n_out).min(ROWS_TOGETHER));
            let w = &weights[row * row_bytes..][..count * row_bytes];
            for r in 0..n_rows {
                // SAFETY: elements (r, row..) belong to the only task that has these weight rows.
                let y = unsafe { y.part(r * total + row, count) };
                kernel.rows(w, &x[(r * n_batch + b) * x_bytes..][..x_bytes], n_in, y);
            }
            row += count;
        }
    });
}

/// Many activation rows: tiles of weight rows, unpacked once per [`TILE_COLUMNS`] of them.
#[expect(clippy::too_many_arguments, reason = "three slices with their shapes")]
fn tiles(
    pool: &Pool,
    kernel: Kernel,
    weights: &[u8],
    n_in: usize,
    n_out: usize,
    x: &[u8],
    n_rows: usize,
    y: &SharedMut<'_, f32>,
) {
    let (row_bytes, x_bytes) = (kernel.row_bytes(n_in), kernel.x_bytes(n_in));
    pool.run(n_out.div_ceil(TILE_ROWS), &|task| {
        let row = task * TILE_ROWS;
        let count = TILE_ROWS.min(n_out - row);
        let w = &weights[row * row_bytes..][..count * row_bytes];
        let mut columns: [&[u8]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
        let mut tile = [[0.0; TILE_ROWS]; TILE_COLUMNS];
        for first in (0..n_rows).step_by(TILE_COLUMNS) {
            let n = TILE_COLUMNS.min(n_rows - first);
            for (c, column) in columns[..n].iter_mut().enumerate() {
                *column = &x[(first + c) * x_bytes..][..x_bytes];
            }
            kernel.tile(w, count, &columns[..n], n_in, &mut tile[..n]);
            for (c, values) in tile[..n].iter().enumerate() {
                // SAFETY: elements (first + c, row..) belong to the only task that has these weight rows.
                unsafe { y.part((first + c) * n_out + row, count) }.copy_from_slice(&values[..count]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::floats;
    use crate::{FORMATS, Isa};

    fn encoded(kernel: Kernel, x: &[f32]) -> Vec<u8> {
        let quantize = kernel.format().quantize.unwrap();
        let mut bytes = vec![0; kernel.row_bytes(x.len())];
        quantize(x, &mut bytes);
        bytes
    }

    fn activations(kernel: Kernel, x: &[f32], n: usize) -> Vec<u8> {
        let form = kernel.format().activation;
        let mut bytes = vec![0; x.len() / n * form.row_bytes(n)];
        for (x, out) in x.chunks(n).zip(bytes.chunks_mut(form.row_bytes(n))) {
            form.quantize(x, out);
        }
        bytes
    }

    /// Neither the threads nor the rows beside it change a row's result.
    #[test]
    fn a_row_does_not_depend_on_its_company() {
        let (n_in, n_out, n_batch, n_rows) = (64, 37, 3, 5);
        for format in FORMATS.iter().filter(|f| f.quantize.is_some()) {
            let kernel = format.kernel(Isa::best());
            let weights = encoded(kernel, &floats(n_batch * n_out * n_in, 1, 1.0));
            let x = activations(kernel, &floats(n_rows * n_batch * n_in, 2, 1.0), n_in);
            let (w_bytes, x_bytes) = (kernel.row_bytes(n_in), kernel.x_bytes(n_in));
            for threads in [1, 2, 5] {
                let pool = Pool::new(threads);
                let mut y = vec![f32::NAN; n_rows * n_batch * n_out];
                matmul_batched(&pool, kernel, &weights, n_in, n_out, n_batch, &x, n_rows, &mut y);
                for r in 0..n_rows {
                    for b in 0..n_batch {
                        let x = &x[(r * n_batch + b) * x_bytes..][..x_bytes];
                        let y = &y[(r * n_batch + b) * n_out..][..n_out];
                        let w = &weights[b * n_out * w_bytes..][..n_out * w_bytes];
                        let mut alone = vec![f32::NAN; n_out];
                        matmul(&pool, kernel, w, n_in, n_out, x, 1, &mut alone);
                        assert_eq!(y, alone);
                        kernel.rows(w, x, n_in, &mut alone);
                        assert_eq!(y, alone);
                    }
                }
            }
        }
    }

    #[test]
    fn is_a_matrix_product() {
        let (n_in, n_out, n_rows) = (100, 11, 3);
        let kernel = crate::format(0).unwrap().kernel(Isa::best());
        let (w, x) = (floats(n_out * n_in, 3, 1.0), floats(n_rows * n_in, 4, 1.0));
        let mut y = vec![0.0; n_rows * n_out];
        let (w_bytes, x_bytes) = (encoded(kernel, &w), activations(kernel, &x, n_in));
        matmul(&Pool::new(2), kernel, &w_bytes, n_in, n_out, &x_bytes, n_rows, &mut y);
        for (i, y) in y.iter().enumerate() {
            let (r, o) = (i / n_out, i % n_out);
            let want: f64 = (0..n_in).map(|k| f64::from(w[o * n_in + k]) * f64::from(x[r * n_in + k])).sum();
            assert!((f64::from(*y) - want).abs() < 1e-5);
        }
    }

    #[test]
    fn empty_shapes_are_fine() {
        let kernel = crate::format(8).unwrap().kernel(Isa::best());
        let pool = Pool::new(2);
        matmul(&pool, kernel, &[], 32, 0, &[0; 40], 1, &mut []);
        matmul(&pool, kernel, &[0; 34], 32, 1, &[], 0, &mut []);
        let mut y = [1.0; 2];
        matmul(&pool, kernel, &[], 0, 2, &[], 1, &mut y);
        assert_eq!(y, [0.0; 2]);
    }

    #[test]
    #[should_panic(expected = "weights length")]
    fn short_weights_are_refused() {
        let kernel = crate::format(8).unwrap().kernel(Isa::best());
        matmul(&Pool::new(1), kernel, &[0; 33], 32, 1, &[0; 40], 1, &mut [0.0]);
    }

    #[test]
    fn tasks_cover_all_rows_sensibly() {
        for (threads, rows, products) in
            [(1, 1, 1), (2, 7, 6144), (16, 2048, 6144), (2, 100_000, 32), (3, 5, 1 << 20)]
        {
            let per_task = rows_per_task(threads, rows, products);
            assert!((1..=rows).contains(&per_task));
        }
    }
}
