//! The threads that read.

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

use super::{Options, Problem, Progress};
use crate::handles::{CHUNK_BYTES, Handles};
use crate::sums::Sum;
use crate::{Checkpoint, Error, Extent, Packer};

/// One slice to read.
pub(super) struct Item<'a> {
    pub(super) extent: Extent,
    /// Index into the experts, or into the dense tensors when `expert` is `None`.
    pub(super) tensor: usize,
    pub(super) expert: Option<u32>,
    pub(super) expected: Option<Sum>,
    /// The same slice of the other checkpoint.
    pub(super) other: Option<Extent>,
    /// What has to be done to that one before it can be compared.
    pub(super) packer: Option<&'a Packer>,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) sum: Option<Sum>,
    pub(super) problem: Option<Problem>,
}

/// Sent to the thread that shows progress.
struct Step {
    bytes: u64,
    bad: bool,
}

/// Reads all items. The outcomes are in the order of the items, whichever thread read them.
pub(super) fn run(
    own: &Checkpoint,
    other: Option<&Checkpoint>,
    items: &[Item<'_>],
    options: &Options,
    mut bad: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Outcome>, Error> {
    let available = thread::available_parallelism().map_or(2, |n| n.get().max(2));
    let threads = options.threads.unwrap_or(available).clamp(1, items.len().max(1));
    let next = AtomicUsize::new(0);
    let stopped = || options.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed));
    let results: Mutex<Vec<Outcome>> = Mutex::new(items.iter().map(|_| Outcome::default()).collect());
    let bytes_total = items.iter().map(|item| item.extent.len).sum();
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel::<Step>();
        for _ in 0..threads {
            let (sender, next, results, stopped) = (sender.clone(), &next, &results, &stopped);
            scope.spawn(move || {
                let mut slice = Slice::new(own, other);
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at).filter(|_| !stopped()) else { break };
                    let outcome = slice.check(item);
                    let step = Step { bytes: item.extent.len, bad: outcome.problem.is_some() };
                    results.lock().unwrap_or_else(|e| e.into_inner())[at] = outcome;
                    // The receiver outlives the senders; if it is gone, nobody wants to know.
                    drop(sender.send(step));
                }
            });
        }
        drop(sender);
        let mut bytes_done = 0;
        for step in receiver {
            bytes_done += step.bytes;
            bad += usize::from(step.bad);
            progress(Progress { bytes_done, bytes_total, bad });
        }
    });
    if stopped() {
        return Err(Error::Interrupted { what: "verify stopped before the end".into() });
    }
    Ok(results.into_inner().unwrap_or_else(|e| panic::resume_unwind(Box::new(e.to_string()))))
}

/// Reads one slice here and, if asked, there.
struct Slice<'a> {
    own: Handles<'a>,
    other: Option<Handles<'a>>,
    here: Vec<u8>,
    there: Vec<u8>,
}

impl<'a> Slice<'a> {
    fn new(own: &'a Checkpoint, other: Option<&'a Checkpoint>) -> Self {
        Self {
            own: Handles::new(own.files()),
            other: other.map(|other| Handles::new(other.files())),
            here: Vec::with_capacity(CHUNK_BYTES),
            there: Vec::new(),
        }
    }

    /// The other checkpoint's slice, packed as ours is.
    fn packed_other(&mut self, item: &Item<'_>) -> Result<Option<Vec<u8>>, Error> {
        let (Some(extent), Some(handles), Some(packer)) = (item.other, &mut self.other, item.packer) else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        handles.read_chunks(&extent, &mut self.there, |_, piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(Some(packer.pack(&bytes)))
    }

    fn check(&mut self, item: &Item<'_>) -> Outcome {
        let mut hasher = blake3::Hasher::new();
        let mut difference = None;
        let packed = match self.packed_other(item) {
            Ok(packed) => packed,
            Err(e) => return Outcome { sum: None, problem: Some(Problem::Unreadable(e.to_string())) },
        };
        let (other, there) = (&mut self.other, &mut self.there);
        let read = self.own.read_chunks(&item.extent, &mut self.here, |done, bytes| {
            hasher.update(bytes);
            let (Some(extent), Some(handles), None) = (item.other, other.as_mut(), &difference) else {
                return Ok(());
            };
            match &packed {
                None => {
                    there.resize(bytes.len(), 0);
                    handles.read_at(extent.file, extent.offset + done, there)?;
                }
                Some(packed) => {
                    let from = usize::try_from(done).expect("it is in memory");
                    there.clear();
                    there.extend_from_slice(&packed[from..from + bytes.len()]);
                }
            }
            if let Some(at) = bytes.iter().zip(&*there).position(|(a, b)| a != b) {
                let at_file = item.extent.offset + done + at as u64;
                difference = Some(Problem::Bytes { at: at_file, expected: there[at], got: bytes[at] });
            }
            Ok(())
        });
        match read {
            // A slice that ends beyond the file is named by what it needs itself, not by the chunk that failed.
            Err(Error::Truncated { has, .. }) => {
                let needs = item.extent.offset + item.extent.len;
                Outcome { sum: None, problem: Some(Problem::Truncated { needs, has }) }
            }
            Err(e) => Outcome { sum: None, problem: Some(Problem::Unreadable(e.to_string())) },
            Ok(()) => {
                let got: Sum = hasher.finalize().into();
                let wrong_sum = item.expected.filter(|&expected| expected != got);
                // The other checkpoint says where the difference is, so it is the better witness of the two.
                let problem = difference.or(wrong_sum.map(|expected| Problem::Sum { expected, got }));
                Outcome { sum: Some(got), problem }
            }
        }
    }
}
