//! Hot experts in packed form: rewritten in their slots by all threads, family by family.

use experts::{Bank, SlotId};
use files::Family;
use kernels::Pool;

use super::CpuBackend;
use crate::backend::Routed;
use crate::plan::packed_form;

/// Bytes of a family that one task packs.
const TASK_BYTES: usize = 1 << 15;
/// Steps of more tokens are prompts.
const PROMPT_TOKENS: usize = 32;

impl CpuBackend {
    /// Packs the experts of the wave that the bank says are worth it. Not inside a long prompt: its tiles unpack the weights anyway, so
    /// packing there costs time and saves none.
    pub(super) fn pack_hot_experts(&mut self, bank: &mut Bank, call: &Routed<'_>) {
        if call.n_tokens > PROMPT_TOKENS {
            return;
        }
        for member in 0..bank.wave().len() {
            let slot = bank.wave()[member].slot;
            if !bank.wants_packing(slot) {
                continue;
            }
            let mut end = 0;
            for (family, format) in families(call) {
                let range = bank.packed_location(slot, family);
                end = end.max(range.end);
                pack(&self.pool, bank, slot, family, format, &mut self.packing.as_mut_slice()[range]);
            }
            bank.store_packed(slot, &self.packing.as_slice()[..end]);
        }
    }
}

/// The families of a layer's experts with their formats.
fn families(call: &Routed<'_>) -> impl Iterator<Item = (Family, u32)> {
    let [gate, up, down] = call.formats;
    let pair = if call.fused {
        [Some((Family::GateUp, gate)), None]
    } else {
        [Some((Family::Gate, gate)), Some((Family::Up, up))]
    };
    pair.into_iter().flatten().chain([(Family::Down, down)])
}

/// One family of the expert in a slot, as it will stand there.
fn pack(pool: &Pool, bank: &Bank, slot: SlotId, family: Family, format: u32, out: &mut [u8]) {
    let source = bank.weights(slot, family);
    let Some(packed) = packed_form(format) else {
        return out.copy_from_slice(source);
    };
    let (from, to) = (packed.source.block_bytes, packed.format.block_bytes);
    let blocks = TASK_BYTES / to;
    pool.run_pieces(out, blocks * to, &|task, out| {
        let source = &source[task * blocks * from..];
        (packed.pack)(&source[..out.len() / to * from], out);
    });
}
