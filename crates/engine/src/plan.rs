//! What loading will take, before anything is loaded.

use experts::{BankPlan, BankSize, LayerExperts};
use files::{Checkpoint, ExpertTensor, Family};

use crate::load::{Loader, Matrix};
use crate::memory::Memory;
use crate::models::{self, ModelInfo};
use crate::options::Promote;
use crate::{EngineOptions, Error, packed};

/// One line of the plan.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PlanRow {
    /// What it is.
    pub name: &'static str,
    /// Bytes it takes.
    pub bytes: u64,
    /// How the number comes about.
    pub note: String,
}

/// Every byte that loading allocates, and what may be used.
#[derive(Debug, Clone, serde::Serialize)]
pub struct MemoryPlan {
    /// The parts.
    pub rows: Vec<PlanRow>,
    /// Their sum.
    pub total_bytes: u64,
    /// Memory that may be used.
    pub available_bytes: u64,
    /// The bank; `None` where the routed experts are left out.
    pub bank: Option<BankPlan>,
    /// The model.
    pub model: ModelInfo,
    /// What a user should know about it, one sentence each.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub(crate) matrices: Vec<Matrix>,
}

/// Kept free for the system when the bank sizes itself: an eighth of what is available, at most 2 GiB.
const RESERVE_BYTES_MAX: u64 = 2 << 30;

/// What a bank that sizes itself leaves to the system.
pub(crate) fn reserve_bytes(available_bytes: u64) -> u64 {
    (available_bytes / 8).min(RESERVE_BYTES_MAX)
}

impl MemoryPlan {
    pub(crate) fn new(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<Self, Error> {
        check_options(options)?;
        let mut loader = Loader::dry(checkpoint, options);
        let model = (models::find(checkpoint)?.load)(&mut loader)?;
        let (info, ledger) = (model.info().clone(), loader.ledger());
        let available_bytes = options.memory_bytes.unwrap_or_else(|| Memory::now().available_bytes);
        let mut notes = Vec::new();
        let bank = if options.shared_only {
            None
        } else {
            let layers = expert_layers(checkpoint, &info)?;
            let bank = match bank_plan(options, available_bytes, ledger.total(), info.top_k, &layers) {
                // Nobody asked for that size: what is too small is the memory, not the bank.
                Err(Error::Experts(experts::Error::DoesNotFit { needed, .. }))
                    if options.bank == BankSize::Auto =>
                {
                    let rows = rows(&info, options, &ledger, None);
                    smallest_bank(needed, &rows, available_bytes, info.top_k, &layers)?
                }
                planned => planned?,
            };
            notes = packed::notes(&layers, &bank, kernels::Isa::current());
            Some(bank.with_spares(options.spares()))
        };
        let rows = rows(&info, options, &ledger, bank.as_ref());
        let total_bytes = rows.iter().map(|row| row.bytes).sum();
        if total_bytes > available_bytes {
            return Err(does_not_fit(&rows, bank.as_ref(), available_bytes));
        }
        Ok(Self {
            rows,
            total_bytes,
            available_bytes,
            bank,
            model: info,
            notes,
            matrices: loader.take_matrices(),
        })
    }
}

/// What banks of any size are planned from: the model, and the experts that its decoder runs. Reads headers only.
pub fn expert_geometry(
    checkpoint: &Checkpoint,
    options: &EngineOptions,
) -> Result<(ModelInfo, Vec<LayerExperts>), Error> {
    check_options(options)?;
    let model = (models::find(checkpoint)?.load)(&mut Loader::dry(checkpoint, options))?;
    let info = model.info().clone();
    let layers = expert_layers(checkpoint, &info)?;
    Ok((info, layers))
}

/// One token's working set, where that fits at least without what is kept free for the system; else what it would take.
fn smallest_bank(
    floor_bytes: u64,
    rows: &[PlanRow],
    available_bytes: u64,
    top_k: u32,
    layers: &[LayerExperts],
) -> Result<BankPlan, Error> {
    let needed_bytes = rows.iter().map(|row| row.bytes).sum::<u64>() + floor_bytes;
    if needed_bytes <= available_bytes {
        return Ok(BankPlan::new(BankSize::Bytes(floor_bytes), 0, top_k, layers)?);
    }
    let parts = rows.iter().map(|row| (row.name, row.bytes)).chain([("smallest expert bank", floor_bytes)]);
    Err(Error::DoesNotFit { needed_bytes, available_bytes, parts: parts.collect(), largest_bank_bytes: None })
}

/// The bank, with room for packed experts where they are wanted and pay.
fn bank_plan(
    options: &EngineOptions,
    available_bytes: u64,
    taken_bytes: u64,
    top_k: u32,
    layers: &[LayerExperts],
) -> Result<BankPlan, Error> {
    let reserve = reserve_bytes(available_bytes);
    let for_bank = available_bytes.saturating_sub(taken_bytes + reserve);
    let plain = || BankPlan::new(options.bank, for_bank, top_k, layers);
    if options.promote == Promote::Never {
        return Ok(plain()?);
    }
    // The same expert in packed form, through which every packed one passes.
    let one = BankPlan::with_packed(BankSize::All, 0, top_k, layers, &packed_bytes)?.packed_bytes_max();
    let for_bank = for_bank.saturating_sub(one);
    let packed = BankPlan::with_packed(options.bank, for_bank, top_k, layers, &packed_bytes);
    if options.promote == Promote::Always {
        let packed = packed?;
        let already = layers.iter().flat_map(|layer| &layer.tensors).any(|tensor| tensor.form.is_some());
        if !packed.packs() && !already {
            let why = "no expert tensor has a packed form on this processor".to_owned();
            return Err(Error::Option { option: "--promote", why });
        }
        return Ok(packed);
    }
    let fits = |packed: &BankPlan| {
        let whole = packed.packs() && packed.is_resident();
        whole && taken_bytes + packed.arena_bytes() + one <= available_bytes
    };
    match packed {
        Ok(packed) if fits(&packed) => Ok(packed),
        _ => Ok(plain()?),
    }
}

/// Bytes of one of the tensor's experts in packed form, if it is not in one already.
fn packed_bytes(tensor: &ExpertTensor) -> Option<u64> {
    if tensor.form.is_some() {
        return None;
    }
    let packed = packed_form(tensor.ty.id())?;
    Some(tensor.expert_bytes / packed.source.block_bytes as u64 * packed.format.block_bytes as u64)
}

/// The packed form of a format, where it pays on this processor.
pub(crate) fn packed_form(id: u32) -> Option<&'static kernels::Packed> {
    kernels::packed(id).filter(|packed| packed.runs_on(kernels::Isa::current()))
}

/// Says what takes how much, and the largest bank that would fit.
fn does_not_fit(rows: &[PlanRow], bank: Option<&BankPlan>, available_bytes: u64) -> Error {
    let needed_bytes: u64 = rows.iter().map(|row| row.bytes).sum();
    let without_bank = needed_bytes - bank.map_or(0, BankPlan::arena_bytes);
    let room = available_bytes.saturating_sub(without_bank);
    Error::DoesNotFit {
        needed_bytes,
        available_bytes,
        parts: rows.iter().map(|row| (row.name, row.bytes)).collect(),
        largest_bank_bytes: bank.and_then(|bank| (room >= bank.floor_bytes()).then_some(room)),
    }
}

fn rows(
    info: &ModelInfo,
    options: &EngineOptions,
    ledger: &crate::load::Ledger,
    bank: Option<&BankPlan>,
) -> Vec<PlanRow> {
    let [batch, ubatch] = options.rows(info.context);
    let mut rows = vec![
        PlanRow {
            name: "dense weights",
            bytes: ledger.weights,
            note: format!("resident, {} layers", info.n_layers),
        },
        PlanRow {
            name: "cache",
            bytes: ledger.caches,
            note: format!("{} positions of {:?}", info.context, options.cache_type).to_lowercase(),
        },
        PlanRow {
            name: "compute buffers",
            bytes: ledger.buffers + ledger.selections + ledger.scratch + ledger.ropes,
            note: format!("batches of {batch} by {ubatch} tokens, {} threads", options.threads_max()),
        },
    ];
    if let Some(bank) = bank {
        rows.push(PlanRow { name: "expert bank", bytes: bank.arena_bytes(), note: bank.summary() });
        if bank.packs() {
            let (bytes, note) = (bank.packed_bytes_max(), "one packed expert".to_owned());
            rows.push(PlanRow { name: "packing", bytes, note });
        }
    }
    rows
}

/// The expert tensors of the layers that run.
pub(crate) fn expert_layers(checkpoint: &Checkpoint, info: &ModelInfo) -> Result<Vec<LayerExperts>, Error> {
    info.expert_layers
        .iter()
        .map(|&layer| {
            let tensors: Vec<_> = [Family::Gate, Family::Up, Family::GateUp, Family::Down]
                .into_iter()
                .filter_map(|family| checkpoint.expert(layer, family).cloned())
                .collect();
            if tensors.is_empty() {
                return Err(Error::MissingTensor {
                    tensor: format!("blk.{layer}.ffn_gate_exps.weight"),
                    path: checkpoint.root().to_owned(),
                });
            }
            Ok(LayerExperts { layer, n_expert: info.n_experts, tensors })
        })
        .collect()
}

fn check_options(options: &EngineOptions) -> Result<(), Error> {
    let range = |option, value: u64, min: u64, max: u64| {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(Error::Option { option, why: format!("{value} is not in {min}..={max}") })
    };
    range("--ubatch", u64::from(options.ubatch), 1, 4096)?;
    range("--batch", u64::from(options.batch), 1, 65536)?;
    range("--threads", options.threads() as u64, 1, 1024)?;
    range("--threads-batch", options.threads_batch() as u64, 1, 1024)?;
    range("snapshots", u64::from(options.snapshots), 0, 1024)?;
    range("--io-threads", u64::from(options.io_threads), 1, 256)?;
    range("--io-split", u64::from(options.io_split.unwrap_or(1)), 1, 16)?;
    if !(options.latent_eps.is_finite() && options.latent_eps >= 0.0) {
        return Err(Error::Option {
            option: "--latent-eps",
            why: format!("{} is no epsilon", options.latent_eps),
        });
    }
    Ok(())
}
