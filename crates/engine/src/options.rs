//! One struct holds every choice that shapes a loaded engine; it is printed, planned with and stored in receipts.

use std::path::PathBuf;

use experts::BankSize;
pub use experts::{ReaderChoice, ReaderKind};
use kernels::ops::Q8_BLOCK;

/// Which cached positions a query may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionMode {
    /// The model's own indexer picks `index_topk` positions.
    #[default]
    Sparse,
    /// Every earlier position; the indexer does not run.
    Dense,
    /// The last `index_topk` positions; a diagnostic that shows what the indexer is worth.
    Recent,
}

/// Element type of the latent and index-key caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// 4 bytes; the type of the golden tests.
    F32,
    /// 2 bytes; index keys are Hadamard-rotated so that rounding costs little.
    #[default]
    F16,
    /// Latents in one byte with an f32 scale per 32; rotated keys and index keys, which decide where attention goes, as f16.
    Q8,
}

impl CacheType {
    /// Bytes of a cached row of `width` elements, of which the first `coarse` may be rounded to 8 bits.
    pub fn row_bytes(self, width: usize, coarse: usize) -> u64 {
        let bytes = match self {
            Self::F32 => 4 * width,
            Self::F16 => 2 * width,
            // In whole words, so that the scales of the next row are aligned.
            Self::Q8 => (4 * coarse.div_ceil(Q8_BLOCK) + 2 * (width - coarse) + coarse).next_multiple_of(4),
        };
        bytes as u64
    }
}

/// Whether experts that are hit again and again are rewritten in a form that takes more bytes and less work. The answer is the
/// same, bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Promote {
    /// Where every expert fits in that form, so that it costs no hit.
    #[default]
    Auto,
    /// With fewer slots for the same budget.
    Always,
    /// Experts stay as they are in the file.
    Never,
}

/// Who guesses which experts will be needed next, so that the drive reads them before they are asked for. The answer is the same
/// with all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefetch {
    /// Nobody.
    Off,
    /// The next layer's router, as long as decoding is measurably faster with it.
    #[default]
    Auto,
    /// The next layer's router, on what this layer's router sees.
    NextLayer,
    /// The previous token: what it used in the next layer.
    Previous,
    /// A trace of the same run ([`EngineOptions::oracle`]): what guessing right would gain at most.
    Oracle,
}

/// Who chooses the experts; anything but the model itself is for measurements and gives another answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// The router.
    #[default]
    Model,
    /// The router, and then none of the experts is read or computed.
    RouterOnly,
    /// This expert, alone and with weight 1, for every token.
    Force(u32),
    /// A trace ([`EngineOptions::oracle`]), whose experts are all read in advance: what decoding costs without reads.
    Replay,
}

/// Everything a caller may choose before loading.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct EngineOptions {
    /// How many experts stay resident.
    #[serde(serialize_with = "as_debug")]
    pub bank: BankSize,
    /// Prompt tokens that pass through a layer together: what is read for one of them is read for all. A constant that never follows
    /// free memory.
    pub batch: u32,
    /// Prompt tokens that attention and dense matrices take at once; a batch smaller than this is as large as this.
    pub ubatch: u32,
    /// Positions to plan for; `None` = the smaller of the model's context and 8,192.
    pub context: Option<u32>,
    /// Cache element type.
    pub cache_type: CacheType,
    /// Places for snapshots of a sequence's state, of models that carry one from token to token; see
    /// [`Engine::save`](crate::Engine::save).
    pub snapshots: u32,
    /// Compute threads for one token; `None` = the cores this process may use.
    pub threads: Option<u32>,
    /// Compute threads for several tokens; `None` = as for one.
    pub threads_batch: Option<u32>,
    /// All experts of a wave in two dispatches; off, one expert at a time, which gives the same bits and is the
    /// reference for the former.
    pub slot8: bool,
    /// Whether hot experts are rewritten in packed form.
    pub promote: Promote,
    /// Who guesses which experts will be needed next.
    pub prefetch: Prefetch,
    /// Experts that may be read ahead of demand at a time.
    pub prefetch_experts: u32,
    /// Compute hits while misses are read. Off, for measurements: wait for all of them first.
    pub hits_first: bool,
    /// Read what is needed first of all misses before what is needed last of any. Off, for measurements: expert by expert.
    pub ordered_reads: bool,
    /// Who chooses the experts.
    pub routing: Routing,
    /// The trace for [`Prefetch::Oracle`] and [`Routing::Replay`].
    pub oracle: Option<PathBuf>,
    /// Experts per token when fewer than the model's own number are wanted.
    pub moe_topk: Option<u32>,
    /// Attention mode.
    pub attention: AttentionMode,
    /// Epsilon of the two latent RMS norms: 1e-6 as transformers and MLX, 1e-5 as llama.cpp.
    pub latent_eps: f32,
    /// Diagnostic: leave the routed experts out.
    pub shared_only: bool,
    /// Who loses a slot that is needed: a name of [`experts::policy::NAMES`].
    pub policy: String,
    /// Trace whose hottest experts are never evicted.
    pub pin: Option<PathBuf>,
    /// Routing trace to write.
    pub trace: Option<PathBuf>,
    /// How expert bytes are read.
    #[serde(serialize_with = "as_debug")]
    pub reader: ReaderChoice,
    /// What reads them.
    #[serde(serialize_with = "as_debug")]
    pub reader_kind: ReaderKind,
    /// Reads in flight that keep one drive busy; the threads of a reader that has threads.
    pub io_threads: u32,
    /// Pieces that a read may be cut into while fewer than that are outstanding; `None` = the default, 1 = never.
    pub io_split: Option<u32>,
    /// With several copies of the experts: cut each read into one piece per copy.
    pub stripe: bool,
    /// Behave as a drive that reads no more than so many MB (10⁶ bytes) per second, for measurements.
    pub pace_mb_per_s: Option<u32>,
    /// Memory that may be used in all; `None` = what the system reports as available.
    pub memory_bytes: Option<u64>,
    /// Keep the dense weights out of the swap space, where there is one and the system allows it.
    pub mlock: bool,
}

fn as_debug<T: std::fmt::Debug, S: serde::Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&format_args!("{value:?}"))
}

/// Prompt tokens per pass through a layer unless asked otherwise.
pub(crate) const DEFAULT_BATCH: u32 = 2048;
/// Tokens at once unless asked otherwise.
pub(crate) const DEFAULT_UBATCH: u32 = 512;
/// Context unless asked otherwise (or the model's, where that is smaller).
pub(crate) const DEFAULT_CONTEXT: u32 = 8192;

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            bank: BankSize::Auto,
            batch: DEFAULT_BATCH,
            ubatch: DEFAULT_UBATCH,
            context: None,
            cache_type: CacheType::default(),
            snapshots: 0,
            threads: None,
            threads_batch: None,
            slot8: true,
            promote: Promote::default(),
            prefetch: Prefetch::default(),
            prefetch_experts: 4,
            hits_first: true,
            ordered_reads: true,
            routing: Routing::default(),
            oracle: None,
            moe_topk: None,
            attention: AttentionMode::default(),
            latent_eps: 1e-6,
            shared_only: false,
            policy: experts::policy::NAMES[0].to_owned(),
            pin: None,
            trace: None,
            reader: ReaderChoice::Auto,
            reader_kind: ReaderKind::Auto,
            io_threads: 8,
            io_split: None,
            stripe: false,
            pace_mb_per_s: None,
            memory_bytes: None,
            mlock: true,
        }
    }
}

impl EngineOptions {
    /// Experts that may be read ahead of demand at a time.
    pub fn spares(&self) -> u32 {
        if self.prefetch == Prefetch::Off { 0 } else { self.prefetch_experts }
    }

    /// An option in which `other` differs and which an engine that is loaded cannot change any more; see
    /// [`Engine::with_streaming`](crate::Engine::with_streaming).
    pub fn fixed_difference(&self, other: &EngineOptions) -> Option<&'static str> {
        let oracle = self.prefetch == Prefetch::Oracle || other.prefetch == Prefetch::Oracle;
        let named = [
            ("--ram", self.memory_bytes == other.memory_bytes),
            ("--batch", self.batch == other.batch),
            ("--ubatch", self.ubatch == other.ubatch),
            ("--ctx", self.context == other.context),
            ("--cache-type", self.cache_type == other.cache_type),
            ("snapshots", self.snapshots == other.snapshots),
            ("--threads", self.threads == other.threads),
            ("--threads-batch", self.threads_batch == other.threads_batch),
            ("--no-slot8", self.slot8 == other.slot8),
            ("--moe-topk", self.moe_topk == other.moe_topk),
            ("--attention", self.attention == other.attention),
            ("--latent-eps", self.latent_eps == other.latent_eps),
            ("--shared-only", self.shared_only == other.shared_only),
            ("--trace", self.trace == other.trace),
            ("--no-mlock", self.mlock == other.mlock),
            ("--moe-mode", self.oracle == other.oracle && (!oracle || self.prefetch == other.prefetch)),
        ];
        if let Some((name, _)) = named.into_iter().find(|(_, same)| !same) {
            return Some(name);
        }
        let switched = EngineOptions {
            bank: other.bank,
            promote: other.promote,
            prefetch: other.prefetch,
            prefetch_experts: other.prefetch_experts,
            hits_first: other.hits_first,
            ordered_reads: other.ordered_reads,
            policy: other.policy.clone(),
            pin: other.pin.clone(),
            reader: other.reader,
            reader_kind: other.reader_kind,
            io_threads: other.io_threads,
            io_split: other.io_split,
            stripe: other.stripe,
            pace_mb_per_s: other.pace_mb_per_s,
            ..self.clone()
        };
        // Whatever is named in neither list, such as who routes.
        (switched != *other).then_some("the routing")
    }

    /// Tokens of a batch and of a micro-batch, where a sequence has room for `context` of them.
    pub(crate) fn rows(&self, context: u32) -> [usize; 2] {
        let ubatch = self.ubatch.min(context);
        [self.batch.max(ubatch).min(context) as usize, ubatch as usize]
    }

    /// Compute threads for a step of one token.
    pub fn threads(&self) -> usize {
        match self.threads {
            Some(n) => n as usize,
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        }
    }

    /// Compute threads for a step of several tokens.
    pub fn threads_batch(&self) -> usize {
        self.threads_batch.map_or_else(|| self.threads(), |n| n as usize)
    }

    /// Compute threads to start.
    pub fn threads_max(&self) -> usize {
        self.threads().max(self.threads_batch())
    }
}
