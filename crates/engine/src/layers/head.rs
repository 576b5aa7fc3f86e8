//! Final norm and logits.

use crate::backend::{Buf, View, WeightId};
use crate::load::Loader;
use crate::models::Step;
use crate::{Error, Want};

/// Rows of logits computed per matmul, so that asking for every position stays within a small buffer.
const ROWS: usize = 8;

/// The end of every model.
pub(crate) struct Head {
    norm: WeightId,   // [hidden]
    output: WeightId, // [vocab, hidden]
    hidden_size: usize,
    vocab_size: usize,
    eps: f32,
    logits: Buf, // [rows, vocab]
    rows: usize,
    /// Where logits are softly bounded.
    pub(crate) soft_cap: Option<f32>,
}

impl Head {
    /// `token_embd` is the head, too, of files that have no other.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        token_embd: WeightId,
        [hidden_size, vocab_size]: [usize; 2],
        eps: f32,
        ubatch: usize,
    ) -> Result<Self, Error> {
        let norm = loader.vector("output_norm.weight", hidden_size)?;
        let output = if loader.has("output.weight") {
            loader.matrix("output.weight", hidden_size, vocab_size)?
        } else {
            token_embd
        };
        let rows = ROWS.min(ubatch);
        Ok(Self {
            norm,
            output,
            hidden_size,
            vocab_size,
            eps,
            logits: loader.buffer(rows * vocab_size),
            rows,
            soft_cap: None,
        })
    }

    /// Hands the logits of the wanted rows of `x` to the step's sink; `normed` is scratch of as many rows.
    pub(crate) fn forward(&self, step: &mut Step<'_>, x: View, normed: View) {
        let rows = step.tokens.len();
        let mut row = match step.want {
            Want::None => return,
            Want::Last => rows - 1,
            Want::All => 0,
        };
        let b = &mut *step.backend;
        let logits = View::rows(self.logits, self.vocab_size);
        while row < rows {
            let n = self.rows.min(rows - row);
            b.rms_norm(x.shifted(row * self.hidden_size), self.norm, self.eps, n, normed);
            b.matmul(normed, n, &[(self.output, logits)]);
            if let Some(cap) = self.soft_cap {
                b.soft_cap(logits, cap, self.vocab_size, n);
            }
            for i in 0..n {
                (step.sink)(step.start + row + i, b.read(logits, i, self.vocab_size));
            }
            row += n;
        }
    }
}
