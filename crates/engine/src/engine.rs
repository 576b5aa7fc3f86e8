//! A loaded model and its bank: tokens in, logits out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use experts::read::paced::Pace;
use experts::read::probe::{self, Selected};
use experts::{Bank, BankPlan, BankSize, Counters, Policy, Reader, Schedule, Trace, policy};
use files::Checkpoint;
use text::{ChatTemplate, Tokenizer};

use crate::backend::cpu::{CpuBackend, HostArena};
use crate::backend::{Backend, PartTimes, StateChange};
use crate::layers::moe::oracle_of;
use crate::load::Loader;
use crate::memory::{Decision, Memory, Needs, Watch};
use crate::models::{self, Model, ModelInfo, Step};
use crate::plan::reserve_bytes;
use crate::{Dump, EngineOptions, Error, MemoryPlan, ReaderChoice, ReaderKind, Sequence};

/// What a read waits for its first byte at a drive with a given pace: an SSD's.
const PACED_LATENCY: Duration = Duration::from_micros(100);

/// Which positions' logits a forward pass delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// None: the tokens only fill the cache.
    None,
    /// The last position.
    Last,
    /// Every position.
    All,
}

/// Counters since load.
#[derive(Debug, Clone, serde::Serialize)]
pub struct EngineStats {
    /// The bank's; `None` where the routed experts are left out.
    pub bank: Option<experts::Stats>,
    /// Backend and instruction set.
    pub backend: String,
    /// What reads the experts.
    pub reader: String,
    /// Bytes taken at load, as counted by those who allocated them.
    pub allocated_bytes: u64,
    /// The least that the bank was shrunk to since, where memory ran short.
    pub shrunk_to_bytes: Option<u64>,
    /// What a bank that sized itself takes now: it grows again when memory is fine.
    pub bank_bytes: Option<u64>,
}

/// A model ready to run. One thread drives it.
pub struct Engine {
    backend: Box<dyn Backend>,
    bank: Option<Bank>,
    model: Box<dyn Model>,
    options: EngineOptions,
    plan: MemoryPlan,
    tokenizer: Option<Arc<Tokenizer>>,
    chat_template: Option<ChatTemplate>,
    busy: Vec<Arc<AtomicBool>>,
    dump: Option<Dump>,
    host_bytes: u64,
    arena_bytes: Arc<AtomicU64>,
    /// What was found to read the experts fastest, where that was measured.
    measured_reader: Option<Selected>,
    /// Only where the bank has sized itself.
    relief: Option<Relief>,
    /// What loading met without failing, until it is said.
    warnings: Vec<String>,
}

/// Keeps a bank that sized itself from taking memory that others need.
struct Relief {
    watch: Watch,
    needs: Needs,
    /// The smallest it has been, once it was shrunk.
    least_bytes: Option<u64>,
}

impl Relief {
    /// For a bank that has sized itself.
    fn of(plan: &MemoryPlan, options: &EngineOptions) -> Option<Relief> {
        let bank = plan.bank.as_ref().filter(|_| options.bank == BankSize::Auto)?;
        let needs = Needs {
            bank_bytes: bank.arena_bytes(),
            floor_bytes: bank.floor_bytes(),
            planned_bytes: bank.arena_bytes(),
            full: false,
            reserve_bytes: reserve_bytes(plan.available_bytes),
        };
        Some(Relief { watch: Watch::new(), needs, least_bytes: None })
    }
}

impl Engine {
    /// What loading would take. Reads no tensor.
    pub fn plan(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<MemoryPlan, Error> {
        MemoryPlan::new(checkpoint, options)
    }

    /// Loads the dense weights, opens the experts and, with `BankSize::All`, reads them.
    pub fn load(checkpoint: &Checkpoint, options: EngineOptions) -> Result<Self, Error> {
        reader_options(checkpoint, &options, None)?; // what is wrong with the options is said before anything is read
        let (mut measured, options_of_reader) = (None, options.clone());
        let open = |files: &[PathBuf], plan: &BankPlan| {
            measured = measure_reader(checkpoint, &options_of_reader, plan);
            let reader = reader_options(checkpoint, &options_of_reader, measured.as_ref())?;
            Ok(experts::read::open(files, checkpoint.copies(), &reader)?)
        };
        let mut engine = Self::load_with(checkpoint, options, open)?;
        engine.measured_reader = measured;
        Ok(engine)
    }

    /// As [`Engine::load`] with another source of expert bytes (tests inject delays and faults here).
    pub fn load_with_reader(
        checkpoint: &Checkpoint,
        options: EngineOptions,
        make_reader: impl FnOnce(&[PathBuf]) -> Result<Box<dyn Reader>, Error>,
    ) -> Result<Self, Error> {
        Self::load_with(checkpoint, options, |files, _| make_reader(files))
    }

    fn load_with(
        checkpoint: &Checkpoint,
        options: EngineOptions,
        make_reader: impl FnOnce(&[PathBuf], &BankPlan) -> Result<Box<dyn Reader>, Error>,
    ) -> Result<Self, Error> {
        let plan = MemoryPlan::new(checkpoint, &options)?;
        let mut backend: Box<dyn Backend> =
            Box::new(CpuBackend::new(options.threads(), options.threads_batch())?);
        let mut loader = Loader::wet(checkpoint, &options, backend.as_mut());
        let model = (models::find(checkpoint)?.load)(&mut loader)?;
        let mut warnings = std::mem::take(&mut loader.warnings);
        let (host_bytes, weight_bytes) = (loader.host_bytes(), loader.ledger().weights);
        if options.mlock && worth_locking(weight_bytes, &Memory::now()) {
            // Refused beyond a limit that most users have and nobody has to raise; then the system decides, as without.
            backend.lock_weights();
        }
        let arena_bytes = Arc::new(AtomicU64::new(0));
        let bank = match &plan.bank {
            None => None,
            Some(bank_plan) => {
                backend.packing_scratch(bank_plan.packed_bytes_max() as usize);
                let reader = make_reader(checkpoint.files(), bank_plan)?;
                let mut bank = empty_bank(bank_plan, checkpoint.files(), reader, &arena_bytes, &options)?;
                if let Some(path) = &options.trace {
                    bank.set_trace(Trace::create(path)?);
                }
                read_in_advance(&mut bank, &options)?;
                Some(bank)
            }
        };
        let (tokenizer, chat_template) = load_text(checkpoint, model.info(), &mut warnings)?;
        backend.time_parts(true);
        let busy = (0..model.sequences()).map(|_| Arc::default()).collect();
        Ok(Self {
            relief: Relief::of(&plan, &options),
            backend,
            bank,
            model,
            options,
            plan,
            tokenizer,
            chat_template,
            busy,
            dump: None,
            host_bytes,
            arena_bytes,
            measured_reader: None,
            warnings,
        })
    }

    /// This engine with the bank, the reader, the eviction, the schedule and the guesses of other options, just as loading with them would
    /// make them; dense weights, caches, threads and sequences stay. For measurements side by side of what would not fit into memory
    /// twice. The old bank goes before the new one is allocated, so that after an error there is no engine.
    ///
    /// Errors: [`Error::Option`] for options that only a load can change, and those of a load.
    pub fn with_streaming(mut self, checkpoint: &Checkpoint, options: EngineOptions) -> Result<Self, Error> {
        if let Some(option) = self.options.fixed_difference(&options) {
            let why = "it is chosen when the model is loaded, and cannot change afterwards".to_owned();
            return Err(Error::Option { option, why });
        }
        // What this engine itself holds is not available any more, but it was when the first plan was made.
        let memory_bytes = Some(self.plan.available_bytes);
        let plan = MemoryPlan::new(checkpoint, &EngineOptions { memory_bytes, ..options.clone() })?;
        let trace = self.bank.as_mut().and_then(Bank::take_trace);
        self.bank = None;
        self.arena_bytes = Arc::new(AtomicU64::new(0));
        if let Some(bank_plan) = &plan.bank {
            self.backend.packing_scratch(bank_plan.packed_bytes_max() as usize);
            // What was measured at load holds: both sides of a comparison shall read alike.
            if self.measured_reader.is_none() {
                self.measured_reader = measure_reader(checkpoint, &options, bank_plan);
            }
            let reader = reader_options(checkpoint, &options, self.measured_reader.as_ref())?;
            let reader = experts::read::open(checkpoint.files(), checkpoint.copies(), &reader)?;
            let mut bank = empty_bank(bank_plan, checkpoint.files(), reader, &self.arena_bytes, &options)?;
            if let Some(trace) = trace {
                bank.set_trace(trace);
            }
            read_in_advance(&mut bank, &options)?;
            self.bank = Some(bank);
        }
        self.model.set_prefetch(options.prefetch);
        self.relief = Relief::of(&plan, &options);
        (self.plan, self.options) = (plan, options);
        Ok(self)
    }

    /// The tokenizer; `None` for checkpoints without a vocabulary.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// The model's chat template, where it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// What the model is.
    pub fn model(&self) -> &ModelInfo {
        self.model.info()
    }

    /// The options in effect.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The plan that loading followed.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Counters since load.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            bank: self.bank.as_ref().map(|bank| bank.stats().clone()),
            backend: self.backend.describe(),
            reader: self.reader(),
            allocated_bytes: self.backend.allocated_bytes()
                + self.arena_bytes.load(Ordering::Relaxed)
                + self.host_bytes,
            shrunk_to_bytes: self.relief.as_ref().and_then(|relief| relief.least_bytes),
            bank_bytes: self.relief.as_ref().map(|relief| relief.needs.bank_bytes),
        }
    }

    /// What reads the experts and how, for people, with the measurement behind it where there was one.
    pub fn reader(&self) -> String {
        let reader = self.bank.as_ref().map_or_else(|| "none".to_owned(), Bank::describe_reader);
        match &self.measured_reader {
            Some(found) if wants_measuring(&self.options) => format!("{reader}; measured: {}", found.why),
            _ => reader,
        }
    }

    /// Whether the reader was chosen by a measurement at load.
    pub fn reader_was_measured(&self) -> bool {
        self.measured_reader.is_some()
    }

    /// Shrinks or grows the bank to about `bytes` and says how many its slots take now; see [`Bank::resize`]. Nothing that is
    /// computed changes.
    pub fn resize_bank(&mut self, bytes: u64) -> Result<u64, Error> {
        match &mut self.bank {
            Some(bank) => Ok(bank.resize(bytes)?),
            None => Ok(0),
        }
    }

    /// Empties the bank, so that the next tokens find it cold.
    pub fn clear_bank(&mut self) {
        if let Some(bank) = &mut self.bank {
            bank.clear();
        }
    }

    /// Starts or stops measuring where the time of a step goes; on after load.
    pub fn time_parts(&mut self, on: bool) {
        self.backend.time_parts(on);
    }

    /// Where the time went while it was measured, by kind of operation.
    pub fn parts(&self) -> PartTimes {
        self.backend.parts()
    }

    /// Bank counters without a copy.
    pub fn bank_stats(&self) -> Option<&experts::Stats> {
        self.bank.as_ref().map(Bank::stats)
    }

    /// What loading and reading experts met without failing, once each, for people: a file without something that it should have,
    /// a drive that is left out from now on.
    pub fn take_warning(&mut self) -> Option<String> {
        self.warnings.pop().or_else(|| self.bank.as_mut().and_then(Bank::take_warning))
    }

    /// Starts recording selections and expert ids; returns the previous recorder.
    pub fn set_dump(&mut self, dump: Option<Dump>) -> Option<Dump> {
        std::mem::replace(&mut self.dump, dump)
    }

    /// Ends the trace and reports whether every line was written.
    pub fn finish_trace(&mut self) -> Result<(), Error> {
        match self.bank.as_mut().and_then(Bank::take_trace) {
            Some(trace) => Ok(trace.finish()?),
            None => Ok(()),
        }
    }

    /// A fresh sequence. Fails while all planned ones are in use.
    pub fn new_sequence(&self) -> Result<Sequence, Error> {
        let claim = |(slot, busy): (usize, &Arc<AtomicBool>)| {
            let carries = !self.model.states(slot).is_empty();
            Sequence::claim(slot, busy, carries.then_some(self.options.snapshots as usize))
        };
        self.busy.iter().enumerate().find_map(claim).ok_or_else(|| Error::Option {
            option: "sequences",
            why: format!("all {} planned sequences are in use", self.busy.len()),
        })
    }

    /// Keeps what `sequence` holds now, so that [`Sequence::truncate`] can come back to it. Models that carry a state from token to token
    /// need that, and keep as many snapshots as [`EngineOptions::snapshots`] says, the latest ones; the others can come back to every
    /// position anyway.
    pub fn save(&mut self, sequence: &mut Sequence) {
        if let Some(place) = sequence.place_to_save() {
            change_states(
                self.backend.as_mut(),
                self.model.as_ref(),
                sequence.slot,
                StateChange::Save(place),
            );
        }
    }

    /// Runs `tokens` after what `sequence` holds, in batches, and hands the wanted logits to `sink` as
    /// (position, logits). After an error the sequence holds what it held before the failing batch.
    pub fn forward(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        want: Want,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        self.check_tokens(sequence, tokens)?;
        let [batch, _] = self.options.rows(self.model.info().context);
        let mut done = 0;
        for chunk in tokens.chunks(batch) {
            done += chunk.len();
            let want = match want {
                Want::Last if done < tokens.len() => Want::None,
                other => other,
            };
            self.batch(sequence, chunk, want, sink, None)?;
        }
        Ok(())
    }

    /// Ids in range and room in the cache, before anything runs.
    pub(crate) fn check_tokens(&self, sequence: &Sequence, tokens: &[u32]) -> Result<(), Error> {
        let (n_vocab, context) = (self.model.info().n_vocab, self.model.info().context as usize);
        if let Some(&token) = tokens.iter().find(|&&token| token >= n_vocab) {
            return Err(Error::Token { token, n_vocab });
        }
        let needed = sequence.len + tokens.len();
        if needed > context {
            return Err(Error::ContextFull { needed, context });
        }
        Ok(())
    }

    /// One pass of at most a batch of tokens.
    pub(crate) fn batch(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        want: Want,
        sink: &mut dyn FnMut(usize, &[f32]),
        watch: Option<&mut dyn FnMut(usize, Counters) -> bool>,
    ) -> Result<(), Error> {
        if let Some(change) = sequence.before_step() {
            change_states(self.backend.as_mut(), self.model.as_ref(), sequence.slot, change);
            sequence.states_follow();
        }
        let mut step = Step {
            backend: self.backend.as_mut(),
            bank: self.bank.as_mut(),
            tokens,
            start: sequence.len,
            slot: sequence.slot,
            want,
            sink,
            dump: self.dump.as_mut(),
            // (The object's lifetime shrinks in a coercion only, and an option is not coerced.)
            watch: match watch {
                Some(watch) => Some(watch),
                None => None,
            },
        };
        step.backend.begin(tokens.len());
        self.model.forward(&mut step)?;
        sequence.len += tokens.len();
        if sequence.carries_state() {
            change_states(self.backend.as_mut(), self.model.as_ref(), sequence.slot, StateChange::Finish);
            sequence.states_follow();
        }
        if tokens.len() == 1 {
            self.relieve()?;
        }
        Ok(())
    }

    /// Between two tokens: a bank that sized itself gives memory back when the system runs short of it, and takes it again later.
    fn relieve(&mut self) -> Result<(), Error> {
        let (Some(relief), Some(bank)) = (&mut self.relief, &mut self.bank) else { return Ok(()) };
        relief.needs.full = bank.is_full();
        match relief.watch.look(&relief.needs) {
            Decision::Shrink { to_bytes, .. } => {
                let bytes = bank.resize(to_bytes)?;
                relief.needs.bank_bytes = bytes;
                relief.least_bytes = Some(relief.least_bytes.map_or(bytes, |least| least.min(bytes)));
            }
            Decision::Grow { to_bytes } => relief.needs.bank_bytes = bank.resize(to_bytes)?,
            Decision::Fine | Decision::AtFloor { .. } => {}
        }
        Ok(())
    }
}

/// Of all layers of a sequence.
fn change_states(backend: &mut dyn Backend, model: &dyn Model, slot: usize, change: StateChange) {
    model.states(slot).iter().for_each(|&state| backend.change_state(state, change));
}

fn wants_measuring(options: &EngineOptions) -> bool {
    (options.reader_kind, options.reader) == (ReaderKind::Auto, ReaderChoice::Auto)
}

/// What reads the experts fastest; `None` where that was not asked or nothing could be measured. What is read once is not worth it.
fn measure_reader(checkpoint: &Checkpoint, options: &EngineOptions, plan: &BankPlan) -> Option<Selected> {
    if !wants_measuring(options) || plan.is_resident() {
        return None;
    }
    let stretches = probe::stretches(checkpoint.experts());
    probe::probe_reader(checkpoint.files(), &stretches, plan.read_bytes_max())
}

/// How the options want experts to be read.
fn reader_options(
    checkpoint: &Checkpoint,
    options: &EngineOptions,
    measured: Option<&Selected>,
) -> Result<experts::read::Options, Error> {
    if options.stripe && checkpoint.copies().is_empty() {
        return Err(Error::Option {
            option: "--stripe",
            why: "there is only one copy of the experts".into(),
        });
    }
    let (kind, choice) = match measured {
        Some(found) if wants_measuring(options) => (found.kind, found.choice),
        _ => (options.reader_kind, options.reader),
    };
    Ok(experts::read::Options {
        kind,
        choice,
        depth: options.io_threads as usize,
        split: options.io_split,
        stripe: options.stripe,
        pace: options
            .pace_mb_per_s
            .map(|mb| Pace { read_bytes_per_s: u64::from(mb) * 1_000_000, latency: PACED_LATENCY }),
    })
}

/// The bank of a plan.
fn empty_bank(
    plan: &BankPlan,
    files: &[PathBuf],
    reader: Box<dyn Reader>,
    arena_bytes: &Arc<AtomicU64>,
    options: &EngineOptions,
) -> Result<Bank, Error> {
    let policy = eviction(options, plan)?;
    let arena = Box::new(HostArena::new(Arc::clone(arena_bytes)));
    let mut bank = Bank::new(plan.clone(), files, reader, arena, policy)?;
    bank.set_schedule(Schedule { hits_first: options.hits_first, ordered_reads: options.ordered_reads });
    Ok(bank)
}

/// What a load reads into the bank.
fn read_in_advance(bank: &mut Bank, options: &EngineOptions) -> Result<(), Error> {
    if options.bank == BankSize::All {
        bank.preload()?;
    } else if let Some(oracle) = oracle_of(options)? {
        bank.preload_some(&oracle.experts())?;
    }
    Ok(())
}

/// Weights are read for every token, so the system should rather swap out anything else. Without swap space they stay anyway; and weights
/// that take most of the memory there is leave others none when they are locked.
fn worth_locking(weight_bytes: u64, memory: &Memory) -> bool {
    let limit = memory.group.as_ref().map_or(u64::MAX, |group| group.limit_bytes).min(memory.total_bytes);
    memory.swap_total_bytes > 0 && weight_bytes <= limit / 4 * 3
}

/// The policy that the options name, with pins where they want some.
fn eviction(options: &EngineOptions, plan: &BankPlan) -> Result<Box<dyn Policy>, Error> {
    let named = policy::by_name(&options.policy, plan).ok_or_else(|| Error::Option {
        option: "--policy",
        why: format!("{:?} is none of: {}", options.policy, policy::NAMES.join(", ")),
    })?;
    let Some(path) = &options.pin else { return Ok(named) };
    let hot = experts::simulate::hottest(experts::trace::open(path)?, plan)?;
    Ok(Box::new(policy::pinned::Pinned::new(named, plan, &hot)))
}

/// Tokenizer and template, checked against the model's vocabulary size. A template that is broken (some files were published
/// with one) is only a warning: most uses of a model need none.
fn load_text(
    checkpoint: &Checkpoint,
    info: &ModelInfo,
    warnings: &mut Vec<String>,
) -> Result<(Option<Arc<Tokenizer>>, Option<ChatTemplate>), Error> {
    let Some(vocabulary) = crate::vocabulary(checkpoint.metadata())? else { return Ok((None, None)) };
    if vocabulary.tokens.len() > info.n_vocab as usize {
        return Err(Error::Metadata {
            path: checkpoint.root().to_owned(),
            why: format!("{} tokens named, the embedding has {} rows", vocabulary.tokens.len(), info.n_vocab),
        });
    }
    let tokenizer = Tokenizer::new(vocabulary)?;
    let token = |id: Option<u32>| id.map(|id| tokenizer.token_text(id)).unwrap_or_default();
    let (bos, eos) = (token(tokenizer.bos()), token(tokenizer.eos()));
    let template = tokenizer.chat_template().map(|source| ChatTemplate::new(source, &bos, &eos));
    let template = template.and_then(|parsed| {
        parsed.inspect_err(|error| warnings.push(format!("{error}; there will be no conversations"))).ok()
    });
    Ok((Some(Arc::new(tokenizer)), template))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Group;

    #[test]
    fn weights_are_locked_where_they_could_be_swapped_out_and_leave_room() {
        let group = |limit_bytes| Group { version: 2, path: "/g".into(), limit_bytes, used_bytes: 0 };
        let memory = |swap_total_bytes, group| Memory {
            total_bytes: 1000,
            available_bytes: 900,
            group,
            swap_total_bytes,
            swap_free_bytes: 0,
        };
        assert!(worth_locking(750, &memory(1, None)));
        assert!(!worth_locking(751, &memory(1, None)));
        assert!(!worth_locking(10, &memory(0, None)), "nothing to swap to");
        assert!(worth_locking(300, &memory(1, Some(group(400)))));
        assert!(!worth_locking(301, &memory(1, Some(group(400)))));
    }
}
