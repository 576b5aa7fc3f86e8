//! Operations that go row by row: on the calling thread for few rows, over the pool for many.

use kernels::ops::{self, Glu, Pairing};
use kernels::{Pool, SharedMut};

use super::CpuBackend;
use super::memory::{Buffers, Scratch, floats, floats_mut};
use crate::backend::{Heads, RopeId, View, WeightId};

/// Elements from which on rows are worth a dispatch.
const TOGETHER: usize = 1 << 16;

/// Runs `row(0) … row(rows - 1)`, each of about `elements` elements.
pub(super) fn each_row(pool: &Pool, rows: usize, elements: usize, row: &(dyn Fn(usize) + Sync)) {
    if rows * elements < TOGETHER {
        return (0..rows).for_each(row);
    }
    let per_task = rows.div_ceil(4 * pool.threads());
    pool.run(rows.div_ceil(per_task), &|task| {
        (task * per_task..rows.min((task + 1) * per_task)).for_each(row);
    });
}

/// `out[t] = f(x[t])`, rows of `width`; `f` reads one row and fills another, and `out` may be `x`.
fn map(
    pool: &Pool,
    buffers: &mut Buffers,
    scratch: &mut Scratch,
    (x, out): (View, View),
    width: usize,
    rows: usize,
    f: &(dyn Fn(&[f32], &mut [f32]) + Sync),
) {
    if x.buf != out.buf {
        let (from, to) = buffers.two(x, out);
        let to = SharedMut::new(to);
        return each_row(pool, rows, width, &|t| {
            // SAFETY: each row of `out` belongs to one call.
            let to = unsafe { to.part(out.offset + t * out.stride, width) };
            f(&from[x.offset + t * x.stride..][..width], to);
        });
    }
    let data = buffers.shared(x);
    let scratch = SharedMut::new(floats_mut(&mut scratch.activations));
    each_row(pool, rows, width, &|t| {
        // SAFETY: each row of the scratch, of `x` and of `out` belongs to one call; what was read of `x` is no longer
        // borrowed when `out` is written.
        unsafe {
            let result = scratch.part(t * width, width);
            f(data.read(x.offset + t * x.stride, width), result);
            data.part(out.offset + t * out.stride, width).copy_from_slice(result);
        }
    });
}

impl CpuBackend {
    pub(super) fn rms_norm_rows(&mut self, x: View, weight: WeightId, eps: f32, rows: usize, out: View) {
        let Self { pool, buffers, scratch, weights, .. } = self;
        let weight = &weights[weight.0 as usize];
        map(pool, buffers, scratch, (x, out), weight.n_in, rows, &|x, out| {
            ops::rms_norm(x, Some(floats(&weight.bytes)), eps, out);
        });
    }

    pub(super) fn layer_norm_rows(
        &mut self,
        x: View,
        weight: WeightId,
        bias: WeightId,
        eps: f32,
        rows: usize,
    ) {
        let width = self.vector(weight).len();
        let Self { pool, buffers, scratch, weights, .. } = self;
        let [weight, bias] = [weight, bias].map(|id| floats(&weights[id.0 as usize].bytes));
        map(pool, buffers, scratch, (x, x), width, rows, &|x, out| {
            ops::layer_norm(x, weight, bias, eps, out)
        });
    }

    pub(super) fn rope_rows(&mut self, table: RopeId, x: Heads, start: usize, rows: usize) {
        let Self { pool, buffers, ropes, .. } = self;
        let table = &mut ropes[table.0 as usize];
        table.prepare(start, rows);
        let (table, data, width) = (&*table, buffers.shared(x.rows), 2 * table.at(0).0.len());
        let rotate: fn(&mut [f32], &[f32], &[f32]) = match table.pairing {
            Pairing::Interleaved => ops::rope_interleaved,
            Pairing::Halves => ops::rope_halves,
        };
        each_row(pool, rows, x.count * width, &|t| {
            let (cos, sin) = table.at(t);
            for h in 0..x.count {
                let head = x.part(h);
                // SAFETY: each row belongs to one call, and the heads of a row are rotated one after the other.
                rotate(unsafe { data.part(head.offset + t * head.stride, width) }, cos, sin);
            }
        });
    }

    pub(super) fn hadamard_rows(&mut self, x: Heads, width: usize, rows: usize) {
        let data = self.buffers.shared(x.rows);
        each_row(&self.pool, rows, x.count * width, &|t| {
            for h in 0..x.count {
                let head = x.part(h);
                // SAFETY: as for rope.
                ops::hadamard(unsafe { data.part(head.offset + t * head.stride, width) });
            }
        });
    }

    pub(super) fn copy_rows(&mut self, from: Heads, to: Heads, width: usize, rows: usize) {
        let (source, target) = self.buffers.two(from.rows, to.rows);
        let target = SharedMut::new(target);
        each_row(&self.pool, rows, from.count * width, &|t| {
            for h in 0..from.count {
                let (from, to) = (from.part(h), to.part(h));
                // SAFETY: as for rope.
                let target = unsafe { target.part(to.offset + t * to.stride, width) };
                target.copy_from_slice(&source[from.offset + t * from.stride..][..width]);
            }
        });
    }

    pub(super) fn add_bias_rows(&mut self, x: View, bias: WeightId, rows: usize) {
        let bias = floats(&self.weights[bias.0 as usize].bytes);
        let data = self.buffers.shared(x);
        each_row(&self.pool, rows, bias.len(), &|t| {
            // SAFETY: each row belongs to one call.
            let x = unsafe { data.part(x.offset + t * x.stride, bias.len()) };
            x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        });
    }

    /// `f(x[t])`, in place.
    pub(super) fn change_rows(
        &mut self,
        x: View,
        width: usize,
        rows: usize,
        f: &(dyn Fn(&mut [f32]) + Sync),
    ) {
        let data = self.buffers.shared(x);
        each_row(&self.pool, rows, width, &|t| {
            // SAFETY: each row belongs to one call.
            f(unsafe { data.part(x.offset + t * x.stride, width) });
        });
    }

    /// `x[t] = f(x[t], y[t])` element by element.
    pub(super) fn zip_rows(&mut self, x: View, y: View, width: usize, rows: usize, f: Zip) {
        let (from, to) = self.buffers.two(y, x);
        let to = SharedMut::new(to);
        let scratch = SharedMut::new(floats_mut(&mut self.scratch.activations));
        each_row(&self.pool, rows, width, &|t| {
            let y = &from[y.offset + t * y.stride..][..width];
            // SAFETY: each row of `x`, and of the scratch, belongs to one call.
            let x = unsafe { to.part(x.offset + t * x.stride, width) };
            match f {
                Zip::Add => x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
                Zip::Glu(activation) => {
                    // SAFETY: as above.
                    let product = unsafe { scratch.part(t * width, width) };
                    activation.apply(x, y, product);
                    x.copy_from_slice(product);
                }
            }
        });
    }
}

/// How two rows become one.
#[derive(Clone, Copy)]
pub(super) enum Zip {
    /// `x + y`.
    Add,
    /// `act(x) * y`.
    Glu(Glu),
}
