//! From a size to slots: which size classes there are, how many slots each gets, and what one slot looks
//! like.
//!
//! A slot holds one expert of one layer. Its families lie in it as *parts*: one part per read, several
//! families in one part where the file has them side by side (expert-major records). A part is as long as the
//! widest direct read it must take: the extent of the expert, widened to [`ALIGNMENT`] at both ends. So a
//! read never needs a bounce buffer: the bytes land at `part start + (offset mod ALIGNMENT)`, whether the
//! read is direct or buffered. Layers whose slots have (nearly) the same size share a class, and with it the
//! bytes of the budget.
//!
//! Where experts may be rewritten in a packed form, a slot is large enough for that too: the families one after the other from
//! its start.
//!
//! The plan is arithmetic only; what it says is what the arena allocates.

use std::fmt;
use std::str::FromStr;

use files::{ExpertTensor, Family, FileIndex};
use serde::Serialize;

use crate::{ALIGNMENT, Error, Result};

/// How large the bank shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BankSize {
    /// As much of the available memory as is useful; never under `top_k + 2` slots per layer where that fits.
    #[default]
    Auto,
    /// Every expert resident.
    All,
    /// So many hundredths of all experts, 1 to 100, shared like bytes.
    Percent(u32),
    /// So many slots for each layer, which no other layer can take.
    SlotsPerLayer(u32),
    /// So many bytes over all layers, shared by whoever needs them above the floor.
    Bytes(u64),
}

impl FromStr for BankSize {
    type Err = Error;

    /// `auto`, `all`, a number of slots per layer (`16`), a share of all experts (`25%`), or bytes with a unit (`8GiB`, `500MB`,
    /// `4096B`).
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let known = "auto, all, SLOTS, a share (25%), BYTES with a unit (8GiB)";
            Error::Usage(format!("bank size {text:?} is none of: {known}"))
        };
        let trimmed = text.trim();
        match trimmed.to_ascii_lowercase().as_str() {
            "auto" => return Ok(BankSize::Auto),
            "all" => return Ok(BankSize::All),
            _ => {}
        }
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" => return number.parse().map(BankSize::SlotsPerLayer).map_err(|_| bad()),
            "%" => {
                let percent = number.parse().ok().filter(|percent| (1..=100).contains(percent));
                return percent.map(BankSize::Percent).ok_or_else(bad);
            }
            "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            _ => return Err(bad()),
        };
        let bytes = number.parse::<f64>().map_err(|_| bad())? * factor as f64;
        if bytes.is_finite() && bytes < 9.0e18 { Ok(BankSize::Bytes(bytes as u64)) } else { Err(bad()) }
    }
}

impl fmt::Display for BankSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BankSize::Auto => f.write_str("auto"),
            BankSize::All => f.write_str("all"),
            BankSize::Percent(n) => write!(f, "{n}%"),
            BankSize::SlotsPerLayer(n) => write!(f, "{n}"),
            BankSize::Bytes(bytes) => write!(f, "{bytes}B"),
        }
    }
}

/// The routed experts of one layer that the decoder runs.
#[derive(Debug, Clone)]
pub struct LayerExperts {
    /// Block index.
    pub layer: u32,
    /// Experts of the layer.
    pub n_expert: u32,
    /// One tensor per family.
    pub tensors: Vec<ExpertTensor>,
}

/// A slot of the bank: the class decides its size and the region that it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SlotId {
    /// Index into [`BankPlan::classes`].
    pub class: u16,
    /// Index of the slot in its class.
    pub index: u32,
}

/// Slots of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SizeClass {
    /// Bytes of one slot; a multiple of [`ALIGNMENT`].
    pub slot_bytes: u64,
    /// Slots of the class.
    pub slots: u32,
    /// Slots beside them, for experts that are read ahead of demand.
    pub spares: u32,
}

impl SizeClass {
    /// Bytes of all slots and spares.
    pub fn bytes(&self) -> u64 {
        self.slot_bytes * u64::from(self.slots + self.spares)
    }
}

/// One family inside a part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) family: Family,
    /// From the first wanted byte of the part.
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What one read brings into a slot: one family, or several that are neighbours in the file.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) file: FileIndex,
    /// Of expert 0, in the file.
    pub(crate) offset: u64,
    /// From one expert to the next, in the file.
    pub(crate) stride: u64,
    /// Wanted bytes.
    pub(crate) len: u64,
    /// Where the part starts in the slot; a multiple of [`ALIGNMENT`].
    pub(crate) start: u64,
    /// Bytes of the slot that it may write; a multiple of [`ALIGNMENT`].
    pub(crate) span: u64,
    /// Nothing in it is needed before the other parts have been used.
    pub(crate) last: bool,
    pub(crate) pieces: Vec<Piece>,
}

impl Part {
    pub(crate) fn file_offset(&self, expert: u32) -> u64 {
        self.offset + self.stride * u64::from(expert)
    }

    /// Where the first wanted byte lands, from the start of the slot.
    pub(crate) fn landing(&self, expert: u32) -> u64 {
        self.start + self.file_offset(expert) % ALIGNMENT
    }
}

/// One routed layer in the plan.
#[derive(Debug, Clone, Serialize)]
pub struct LayerPlan {
    /// Block index.
    pub layer: u32,
    /// Experts of the layer.
    pub n_expert: u32,
    /// Index into [`BankPlan::classes`].
    pub class: u16,
    /// Slots below which no other layer can push this one.
    pub slots_min: u32,
    /// Slots that this one can hold at most.
    pub slots_max: u32,
    /// Slots that are this one's while every layer runs a prompt, and what a prompt leaves it.
    pub share: u32,
    /// Slots that it can hold while it runs a prompt.
    #[serde(skip)]
    pub(crate) slots_wide: u32,
    /// Bytes of one expert, all families, as they are in the file.
    pub expert_bytes: u64,
    /// Bytes of one expert in packed form; 0 where there is none.
    pub packed_bytes: u64,
    #[serde(skip)]
    pub(crate) parts: Vec<Part>,
    /// Where the families of a packed expert lie, from the start of the slot.
    #[serde(skip)]
    pub(crate) packed: Vec<Piece>,
}

impl LayerPlan {
    fn slot_bytes(&self) -> u64 {
        let as_read: u64 = self.parts.iter().map(|part| part.span).sum();
        as_read.max(self.packed_bytes.next_multiple_of(ALIGNMENT))
    }

    /// The part and the piece that hold a family.
    pub(crate) fn piece(&self, family: Family) -> Option<(&Part, &Piece)> {
        self.parts
            .iter()
            .find_map(|part| Some((part, part.pieces.iter().find(|piece| piece.family == family)?)))
    }

    pub(crate) fn packed_piece(&self, family: Family) -> Option<&Piece> {
        self.packed.iter().find(|piece| piece.family == family)
    }
}

/// The bank before it exists.
#[derive(Debug, Clone, Serialize)]
pub struct BankPlan {
    arena_bytes: u64,
    floor_bytes: u64,
    all_bytes: u64,
    top_k: u32,
    resident: bool,
    /// The same number of slots for every layer.
    fixed: bool,
    classes: Vec<SizeClass>,
    layers: Vec<LayerPlan>,
}

impl BankPlan {
    /// Plans a bank of `size` for `layers`, each call of which takes `top_k` experts per token.
    ///
    /// `available_bytes` is looked at by [`BankSize::Auto`] alone: whether an explicit size fits into the
    /// machine is for whoever knows what else has to fit. Errors: [`Error::DoesNotFit`] below `top_k` slots
    /// per layer, [`Error::Geometry`] for tensors that cannot be streamed.
    pub fn new(
        size: BankSize,
        available_bytes: u64,
        top_k: u32,
        layers: &[LayerExperts],
    ) -> Result<BankPlan> {
        BankPlan::with_packed(size, available_bytes, top_k, layers, &|_| None)
    }

    /// As [`BankPlan::new`], with slots in which an expert can be rewritten: `packed_bytes` are those of an expert of a tensor in
    /// packed form, `None` where it has none and stays as it is.
    pub fn with_packed(
        size: BankSize,
        available_bytes: u64,
        top_k: u32,
        layers: &[LayerExperts],
        packed_bytes: &dyn Fn(&ExpertTensor) -> Option<u64>,
    ) -> Result<BankPlan> {
        if top_k == 0 {
            return Err(Error::Usage("the router must choose at least one expert per token".into()));
        }
        let mut planned =
            layers.iter().map(|layer| plan_layer(layer, packed_bytes)).collect::<Result<Vec<_>>>()?;
        planned.sort_by_key(|layer| layer.layer);
        if let Some(pair) = planned.windows(2).find(|pair| pair[0].layer == pair[1].layer) {
            return Err(Error::Geometry { layer: pair[0].layer, why: "is listed twice".into() });
        }
        let mut classes = assign_classes(&mut planned);
        let floor_bytes = bytes_of(&planned, &classes, top_k);
        let all_bytes = bytes_of(&planned, &classes, u32::MAX);
        let too_small = |given| Error::DoesNotFit {
            needed: floor_bytes,
            given,
            floor: top_k,
            layers: planned.len() as u32,
        };
        let (budget, per_layer_min) = match size {
            BankSize::All => (all_bytes, top_k),
            BankSize::Percent(n) => {
                (all_bytes / 100 * u64::from(n) + all_bytes % 100 * u64::from(n) / 100, top_k)
            }
            BankSize::SlotsPerLayer(n) if n < top_k && n < most_experts(&planned) => {
                return Err(too_small(bytes_of(&planned, &classes, n)));
            }
            BankSize::SlotsPerLayer(n) => (bytes_of(&planned, &classes, n), n),
            BankSize::Bytes(bytes) => (bytes, top_k),
            BankSize::Auto if bytes_of(&planned, &classes, top_k.saturating_add(2)) <= available_bytes => {
                (available_bytes, top_k.saturating_add(2))
            }
            BankSize::Auto => (available_bytes, top_k),
        };
        if budget < floor_bytes {
            return Err(too_small(budget));
        }
        divide(budget, per_layer_min, &planned, &mut classes);
        let fixed = matches!(size, BankSize::SlotsPerLayer(_));
        set_bounds(&mut planned, &classes, if fixed { per_layer_min } else { top_k }, fixed);
        let arena_bytes = classes.iter().map(SizeClass::bytes).sum();
        let resident =
            planned.iter().all(|layer| layer.slots_max == layer.n_expert) && arena_bytes == all_bytes;
        Ok(BankPlan { arena_bytes, floor_bytes, all_bytes, top_k, resident, fixed, classes, layers: planned })
    }

    /// Sets up to `spares` slots of each class aside for experts that are read ahead of demand. They come out of the budget, as far as
    /// the floors allow; on top of it where a number of slots per layer was asked for. A bank that holds every expert has no use for them.
    pub fn with_spares(mut self, spares: u32) -> BankPlan {
        if self.resident {
            return self;
        }
        for (c, class) in self.classes.iter_mut().enumerate() {
            let floor = slots_of(&self.layers, c, self.top_k) as u32;
            class.spares = if self.fixed { spares } else { spares.min(class.slots.saturating_sub(floor)) };
            class.slots -= if self.fixed { 0 } else { class.spares };
        }
        if !self.fixed {
            set_bounds(&mut self.layers, &self.classes, self.top_k, false);
        }
        self.arena_bytes = self.classes.iter().map(SizeClass::bytes).sum();
        self
    }

    /// Slots by class for about `bytes` in all, spares included: between the floors and what was planned, in proportion.
    pub(crate) fn slots_for_bytes(&self, bytes: u64) -> Vec<u32> {
        let floors: Vec<u64> =
            (0..self.classes.len()).map(|c| slots_of(&self.layers, c, self.top_k)).collect();
        let least: u64 = self
            .classes
            .iter()
            .zip(&floors)
            .map(|(class, floor)| class.slot_bytes * (floor + u64::from(class.spares)))
            .sum();
        let above = u128::from(bytes.clamp(least, self.arena_bytes.max(least)) - least);
        let whole = u128::from((self.arena_bytes - least).max(1));
        let slots = |(class, floor): (&SizeClass, &u64)| {
            let beyond = u128::from(u64::from(class.slots).saturating_sub(*floor));
            class.slots.min((u128::from(*floor) + beyond * above / whole) as u32)
        };
        self.classes.iter().zip(&floors).map(slots).collect()
    }

    /// Sets the bounds of the layers for these slots by class; the classes stay as they were planned.
    pub(crate) fn bound_to(&mut self, slots: &[u32]) {
        let mut classes = self.classes.clone();
        classes.iter_mut().zip(slots).for_each(|(class, &slots)| class.slots = slots);
        set_bounds(&mut self.layers, &classes, self.top_k, false);
    }

    /// Whether every layer was given the same number of slots, by name.
    pub(crate) fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// Bytes that the arena allocates.
    pub fn arena_bytes(&self) -> u64 {
        self.arena_bytes
    }

    /// Bytes of the smallest bank that works for this model: `top_k` slots per layer.
    pub fn floor_bytes(&self) -> u64 {
        self.floor_bytes
    }

    /// Bytes of the bank that holds every expert.
    pub fn all_bytes(&self) -> u64 {
        self.all_bytes
    }

    /// Experts per token that the plan was made for.
    pub fn top_k(&self) -> u32 {
        self.top_k
    }

    /// Whether every expert has a slot of its own, so that nothing is ever evicted.
    pub fn is_resident(&self) -> bool {
        self.resident
    }

    /// Whether experts may be rewritten in packed form.
    pub fn packs(&self) -> bool {
        self.packed_bytes_max() > 0
    }

    /// Bytes of the largest packed expert; 0 where none is ever packed.
    pub fn packed_bytes_max(&self) -> u64 {
        self.layers.iter().map(|layer| layer.packed_bytes).max().unwrap_or(0)
    }

    /// The size classes, largest slots first.
    pub fn classes(&self) -> &[SizeClass] {
        &self.classes
    }

    /// Slots of all classes.
    pub fn slots_total(&self) -> u32 {
        self.classes.iter().map(|class| class.slots).sum()
    }

    /// The routed layers, ascending.
    pub fn layers(&self) -> &[LayerPlan] {
        &self.layers
    }

    /// The fewest slots that other layers leave to `layer` and the most it can hold; none if it has no
    /// experts.
    pub fn slots_for(&self, layer: u32) -> Option<(u32, u32)> {
        let index = self.layers.binary_search_by_key(&layer, |planned| planned.layer).ok()?;
        Some((self.layers[index].slots_min, self.layers[index].slots_max))
    }

    /// Bytes of the longest read that a miss takes.
    pub fn read_bytes_max(&self) -> u64 {
        self.layers.iter().flat_map(|layer| &layer.parts).map(|part| part.len).max().unwrap_or(0)
    }

    /// Reads that one expert takes at most.
    pub(crate) fn parts_max(&self) -> usize {
        self.layers.iter().map(|layer| layer.parts.len()).max().unwrap_or(0)
    }

    /// Experts of the widest layer.
    pub(crate) fn experts_max(&self) -> usize {
        most_experts(&self.layers) as usize
    }

    /// One line for people; the bytes are [`BankPlan::arena_bytes`].
    pub fn summary(&self) -> String {
        let (layers, slots) = (self.layers.len(), self.slots_total());
        let experts: u64 = self.layers.iter().map(|layer| u64::from(layer.n_expert)).sum();
        let packed = if self.packs() { ", room to pack them" } else { "" };
        if self.resident {
            return format!("all {experts} experts of {layers} layers resident{packed}");
        }
        let floor = human_bytes(self.floor_bytes);
        let spares: u32 = self.classes.iter().map(|class| class.spares).sum();
        let spare = if spares > 0 { format!(" and {spares} spare") } else { String::new() };
        format!("{slots}{spare} slots for {experts} experts of {layers} layers{packed}, floor {floor}")
    }
}

/// Lays one layer out and checks that it can be laid out at all.
fn plan_layer(
    experts: &LayerExperts,
    packed_bytes: &dyn Fn(&ExpertTensor) -> Option<u64>,
) -> Result<LayerPlan> {
    let LayerExperts { layer, n_expert, ref tensors } = *experts;
    let bad = |why: String| Error::Geometry { layer, why };
    if n_expert == 0 || tensors.is_empty() {
        return Err(bad("has no experts".into()));
    }
    for (i, tensor) in tensors.iter().enumerate() {
        if tensor.expert_bytes == 0 || tensor.shape[2] != u64::from(n_expert) {
            let (have, bytes) = (tensor.shape[2], tensor.expert_bytes);
            return Err(bad(format!(
                "{} has {have} experts of {bytes} bytes, {n_expert} are wanted",
                tensor.name
            )));
        }
        if tensors[..i].iter().any(|other| other.family == tensor.family) {
            return Err(bad(format!("{} comes twice", tensor.family.name())));
        }
        let end =
            tensor.stride.checked_mul(u64::from(n_expert)).and_then(|len| len.checked_add(tensor.offset));
        if end.and_then(|end| end.checked_add(2 * ALIGNMENT + tensor.expert_bytes)).is_none() {
            return Err(bad(format!("{} reaches beyond any file", tensor.name)));
        }
    }
    let mut parts = join_neighbours(tensors);
    // Whatever is needed last is read last and lies last.
    parts.sort_by_key(|part| (part.last, part.file.0, part.offset));
    let mut start = 0;
    for part in &mut parts {
        part.start = start;
        part.span = (0..n_expert)
            .map(|expert| (part.file_offset(expert) % ALIGNMENT + part.len).next_multiple_of(ALIGNMENT))
            .max()
            .unwrap_or(0);
        start += part.span;
    }
    let expert_bytes = tensors.iter().map(|tensor| tensor.expert_bytes).sum();
    let packed = pack_families(tensors, packed_bytes);
    let packed_bytes = packed.last().map_or(0, |piece| piece.offset + piece.len);
    Ok(LayerPlan {
        layer,
        n_expert,
        class: 0,
        slots_min: 0,
        slots_max: 0,
        share: 0,
        slots_wide: 0,
        expert_bytes,
        packed_bytes,
        parts,
        packed,
    })
}

/// One family after the other on cache lines of their own; none at all where no family has a packed form.
fn pack_families(
    tensors: &[ExpertTensor],
    packed_bytes: &dyn Fn(&ExpertTensor) -> Option<u64>,
) -> Vec<Piece> {
    const CACHE_LINE: u64 = 64;
    if tensors.iter().all(|tensor| packed_bytes(tensor).is_none()) {
        return Vec::new();
    }
    let mut end = 0u64;
    let piece = |tensor: &ExpertTensor| {
        let (offset, len) =
            (end.next_multiple_of(CACHE_LINE), packed_bytes(tensor).unwrap_or(tensor.expert_bytes));
        end = offset + len;
        Piece { family: tensor.family, offset, len }
    };
    tensors.iter().map(piece).collect()
}

/// One part per run of families that lie side by side in every record of a file.
fn join_neighbours(tensors: &[ExpertTensor]) -> Vec<Part> {
    let mut sorted: Vec<&ExpertTensor> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| (tensor.file.0, tensor.offset));
    let mut parts: Vec<Part> = Vec::with_capacity(sorted.len());
    for tensor in sorted {
        let last = tensor.family == Family::Down;
        if let Some(part) = parts.last_mut() {
            let gap = tensor.offset.checked_sub(part.offset + part.len);
            // A gap within a block is padding that a direct read takes along anyway.
            if part.file == tensor.file
                && part.stride == tensor.stride
                && gap.is_some_and(|gap| gap < ALIGNMENT)
            {
                let offset = tensor.offset - part.offset;
                part.len = offset + tensor.expert_bytes;
                part.last &= last;
                part.pieces.push(Piece { family: tensor.family, offset, len: tensor.expert_bytes });
                continue;
            }
        }
        let (offset, stride, len) = (tensor.offset, tensor.stride, tensor.expert_bytes);
        let pieces = vec![Piece { family: tensor.family, offset: 0, len }];
        parts.push(Part { file: tensor.file, offset, stride, len, start: 0, span: 0, last, pieces });
    }
    parts
}

/// Gives every layer a class: layers whose slots differ by at most one part in 32 share one, since a shared
/// budget is worth more than that.
fn assign_classes(layers: &mut [LayerPlan]) -> Vec<SizeClass> {
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(layers[i].slot_bytes()), i));
    let mut classes: Vec<SizeClass> = Vec::new();
    for i in order {
        let slot_bytes = layers[i].slot_bytes();
        match classes.last() {
            Some(class) if (class.slot_bytes - slot_bytes) * 32 <= class.slot_bytes => {}
            _ => classes.push(SizeClass { slot_bytes, slots: 0, spares: 0 }),
        }
        layers[i].class = (classes.len() - 1) as u16;
    }
    classes
}

fn most_experts(layers: &[LayerPlan]) -> u32 {
    layers.iter().map(|layer| layer.n_expert).max().unwrap_or(0)
}

/// Slots of a class when each of its layers has `per_layer`, as far as it has experts for them.
fn slots_of(layers: &[LayerPlan], class: usize, per_layer: u32) -> u64 {
    let members = layers.iter().filter(|layer| layer.class as usize == class);
    members.map(|layer| u64::from(layer.n_expert.min(per_layer))).sum()
}

fn bytes_of(layers: &[LayerPlan], classes: &[SizeClass], per_layer: u32) -> u64 {
    let bytes =
        |(i, class): (usize, &SizeClass)| slots_of(layers, i, per_layer).saturating_mul(class.slot_bytes);
    classes.iter().enumerate().map(bytes).fold(0, u64::saturating_add)
}

/// Spends `budget` on slots: first `per_layer_min` for everyone, then in proportion to what each class still
/// lacks, then what rounding left, one slot at a time.
fn divide(budget: u64, per_layer_min: u32, layers: &[LayerPlan], classes: &mut [SizeClass]) {
    let least: Vec<u64> = (0..classes.len()).map(|c| slots_of(layers, c, per_layer_min)).collect();
    let most: Vec<u64> = (0..classes.len()).map(|c| slots_of(layers, c, u32::MAX)).collect();
    let cost =
        |counts: &[u64]| -> u64 { classes.iter().zip(counts).map(|(class, n)| class.slot_bytes * n).sum() };
    let (least_bytes, most_bytes) = (cost(&least), cost(&most));
    let spare = budget.min(most_bytes).saturating_sub(least_bytes);
    let lacking = u128::from((most_bytes - least_bytes).max(1));
    let share = |c: usize| least[c] + (u128::from(most[c] - least[c]) * u128::from(spare) / lacking) as u64;
    let mut counts: Vec<u64> = (0..classes.len()).map(share).collect();
    let mut left = budget.saturating_sub(cost(&counts));
    // At most one slot per class is left over by rounding, so few rounds are needed.
    loop {
        let before = left;
        for (c, class) in classes.iter().enumerate() {
            if counts[c] < most[c] && class.slot_bytes <= left {
                counts[c] += 1;
                left -= class.slot_bytes;
            }
        }
        if left == before {
            break;
        }
    }
    classes.iter_mut().zip(counts).for_each(|(class, n)| class.slots = n.try_into().unwrap_or(u32::MAX));
}

/// Slots of a class that belong to no layer's share, at most: the layer that runs a prompt reads into them while it computes with
/// others.
const RING_SLOTS: u32 = 16;

/// The bounds of each layer: its floor, and what the floors of the others leave it.
fn set_bounds(layers: &mut [LayerPlan], classes: &[SizeClass], floor: u32, fixed: bool) {
    for layer in layers.iter_mut() {
        layer.slots_min = layer.n_expert.min(floor);
    }
    for (c, class) in classes.iter().enumerate() {
        let floors: u32 = layers.iter().filter(|l| l.class as usize == c).map(|l| l.slots_min).sum();
        for layer in layers.iter_mut().filter(|l| l.class as usize == c) {
            let reachable = class.slots - (floors - layer.slots_min);
            layer.slots_max = if fixed { layer.slots_min } else { layer.n_expert.min(reachable) };
        }
        let members = layers.iter().filter(|l| l.class as usize == c).count().max(1) as u32;
        let whole: u64 = layers.iter().filter(|l| l.class as usize == c).map(|l| u64::from(l.n_expert)).sum();
        let all_fit = u64::from(class.slots) >= whole;
        let beyond = if fixed { 0 } else { class.slots - floors };
        let ring = if all_fit { 0 } else { (beyond / 4).min(RING_SLOTS) };
        for layer in layers.iter_mut().filter(|l| l.class as usize == c) {
            let share = if all_fit { layer.n_expert } else { layer.slots_min + (beyond - ring) / members };
            layer.share = layer.slots_max.min(share);
            layer.slots_wide = layer.slots_max.min(layer.share + ring);
        }
    }
}

/// Bytes with a binary unit and two decimals, e.g. `2.26 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    human(bytes, f64::round)
}

/// The same, rounded up, so that asking for the printed size is enough.
pub(crate) fn human_bytes_up(bytes: u64) -> String {
    human(bytes, f64::ceil)
}

fn human(bytes: u64, round: fn(f64) -> f64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { 2 };
    format!("{:.digits$} {}", round(value * 100.0) / 100.0, UNITS[unit])
}
