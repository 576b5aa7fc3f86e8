//! Invariant 1: streaming never changes the answer. Logits with any bank, reader, layout, micro-batch and number of threads
//! equal those of the same weights with every expert resident, at the same micro-batch, bit for bit.
//!
//! By default a set of cases that covers every pair of settings; `SLOTBANK_MATRIX=full` runs the whole product of
//! banks, micro-batches, readers, layouts and models (14,560 cases, threads and policies going round).

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use common::{Logits, OnDisk, assert_same_bits, exact, run, step};
use experts::read::sim::{Clock, Fault, FaultAt, Options as Drive, SimReader};
use experts::read::spread::{self, Drive as Copy, SpreadReader};
use experts::{Reader, ReaderChoice, ReaderKind};
use files::{Checkpoint, Class, GgmlType};
use slotbank_engine::{BankSize, Engine, EngineOptions, Error, Promote, Want};
use toy::weights::{mix64, tokens};
use toy::{Convention, Layout, Toy, Types};

const EXPERTS: u32 = 12;
const TOP_K: u32 = 3;
const UBATCHES: [u32; 4] = [1, 2, 7, 32];
const THREADS: [u32; 3] = [1, 2, 3];
const POLICIES: &[&str] = experts::policy::NAMES;

/// Bank sizes: every number of slots per layer from top-k to all, then byte budgets at and above the floor, then auto.
#[derive(Clone, Copy, Debug)]
enum Size {
    Slots(u32),
    Floor,
    FloorPlus(u64),
}

fn sizes() -> Vec<Size> {
    let mut all: Vec<Size> = (TOP_K..=EXPERTS).map(Size::Slots).collect();
    all.extend([Size::Floor, Size::FloorPlus(3), Size::FloorPlus(17)]);
    all
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Direct,
    Buffered,
    Uring,
    /// Simulated: two drives with a copy each, of which one fails now and then; reads cut into slices.
    Copies,
    /// Simulated: everything at once.
    Instant,
    /// Simulated: long and very uneven delays, so that completions come in any order.
    Reordering,
    /// Simulated: reads that fall short or are interrupted, over a thin line.
    Short,
}

const SOURCES: [Source; 7] = [
    Source::Direct,
    Source::Buffered,
    Source::Uring,
    Source::Copies,
    Source::Instant,
    Source::Reordering,
    Source::Short,
];

#[derive(Clone, Copy, Debug)]
enum Form {
    InPlace,
    Split,
    WholeTensor,
    ExpertMajor,
    ExpertMajorPadded,
}

const FORMS: [Form; 5] =
    [Form::InPlace, Form::Split, Form::WholeTensor, Form::ExpertMajor, Form::ExpertMajorPadded];

/// Storage types: one that is exact, the demo's, and mixtures in which every format with a kernel occurs.
fn mixtures() -> Vec<Types> {
    use GgmlType as T;
    let mixed = |dense, experts: &[[T; 3]]| Types { dense, experts: experts.to_vec() };
    vec![
        Types::all(T::F32),
        Types::all(T::Q8_0),
        mixed(
            T::Q8_0,
            &[[T::Q4_0, T::Q4_0, T::Q8_0], [T::F16, T::BF16, T::Q4_0], [T::Q5_0, T::Q5_1, T::Q4_1]],
        ),
        mixed(
            T::Q4_0,
            &[
                [T::IQ1_M, T::IQ1_M, T::IQ2_XXS],
                [T::IQ2_XXS, T::IQ1_S, T::IQ3_XXS],
                [T::IQ2_XS, T::IQ2_S, T::IQ3_S],
            ],
        ),
        mixed(
            T::BF16,
            &[[T::Q2_K, T::Q2_K, T::Q3_K], [T::Q4_K, T::Q5_K, T::Q6_K], [T::IQ4_XS, T::IQ4_NL, T::Q4_K]],
        ),
        // Gate and up in different activation forms.
        mixed(
            T::F16,
            &[[T::Q8_0, T::Q4_K, T::F32], [T::F32, T::Q6_K, T::IQ4_NL], [T::TQ1_0, T::TQ2_0, T::MXFP4]],
        ),
    ]
}

/// Mixtures all of whose types have a kernel in this build.
fn runnable_mixtures() -> Vec<Types> {
    let runs = |types: &Types| {
        let mut all = types.experts.iter().flatten().chain([&types.dense]);
        all.all(|ty| kernels::format(ty.id()).is_some())
    };
    mixtures().into_iter().filter(runs).collect()
}

/// Every mixture as `glm-dsa`, and two of them in each further architecture: what streams does not know whose experts it holds.
fn toys() -> Vec<Toy> {
    let others = || {
        let all = runnable_mixtures();
        [1, 3].into_iter().filter_map(move |i| all.get(i).cloned())
    };
    let glm_dsa = runnable_mixtures().into_iter().map(Toy::wide);
    glm_dsa.chain(others().map(Toy::wide_deepseek2)).collect()
}

/// One point of the product: an index into each list.
type Case = [usize; 7];

fn lengths(mixtures: usize) -> Case {
    [sizes().len(), UBATCHES.len(), SOURCES.len(), FORMS.len(), mixtures, THREADS.len(), POLICIES.len()]
}

/// Every combination of the first five axes; threads and policies go round.
fn product(lengths: Case) -> Vec<Case> {
    let mut cases = vec![[0; 7]];
    for (axis, &n) in lengths[..5].iter().enumerate() {
        cases = cases
            .iter()
            .flat_map(|case| {
                (0..n).map(move |i| {
                    let mut case = *case;
                    case[axis] = i;
                    case
                })
            })
            .collect();
    }
    for (i, case) in cases.iter_mut().enumerate() {
        for axis in [5, 6] {
            case[axis] = (mix64((i * 7 + axis) as u64) % lengths[axis] as u64) as usize;
        }
    }
    cases
}

/// Cases in which every pair of settings of different axes occurs at least once: greedily, the best of some random ones.
fn pairwise(lengths: Case) -> Vec<Case> {
    let mut missing = std::collections::BTreeSet::new();
    for a in 0..7 {
        for b in a + 1..7 {
            for i in 0..lengths[a] {
                missing.extend((0..lengths[b]).map(|j| (a, i, b, j)));
            }
        }
    }
    let pairs = |case: &Case| -> Vec<(usize, usize, usize, usize)> {
        (0..7).flat_map(|a| (a + 1..7).map(move |b| (a, b))).map(|(a, b)| (a, case[a], b, case[b])).collect()
    };
    let (mut cases, mut counter) = (Vec::new(), 0u64);
    while let Some(&(a, i, b, j)) = missing.first() {
        let candidate = |counter: &mut u64| {
            let mut case: Case = std::array::from_fn(|axis| {
                *counter += 1;
                (mix64(*counter) % lengths[axis] as u64) as usize
            });
            (case[a], case[b]) = (i, j);
            case
        };
        let candidates: Vec<Case> = (0..40).map(|_| candidate(&mut counter)).collect();
        let gain = |case: &&Case| pairs(case).iter().filter(|pair| missing.contains(pair)).count();
        let best = *candidates.iter().max_by_key(gain).expect("forty candidates");
        for pair in pairs(&best) {
            missing.remove(&pair);
        }
        cases.push(best);
    }
    cases
}

/// 33 tokens at once, then seven one by one.
fn prompt() -> (Vec<u32>, Vec<usize>) {
    (tokens("streaming", 40, 96), vec![33, 1])
}

fn write(toy: &Toy, form: Form) -> OnDisk {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = match form {
        Form::InPlace => dir.path().join("toy.gguf"),
        Form::Split => toy.write_split(dir.path(), "toy", 3),
        Form::WholeTensor => toy.write_package(dir.path(), Convention::DenseFolder, Layout::WholeTensor).root,
        Form::ExpertMajor => {
            toy.write_package(dir.path(), Convention::Flat, Layout::ExpertMajor { stride: 1 }).dense
        }
        Form::ExpertMajorPadded => {
            toy.write_package(dir.path(), Convention::TwoFolders, Layout::ExpertMajor { stride: 4096 }).root
        }
    };
    if matches!(form, Form::InPlace) {
        toy.write(&path);
    }
    OnDisk { path, dir }
}

fn drive(source: Source, seed: u64) -> Option<Drive> {
    let base = Drive { seed, ..Drive::default() };
    match source {
        Source::Direct | Source::Buffered | Source::Uring | Source::Copies => None,
        Source::Instant => Some(base),
        Source::Reordering => {
            Some(Drive { latency: Duration::from_micros(50), jitter: Duration::from_millis(20), ..base })
        }
        Source::Short => Some(Drive {
            short_reads: true,
            jitter: Duration::from_millis(1),
            bandwidth: Some(50_000_000),
            ..base
        }),
    }
}

fn simulated(drive: Drive) -> impl FnOnce(&[PathBuf]) -> Result<Box<dyn Reader>, Error> {
    move |files| Ok(Box::new(SimReader::open(files, drive)?))
}

/// Two copies, striped or not as the seed has it, the second one on a bad drive.
fn copies(seed: u64) -> impl FnOnce(&[PathBuf]) -> Result<Box<dyn Reader>, Error> {
    move |files| {
        let drive = |fault_ppm, seed| -> Result<Copy, Error> {
            let reader = SimReader::open(files, Drive { fault_ppm, ..Drive::rough(seed) })?;
            Ok(Copy { reader: Box::new(reader), files: files.to_vec() })
        };
        let (ways, stripe) = (1 + (seed % 4) as u32, seed % 8 < 4);
        let options = spread::Options { ways, stripe, slice_bytes_min: 4096, ..Default::default() };
        Ok(Box::new(SpreadReader::new(vec![drive(0, seed)?, drive(100_000, seed + 1)?], &options)))
    }
}

fn load(checkpoint: &Checkpoint, options: EngineOptions, source: Source, seed: u64) -> Engine {
    let (reader_kind, reader) = match source {
        Source::Direct => (ReaderKind::Pread, ReaderChoice::Auto),
        Source::Uring => (ReaderKind::Uring, ReaderChoice::Auto),
        _ => (ReaderKind::Auto, ReaderChoice::Buffered),
    };
    let options = EngineOptions { reader_kind, reader, io_threads: 3, ..options };
    let engine = match (source, drive(source, seed)) {
        (Source::Copies, _) => Engine::load_with_reader(checkpoint, options, copies(seed)),
        (_, Some(drive)) => Engine::load_with_reader(checkpoint, options, simulated(drive)),
        (_, None) => match Engine::load(checkpoint, options.clone()) {
            // Containers often forbid it.
            Err(Error::Experts(experts::Error::UringRefused { .. })) => {
                Engine::load(checkpoint, EngineOptions { reader_kind: ReaderKind::Pread, ..options })
            }
            loaded => loaded,
        },
    };
    engine.unwrap_or_else(|e| panic!("{e}"))
}

/// A toy's experts are read sooner than measured, and a reader that is named is not measured.
#[test]
fn few_experts_are_not_measured() {
    let model = write(&Toy::wide(runnable_mixtures().remove(0)), FORMS[0]);
    for (reader_kind, reader) in
        [(ReaderKind::Auto, ReaderChoice::Auto), (ReaderKind::Pread, ReaderChoice::Buffered)]
    {
        let options = EngineOptions { reader_kind, reader, bank: BankSize::SlotsPerLayer(3), ..exact() };
        let engine = Engine::load(&model.open(), options).expect("a toy");
        assert!(
            !engine.reader_was_measured() && engine.reader().starts_with("pread, "),
            "{}",
            engine.reader()
        );
    }
}

fn bank(size: Size, checkpoint: &Checkpoint, options: &EngineOptions) -> BankSize {
    let plan = || {
        let options = EngineOptions { promote: Promote::Never, ..options.clone() };
        let plan = Engine::plan(checkpoint, &options).expect("a plan");
        let bank = plan.bank.expect("a model with experts has a bank");
        (bank.floor_bytes(), bank.classes()[0].slot_bytes)
    };
    match size {
        Size::Slots(n) => BankSize::SlotsPerLayer(n),
        Size::Floor => BankSize::Bytes(plan().0),
        Size::FloorPlus(slots) => BankSize::Bytes(plan().0 + slots * plan().1),
    }
}

/// The answer with everything resident, per mixture and micro-batch, and the files, per mixture and form.
struct Ground {
    toys: Vec<Toy>,
    resident: BTreeMap<(usize, usize), Logits>,
    models: BTreeMap<(usize, usize), OnDisk>,
}

impl Ground {
    fn new() -> Self {
        Self { toys: toys(), resident: BTreeMap::new(), models: BTreeMap::new() }
    }

    fn model(&mut self, mixture: usize, form: usize) -> &OnDisk {
        let toy = &self.toys[mixture];
        self.models.entry((mixture, form)).or_insert_with(|| write(toy, FORMS[form]))
    }

    fn check(&mut self, case: Case) {
        let [size, ubatch, source, form, mixture, threads, policy] = case;
        let (tokens, chunks) = prompt();
        let options = EngineOptions { ubatch: UBATCHES[ubatch], threads: Some(THREADS[threads]), ..exact() };
        if !self.resident.contains_key(&(mixture, ubatch)) {
            let model = self.model(mixture, 0);
            // The reference computes one expert at a time, the streamed runs whole waves.
            let mut engine = model.load(EngineOptions {
                threads: Some(1),
                slot8: false,
                promote: Promote::Never,
                ..options.clone()
            });
            let logits = run(&mut engine, &tokens, &chunks);
            let stats = engine.bank_stats().expect("a bank").total();
            assert_eq!((stats.misses, stats.evictions), (0, 0), "the resident run misses nothing");
            self.resident.insert((mixture, ubatch), logits);
        }
        let size = sizes()[size];
        let what = format!(
            "{size:?}, ubatch {}, {:?}, {:?}, {} {:?}, {} threads, {}",
            UBATCHES[ubatch],
            SOURCES[source],
            FORMS[form],
            self.toys[mixture].config.family.name(),
            self.toys[mixture].types,
            THREADS[threads],
            POLICIES[policy]
        );
        let checkpoint = self.model(mixture, form).open();
        // Where a slot is large enough for it, hot experts are packed, by which they must stay what they are.
        let packs =
            self.toys[mixture].types.experts.iter().flatten().any(|ty| kernels::packed(ty.id()).is_some());
        let promote = match size {
            Size::Slots(_) if packs => Promote::Always,
            _ => Promote::Never,
        };
        let (bank, policy) = (bank(size, &checkpoint, &options), POLICIES[policy].to_owned());
        let options = EngineOptions { bank, policy, promote, ..options };
        let seed = mix64(case.iter().fold(1, |seed, i| seed * 31 + *i as u64));
        let mut engine = load(&checkpoint, options, SOURCES[source], seed);
        let logits = run(&mut engine, &tokens, &chunks);
        assert_same_bits(&logits, &self.resident[&(mixture, ubatch)], &what);
        let stats = engine.bank_stats().expect("a bank").total();
        assert!(stats.misses > 0, "{what}: nothing was streamed");
        if matches!(size, Size::Slots(n) if n < EXPERTS) {
            assert!(stats.evictions > 0, "{what}: nothing was evicted");
        }
    }
}

#[test]
fn streamed_logits_equal_resident_logits_bit_for_bit() {
    let mut ground = Ground::new();
    let lengths = lengths(ground.toys.len());
    let full = std::env::var("SLOTBANK_MATRIX").is_ok_and(|v| v == "full");
    let cases = if full { product(lengths) } else { pairwise(lengths) };
    assert!(full || cases.len() < 200, "{} cases", cases.len());
    for (i, case) in cases.iter().enumerate() {
        if full && i % 1000 == 0 {
            println!("{i} of {} cases", cases.len());
        }
        ground.check(*case);
    }
    println!("{} cases", cases.len());
}

/// The resident answer itself depends neither on the number of threads nor on the form of the files.
#[test]
fn resident_logits_depend_on_neither_threads_nor_form() {
    let (tokens, chunks) = prompt();
    for toy in toys() {
        let mut first: Option<Logits> = None;
        for (form, threads) in FORMS.into_iter().zip([1, 2, 3, 1, 2]) {
            let options = EngineOptions { threads: Some(threads), ..exact() };
            let logits = run(&mut write(&toy, form).load(options), &tokens, &chunks);
            match &first {
                None => first = Some(logits),
                Some(first) => assert_same_bits(&logits, first, &format!("{form:?}, {threads} threads")),
            }
        }
    }
}

/// f16 and q8 caches and the other attention modes stream like everything else.
#[test]
fn other_settings_of_the_engine_stream_alike() {
    use slotbank_engine::{AttentionMode, CacheType};
    let (tokens, chunks) = prompt();
    let model = write(&Toy::wide(Types::all(GgmlType::Q8_0)), Form::WholeTensor);
    for options in [
        EngineOptions { cache_type: CacheType::F16, ..exact() },
        EngineOptions { cache_type: CacheType::Q8, ..exact() },
        EngineOptions { attention: AttentionMode::Dense, ..exact() },
        EngineOptions { attention: AttentionMode::Recent, ..exact() },
        EngineOptions { moe_topk: Some(2), ..exact() },
    ] {
        let resident = run(&mut model.load(options.clone()), &tokens, &chunks);
        let floor = options.moe_topk.unwrap_or(TOP_K);
        let streamed = EngineOptions { bank: BankSize::SlotsPerLayer(floor), ..options.clone() };
        let mut engine = load(&model.open(), streamed, Source::Reordering, 5);
        assert_same_bits(&run(&mut engine, &tokens, &chunks), &resident, &format!("{options:?}"));
    }
}

/// The readers that can be asked for by name, with and without cutting reads.
#[test]
fn every_reader_that_has_a_name_streams_alike() {
    let (tokens, chunks) = prompt();
    let model = write(&Toy::wide(Types::all(GgmlType::Q4_0)), Form::WholeTensor);
    let resident = run(&mut model.load(exact()), &tokens, &chunks);
    for name in ["auto", "pread", "pread-buffered", "uring", "uring-buffered", "sim"] {
        let (reader_kind, reader) = experts::parse_reader(name).expect("a name");
        for io_split in [None, Some(1), Some(4)] {
            let bank = BankSize::SlotsPerLayer(TOP_K + 1);
            let options = EngineOptions { bank, reader_kind, reader, io_split, ..exact() };
            match Engine::load(&model.open(), options) {
                Ok(mut engine) => {
                    let what = format!("{name}, split {io_split:?}: {}", engine.stats().reader);
                    assert_same_bits(&run(&mut engine, &tokens, &chunks), &resident, &what);
                }
                Err(Error::Experts(error @ experts::Error::UringRefused { .. })) => println!("{error}"),
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
}

/// Copies of a sidecar, as `--sidecar A --sidecar B` opens them; one of them is cut short behind our back.
#[test]
fn copies_of_a_sidecar_stream_alike_and_stand_in_for_each_other() {
    let (tokens, chunks) = prompt();
    let toy = Toy::wide(Types::all(GgmlType::Q4_0));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let package =
        |name: &str| toy.write_package(&dir.path().join(name), Convention::TwoFolders, Layout::WholeTensor);
    let packages = ["a", "b", "c"].map(package);
    let open = files::OpenOptions {
        copies: packages[1..].iter().map(|package| package.manifest.clone()).collect(),
        ..Default::default()
    };
    let resident = run(
        &mut Engine::load(&Checkpoint::open(&packages[0].root).expect("opens"), exact()).expect("loads"),
        &tokens,
        &chunks,
    );
    for stripe in [false, true] {
        let checkpoint = Checkpoint::open_with(&packages[0].root, &open).expect("opens");
        let bank = BankSize::SlotsPerLayer(TOP_K);
        let options = EngineOptions { bank, stripe, ..exact() };
        let mut engine = Engine::load(&checkpoint, options).expect("loads");
        assert!(engine.stats().reader.contains("3 copies"), "{}", engine.stats().reader);
        assert_same_bits(&run(&mut engine, &tokens, &chunks), &resident, "three copies");
        assert_eq!(engine.take_warning(), None);
        let bin = packages[1].layer_file(2);
        let whole = std::fs::read(&bin).expect("the layer file");
        let file = std::fs::OpenOptions::new().write(true).open(&bin).expect("writable");
        file.set_len(100).expect("cut");
        assert_same_bits(&run(&mut engine, &tokens, &chunks), &resident, "one copy is bad");
        let warning = engine.take_warning().expect("a warning");
        assert!(warning.contains(&bin.display().to_string()), "{warning}");
        std::fs::write(&bin, whole).expect("restored");
    }
    let one = Checkpoint::open(&packages[0].root).expect("opens");
    let error =
        Engine::load(&one, EngineOptions { stripe: true, ..exact() }).err().expect("nothing to stripe");
    assert!(error.to_string().contains("--stripe"), "{error}");
}

/// A second sequence finds a warm bank and gets the same answer; so does one that goes back and continues.
#[test]
fn a_warm_bank_and_a_truncated_sequence_change_nothing() {
    let (tokens, chunks) = prompt();
    let model = write(&Toy::wide(Types::all(GgmlType::Q4_0)), Form::InPlace);
    let options = EngineOptions { bank: BankSize::SlotsPerLayer(5), ubatch: 1, ..exact() };
    let mut engine = load(&model.open(), options, Source::Direct, 0);
    let first = run(&mut engine, &tokens, &chunks);
    assert_same_bits(&run(&mut engine, &tokens, &chunks), &first, "second run");
    let mut sequence = engine.new_sequence().expect("a free sequence");
    step(&mut engine, &mut sequence, &tokens);
    sequence.truncate(20);
    let again = step(&mut engine, &mut sequence, &tokens[20..]);
    assert_same_bits(&again, &first[20..].to_vec(), "after going back to position 20");
}

/// A read error ends the request with an error that says what failed; the sequence and the bank stay usable, and the rest of
/// the answer is what it would have been.
#[test]
fn a_read_error_ends_one_request_and_nothing_else() {
    let (tokens, _) = prompt();
    let toy = Toy::wide(Types::all(GgmlType::Q8_0));
    let model = write(&toy, Form::WholeTensor);
    for ubatch in [1, 7] {
        let resident = run(&mut model.load(EngineOptions { ubatch, ..exact() }), &tokens, &[tokens.len()]);
        for nth in [0, 1, 4, 11, 30, 61] {
            let fault = Fault { at: FaultAt::Nth(nth), times: 1 };
            let drive = Drive {
                faults: vec![fault],
                seed: nth,
                jitter: Duration::from_millis(3),
                ..Drive::default()
            };
            let options = EngineOptions { bank: BankSize::SlotsPerLayer(4), ubatch, ..exact() };
            let mut engine =
                Engine::load_with_reader(&model.open(), options, simulated(drive)).expect("loads");
            let mut sequence = engine.new_sequence().expect("a free sequence");
            let mut logits: Logits = Vec::new();
            let failed =
                engine.forward(&mut sequence, &tokens, Want::All, &mut |_, row| logits.push(row.to_vec()));
            let error = failed.expect_err("the fault strikes");
            assert_eq!(error.class(), Class::Io);
            let text = error.to_string();
            for part in ["ffn_", "expert ", "layer ", "layer_00", "offset "] {
                assert!(text.contains(part), "`{part}` is not in `{text}`");
            }
            let done = sequence.len();
            assert_eq!(done % ubatch as usize, 0, "the sequence ends where a micro-batch ended");
            logits.truncate(done);
            logits.extend(step(&mut engine, &mut sequence, &tokens[done..]));
            assert_same_bits(&logits, &resident, &format!("fault at read {nth}, ubatch {ubatch}"));
            // Another conversation, on the bank that has seen the fault.
            drop(sequence);
            assert_same_bits(&run(&mut engine, &tokens, &[tokens.len()]), &resident, "the next request");
        }
    }
}

/// The error names the expert that the drive refuses, and the place in the file where it lies.
#[test]
fn a_read_error_names_expert_layer_file_and_offset() {
    let (tokens, _) = prompt();
    let toy = Toy::wide(Types::all(GgmlType::Q8_0));
    let model = write(&toy, Form::WholeTensor);
    let checkpoint = model.open();
    for (layer, expert) in [(1, 4), (2, 0), (3, 11)] {
        let fault = Fault { at: FaultAt::Expert { layer, expert }, times: u32::MAX };
        let options = EngineOptions { bank: BankSize::SlotsPerLayer(TOP_K), ..exact() };
        let drive = Drive { faults: vec![fault], ..Drive::default() };
        let mut engine = Engine::load_with_reader(&checkpoint, options, simulated(drive)).expect("loads");
        let mut sequence = engine.new_sequence().expect("a free sequence");
        let error = engine
            .forward(&mut sequence, &tokens, Want::All, &mut |_, _| {})
            .expect_err("32 tokens use every expert");
        let text = error.to_string();
        let Error::Experts(experts::Error::Read { path, offset, len, layer: l, expert: e, .. }) = error
        else {
            panic!("{text}");
        };
        assert_eq!((l, e), (layer, expert));
        assert!(path.ends_with(format!("layer_{layer:03}.bin")), "{}", path.display());
        let inside =
            [files::Family::Gate, files::Family::Up, files::Family::Down].into_iter().any(|family| {
                let extent = checkpoint.expert(layer, family).expect("an expert tensor").extent(expert);
                (extent.offset..extent.offset + extent.len).contains(&offset) && len <= extent.len
            });
        assert!(inside, "{text}");
    }
}

/// A drive that fails now and then: whoever tries again long enough gets the right answer.
#[test]
fn retried_requests_on_a_bad_drive_give_the_right_answer() {
    let (tokens, _) = prompt();
    let model = write(&Toy::wide(Types::all(GgmlType::Q8_0)), Form::ExpertMajor);
    let resident = run(&mut model.load(EngineOptions { ubatch: 1, ..exact() }), &tokens, &[1]);
    let drive = Drive {
        fault_ppm: 30_000,
        short_reads: true,
        jitter: Duration::from_millis(2),
        clock: Clock::Virtual,
        ..Drive::default()
    };
    let options = EngineOptions { bank: BankSize::SlotsPerLayer(TOP_K), ubatch: 1, ..exact() };
    let mut engine = Engine::load_with_reader(&model.open(), options, simulated(drive)).expect("loads");
    let mut sequence = engine.new_sequence().expect("a free sequence");
    let (mut logits, mut failures): (Logits, u32) = (Vec::new(), 0);
    while logits.len() < tokens.len() {
        let token = tokens[logits.len()];
        let pushed = logits.len();
        match engine.forward(&mut sequence, &[token], Want::All, &mut |_, row| logits.push(row.to_vec())) {
            Ok(()) => assert_eq!(logits.len(), pushed + 1),
            Err(error) => {
                assert_eq!((error.class(), logits.len()), (Class::Io, pushed));
                failures += 1;
                assert!(failures < 1000, "{error}");
            }
        }
    }
    assert!(failures > 3, "{failures} faults only");
    assert_same_bits(&logits, &resident, "after retries");
}

/// A file that was cut after it had been opened: an I/O error, not a wrong answer.
#[test]
fn a_file_cut_behind_our_back_is_an_error() {
    let (tokens, _) = prompt();
    let model = write(&Toy::wide(Types::all(GgmlType::Q8_0)), Form::WholeTensor);
    for source in [Source::Direct, Source::Buffered] {
        let options = EngineOptions { bank: BankSize::SlotsPerLayer(TOP_K), ..exact() };
        let mut engine = load(&model.open(), options, source, 0);
        let bin = model.path.join("layer_002.bin");
        let whole = std::fs::read(&bin).expect("the layer file");
        let file = std::fs::OpenOptions::new().write(true).open(&bin).expect("writable");
        file.set_len(whole.len() as u64 / 2).expect("cut");
        let mut sequence = engine.new_sequence().expect("a free sequence");
        let error = engine
            .forward(&mut sequence, &tokens, Want::None, &mut |_, _| {})
            .expect_err("half of layer 2 is gone");
        assert_eq!(error.class(), Class::Io, "{error}");
        assert!(error.to_string().contains("layer_002.bin"), "{error}");
        std::fs::write(&bin, whole).expect("restored");
    }
}

#[test]
fn a_bank_below_one_tokens_experts_is_refused() {
    let model = write(&Toy::wide(Types::all(GgmlType::Q8_0)), Form::InPlace);
    let checkpoint = model.open();
    let floor = Engine::plan(&checkpoint, &exact()).expect("a plan").bank.expect("a bank").floor_bytes();
    for bank in [BankSize::SlotsPerLayer(TOP_K - 1), BankSize::Bytes(floor - 1)] {
        match Engine::load(&checkpoint, EngineOptions { bank, ..exact() }) {
            Err(error) => {
                assert_eq!(error.class(), Class::DoesNotFit);
                assert!(error.to_string().contains(&floor.to_string()), "{error}");
            }
            Ok(_) => panic!("{bank:?} was accepted"),
        }
    }
}
