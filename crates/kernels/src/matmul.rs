//! Weights times activation rows, split over the pool by output rows.
//!
//! Inside a group of weight rows all activation rows are visited, so the weights stay in a near cache. A result depends only on
//! its weight row and its activation row, so neither the split nor what shares a dispatch can change it.

use crate::{Kernel, Pool, SharedMut, TILE_COLUMNS, TILE_ROWS};

/// A task has at least this many weights times activations, so that claiming it costs little beside it.
const TASK_PRODUCTS: usize = 1 << 15;
/// Weight rows that several activation rows pass by, one call of a kernel each.
const ROWS_TOGETHER: usize = 4;
/// Output rows of a task at most, unless they are too short to be worth claiming.
const TASK_ROWS: usize = 64;
/// Tasks per thread that even out threads of different speed.
const TASKS_PER_THREAD: usize = 8;

/// A weight matrix, or several that belong to different inputs, such as one per attention head:
/// `y[r, b, o] = weights[b, o] · x[r, b]`.
pub struct Product<'a> {
    /// What the weights are.
    pub kernel: Kernel,
    /// `[n_batch, n_out]` rows.
    pub weights: &'a [u8],
    /// Elements of a weight row.
    pub n_in: usize,
    /// Output rows per matrix.
    pub n_out: usize,
    /// Matrices; 1 for a plain one.
    pub n_batch: usize,
    /// `[n_rows, n_batch]` activation rows in the kernel's activation form, one after the other.
    pub x: &'a [u8],
    /// `[n_rows, n_batch, n_out]`.
    pub y: SharedMut<'a, f32>,
}

/// All products in one dispatch, `n_rows` activation rows each.
///
/// # Panics
/// A length does not fit.
pub fn matmul(pool: &Pool, products: &[Product<'_>], n_rows: usize) {
    products.iter().for_each(|product| product.check(n_rows));
    let total: usize = products.iter().map(Product::rows).sum();
    let n_tasks = |product: &Product<'_>| product.tasks(pool.threads(), total, n_rows).count();
    pool.run(products.iter().map(n_tasks).sum(), &|mut task| {
        for product in products {
            let tasks = product.tasks(pool.threads(), total, n_rows);
            if task < tasks.count() {
                return product.run(&tasks, task, n_rows);
            }
            task -= tasks.count();
        }
    });
}

/// How the outputs of a product are cut: groups of weight rows, and for tiles groups of columns.
struct Tasks {
    rows: usize,
    row_groups: usize,
    columns: usize,
    column_groups: usize,
    tiled: bool,
}

impl Tasks {
    fn count(&self) -> usize {
        self.row_groups * self.column_groups
    }
}

impl Product<'_> {
    fn check(&self, n_rows: usize) {
        let (row_bytes, x_bytes) = (self.kernel.row_bytes(self.n_in), self.kernel.x_bytes(self.n_in));
        assert_eq!(self.weights.len(), self.rows() * row_bytes, "weights length");
        assert_eq!(self.x.len(), n_rows * self.n_batch * x_bytes, "activations length");
        assert_eq!(self.y.len(), n_rows * self.rows(), "output length");
    }

    /// Weight rows of all matrices.
    fn rows(&self) -> usize {
        self.n_batch * self.n_out
    }

    /// `total` is the number of weight rows of the whole dispatch.
    fn tasks(&self, threads: usize, total: usize, n_rows: usize) -> Tasks {
        if self.rows() == 0 || n_rows == 0 {
            return Tasks { rows: 1, row_groups: 0, columns: 1, column_groups: 0, tiled: false };
        }
        let tiled = self.kernel.prefers_tiles(n_rows);
        // A task of tiles is a whole number of them where the matrix is tall enough.
        let rows = match rows_per_task(threads, total, self.n_in * n_rows) {
            rows if tiled => rows.next_multiple_of(TILE_ROWS).min(TASK_ROWS),
            rows => rows.min(self.rows()),
        };
        let row_groups = self.rows().div_ceil(rows);
        // Weights are unpacked once per so many columns in any case, so that cutting there costs nothing.
        let split = tiled && total.div_ceil(rows) < threads * TASKS_PER_THREAD;
        let columns = if split { TILE_COLUMNS } else { n_rows };
        Tasks { rows, row_groups, columns, column_groups: n_rows.div_ceil(columns), tiled }
    }

    fn run(&self, tasks: &Tasks, task: usize, n_rows: usize) {
        let (group, columns) = (task / tasks.column_groups, task % tasks.column_groups * tasks.columns);
        let columns = columns..n_rows.min(columns + tasks.columns);
        let last = self.rows().min((group + 1) * tasks.rows);
        let mut row = group * tasks.rows;
        while row < last {
            // Up to the end of the matrix.
            let count = (last - row).min(self.n_out - row % self.n_out);
            if tasks.tiled {
                self.tiles(row, count, columns.clone());
            } else {
                self.few(row, count, columns.clone());
            }
            row += count;
        }
    }

    fn weights(&self, row: usize, count: usize) -> &[u8] {
        let row_bytes = self.kernel.row_bytes(self.n_in);
        &self.weights[row * row_bytes..][..count * row_bytes]
    }

    /// Activation row `r` of the matrix that weight row `row` belongs to.
    fn column(&self, r: usize, row: usize) -> &[u8] {
        let x_bytes = self.kernel.x_bytes(self.n_in);
        &self.x[(r * self.n_batch + row / self.n_out) * x_bytes..][..x_bytes]
    }

    /// Few activation rows: a few weight rows at a time stay in the first-level cache while they pass by.
    fn few(&self, first: usize, count: usize, columns: std::ops::Range<usize>) {
        let together = if columns.len() == 1 { count } else { ROWS_TOGETHER };
        for row in (first..first + count).step_by(together) {
            let count = together.min(first + count - row);
            let weights = self.weights(row, count);
            for r in columns.clone() {
                // SAFETY: elements (r, row..) belong to the only task that has these weight rows and columns.
                let y = unsafe { self.y.part(r * self.rows() + row, count) };
                self.kernel.rows(weights, self.column(r, row), self.n_in, y);
            }
        }
    }

    /// Many activation rows: tiles of weight rows, unpacked once per [`TILE_COLUMNS`] of them.
    fn tiles(&self, first: usize, count: usize, columns: std::ops::Range<usize>) {
        let mut x: [&[u8]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
        let mut tile = [[0.0; TILE_ROWS]; TILE_COLUMNS];
        for row in (first..first + count).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(first + count - row);
            for from in columns.clone().step_by(TILE_COLUMNS) {
                let n = TILE_COLUMNS.min(columns.end - from);
                x[..n].iter_mut().enumerate().for_each(|(c, x)| *x = self.column(from + c, row));
                self.kernel.tile(self.weights(row, count), count, &x[..n], self.n_in, &mut tile[..n]);
                for (c, values) in tile[..n].iter().enumerate() {
                    // SAFETY: as in `few`.
                    let y = unsafe { self.y.part((from + c) * self.rows() + row, count) };
                    y.copy_from_slice(&values[..count]);
                }
            }
        }
    }
}

/// Weight rows per task of a dispatch of `rows` of them: enough products to be worth claiming, yet several tasks per thread, so
/// that a slow one can be made up for; in fours, as kernels take them, where there are so many.
///
/// `products_per_row` is the number of multiplications that one weight row takes.
pub fn rows_per_task(threads: usize, rows: usize, products_per_row: usize) -> usize {
    let worthwhile = TASK_PRODUCTS.div_ceil(products_per_row.max(1));
    let even = rows.div_ceil(threads * TASKS_PER_THREAD);
    worthwhile.max(even.min(TASK_ROWS)).next_multiple_of(4)
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

    /// One matrix on its own.
    fn product<'a>(
        kernel: Kernel,
        weights: &'a [u8],
        n_in: usize,
        x: &'a [u8],
        y: &'a mut [f32],
    ) -> Product<'a> {
        let n_out = weights.len() / kernel.row_bytes(n_in).max(1);
        Product { kernel, weights, n_in, n_out, n_batch: 1, x, y: SharedMut::new(y) }
    }

    /// Neither the threads nor the rows, columns and weights beside it change a row's result; enough activation rows for tiles,
    /// for tiles cut by columns, and for neither.
    #[test]
    fn a_row_does_not_depend_on_its_company() {
        let (n_in, n_out, n_batch) = (256, 37, 3);
        for format in FORMATS.iter().filter(|f| f.quantize.is_some()) {
            let kernel = format.kernel(Isa::best());
            let weights = encoded(kernel, &floats(n_batch * n_out * n_in, 1, 1.0));
            let other = encoded(kernel, &floats(5 * n_in, 3, 1.0));
            let (w_bytes, x_bytes) = (kernel.row_bytes(n_in), kernel.x_bytes(n_in));
            for (n_rows, threads) in [(5, 1), (5, 2), (150, 1), (150, 5), (1, 3)] {
                let x = activations(kernel, &floats(n_rows * n_batch * n_in, 2, 1.0), n_in);
                let pool = Pool::new(threads);
                let mut y = vec![f32::NAN; n_rows * n_batch * n_out];
                let mut beside = vec![f32::NAN; n_rows * 5];
                let heads = Product { n_out, n_batch, ..product(kernel, &weights, n_in, &x, &mut y) };
                let small = product(kernel, &other, n_in, &x[..n_rows * x_bytes], &mut beside);
                matmul(&pool, &[heads, small], n_rows);
                let mut alone = vec![f32::NAN; n_out];
                for r in 0..n_rows {
                    for b in 0..n_batch {
                        let x = &x[(r * n_batch + b) * x_bytes..][..x_bytes];
                        kernel.rows(&weights[b * n_out * w_bytes..][..n_out * w_bytes], x, n_in, &mut alone);
                        assert_eq!(&y[(r * n_batch + b) * n_out..][..n_out], alone, "{}", format.name);
                    }
                    kernel.rows(&other, &x[r * x_bytes..][..x_bytes], n_in, &mut alone[..5]);
                    assert_eq!(beside[5 * r..][..5], alone[..5], "{}", format.name);
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
        matmul(&Pool::new(2), &[product(kernel, &w_bytes, n_in, &x_bytes, &mut y)], n_rows);
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
        matmul(&pool, &[], 1);
        matmul(&pool, &[product(kernel, &[], 32, &[0; 40], &mut [])], 1);
        matmul(&pool, &[product(kernel, &[0; 34], 32, &[], &mut [])], 0);
        let mut y = [1.0; 2];
        matmul(&pool, &[Product { n_out: 2, ..product(kernel, &[], 0, &[], &mut y) }], 1);
        assert_eq!(y, [0.0; 2]);
    }

    #[test]
    #[should_panic(expected = "weights length")]
    fn short_weights_are_refused() {
        let kernel = crate::format(8).unwrap().kernel(Isa::best());
        let mut y = [0.0];
        let short = Product { n_out: 1, ..product(kernel, &[0; 33], 32, &[0; 40], &mut y) };
        matmul(&Pool::new(1), &[short], 1);
    }

    #[test]
    fn tasks_cover_all_rows_sensibly() {
        for (threads, rows, products) in
            [(1, 1, 1), (2, 7, 6144), (16, 2048, 6144), (2, 100_000, 32), (3, 5, 1 << 20)]
        {
            let per_task = rows_per_task(threads, rows, products);
            assert!(per_task.is_multiple_of(4) && per_task > 0);
            assert!(per_task <= 64 || (per_task - 4) * products < TASK_PRODUCTS);
        }
    }
}
