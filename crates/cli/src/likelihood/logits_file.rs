//! Predictions kept in a file, to be compared with those of another run.
//!
//! ```text
//! "_logits_"  i32 window  i32 n_vocab  i32 windows   i32 token × (windows * window)
//! then (window - 1 - window / 2) rows per window:
//!   f32 scale  f32 smallest  u16 × n_vocab  (u16, where n_vocab is odd)        log-probability = scale * u16 + smallest
//! ```
//!
//! is what llama.cpp's perplexity tool writes and reads, so that files go either way. Probabilities below e^-16 of the likeliest token's
//! are all stored as that. A second form of our own, `_logf32_`, has rows of `f32 × n_vocab`: the logits themselves, for comparisons in
//! which nothing may be rounded. All numbers are little-endian.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use files::Class;

use super::{Windows, log_sum_exp};
use crate::ui::error::{Failure, Report};

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Log-probabilities in 16 bits.
    Shared,
    /// Logits as they are.
    Exact,
}

/// Log-probabilities below this carry no information in the shared form.
const FLOOR: f32 = 16.0;
/// Bounds of what a file may claim.
const WINDOW_MAX: usize = 1 << 24;
const VOCAB_MAX: usize = 1 << 24;

impl Form {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Shared => b"_logits_",
            Self::Exact => b"_logf32_",
        }
    }

    fn row_bytes(self, n_vocab: usize) -> usize {
        match self {
            Self::Shared => 8 + 2 * n_vocab.next_multiple_of(2),
            Self::Exact => 4 * n_vocab,
        }
    }
}

/// A file that is being written.
pub(crate) struct Writer {
    out: BufWriter<File>,
    form: Form,
    row: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(file: File, form: Form, windows: &Windows, n_vocab: usize) -> io::Result<Self> {
        let mut out = BufWriter::new(file);
        out.write_all(form.magic())?;
        for number in [windows.length, n_vocab, windows.count] {
            out.write_all(&(number as i32).to_le_bytes())?;
        }
        for token in &windows.tokens[..windows.count * windows.length] {
            out.write_all(&(*token as i32).to_le_bytes())?;
        }
        Ok(Self { out, form, row: Vec::with_capacity(form.row_bytes(n_vocab)) })
    }

    pub(crate) fn push(&mut self, logits: &[f32]) -> io::Result<()> {
        self.row.clear();
        match self.form {
            Form::Exact => logits.iter().for_each(|logit| self.row.extend(logit.to_le_bytes())),
            Form::Shared => pack(logits, &mut self.row),
        }
        self.out.write_all(&self.row)
    }

    pub(crate) fn finish(self) -> io::Result<File> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(file)
    }
}

/// One row in the shared form.
fn pack(logits: &[f32], row: &mut Vec<u8>) {
    let (min, max) =
        logits.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &x| (min.min(x), max.max(x)));
    let min = min.max(max - FLOOR);
    let scale = (max - min) / f32::from(u16::MAX);
    row.extend(scale.to_le_bytes());
    row.extend(((f64::from(min) - log_sum_exp(logits)) as f32).to_le_bytes());
    for &logit in logits {
        let steps = if scale > 0.0 && logit > min { ((logit - min) / scale).round_ties_even() } else { 0.0 };
        row.extend((steps as u16).to_le_bytes());
    }
    if logits.len() % 2 == 1 {
        row.extend([0; 2]);
    }
}

/// A file that is being read.
#[derive(Debug)]
pub(crate) struct Reader {
    input: BufReader<File>,
    path: PathBuf,
    form: Form,
    n_vocab: usize,
    row: Vec<u8>,
}

impl Reader {
    /// Opens a file and says over which windows it was made; `bos` is the model's business.
    pub(crate) fn open(path: &Path) -> Result<(Self, Windows), Failure> {
        let file = File::open(path).map_err(|e| Failure::file("cannot read the predictions", path, &e))?;
        Self::new(file, path)
    }

    /// From the beginning of `file`, which is called `path` in messages.
    pub(crate) fn new(mut file: File, path: &Path) -> Result<(Self, Windows), Failure> {
        let failed = |e: io::Error| Failure::file("cannot read the predictions", path, &e);
        let bad = |why: String| -> Failure {
            Report::new(Class::BadFile, "bad file of predictions")
                .place(path.display().to_string())
                .why(why)
                .hint("`slotbank perplexity MODEL -f TEXT --save-logits FILE` writes one")
                .into()
        };
        let bytes = file.metadata().map_err(failed)?.len();
        file.rewind().map_err(failed)?;
        let mut input = BufReader::new(file);
        let mut head = [0; 20];
        if bytes < 20 {
            return Err(bad(format!("{bytes} bytes are no header")));
        }
        input.read_exact(&mut head).map_err(failed)?;
        let Some(form) = [Form::Shared, Form::Exact].into_iter().find(|form| form.magic() == &head[..8])
        else {
            return Err(bad("it does not begin as one".into()));
        };
        let number = |i: usize| i32::from_le_bytes(head[8 + 4 * i..][..4].try_into().expect("four bytes"));
        let size = |i: usize, what: &str, max: usize| match usize::try_from(number(i)) {
            Ok(n) if n > 0 && n <= max => Ok(n),
            _ => Err(bad(format!("{} {what}", number(i)))),
        };
        let (length, n_vocab) =
            (size(0, "tokens per window", WINDOW_MAX)?, size(1, "tokens in the vocabulary", VOCAB_MAX)?);
        let count = size(2, "windows", i32::MAX as usize)?;
        if length < 4 {
            return Err(bad(format!("windows of {length} tokens")));
        }
        let rows = count as u64 * (length - 1 - length / 2) as u64;
        let ids_bytes = 4 * count as u64 * length as u64;
        let expected = (20 + ids_bytes).saturating_add(rows.saturating_mul(form.row_bytes(n_vocab) as u64));
        if expected != bytes {
            return Err(bad(format!(
                "it has {bytes} bytes, {count} windows of {length} tokens take {expected}"
            )));
        }
        let mut ids = vec![0; 4 * count * length];
        input.read_exact(&mut ids).map_err(failed)?;
        let tokens: Vec<u32> =
            ids.chunks_exact(4).map(|id| u32::from_le_bytes(id.try_into().expect("four bytes"))).collect();
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= n_vocab) {
            return Err(bad(format!("token {token} of a vocabulary of {n_vocab}")));
        }
        let windows = Windows::over(tokens, length, None, None, None)?;
        let row = vec![0; form.row_bytes(n_vocab)];
        Ok((Self { input, path: path.to_owned(), form, n_vocab, row }, windows))
    }

    pub(crate) fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Below this a log-probability is a floor, not a value.
    pub(crate) fn floor(&self) -> f64 {
        match self.form {
            Form::Shared => -f64::from(FLOOR),
            Form::Exact => f64::NEG_INFINITY,
        }
    }

    /// The next row as log-probabilities, one per token of the vocabulary.
    pub(crate) fn next(&mut self, log_probs: &mut Vec<f64>) -> Result<(), Failure> {
        let Self { input, path, row, .. } = self;
        input.read_exact(row).map_err(|e| Failure::file("cannot read the predictions", path, &e))?;
        let f32_at = |at: usize| f32::from_le_bytes(row[at..at + 4].try_into().expect("four bytes"));
        log_probs.clear();
        match self.form {
            Form::Shared => {
                let (scale, smallest) = (f32_at(0), f32_at(4));
                let steps = row[8..].chunks_exact(2).take(self.n_vocab);
                let steps = steps.map(|step| u16::from_le_bytes([step[0], step[1]]));
                log_probs.extend(steps.map(|step| f64::from(scale) * f64::from(step) + f64::from(smallest)));
            }
            Form::Exact => {
                let logits: Vec<f32> = (0..self.n_vocab).map(|i| f32_at(4 * i)).collect();
                let total = log_sum_exp(&logits);
                log_probs.extend(logits.iter().map(|&logit| f64::from(logit) - total));
            }
        }
        if log_probs.iter().any(|p| !p.is_finite()) {
            return Err(Report::new(Class::BadFile, "bad file of predictions")
                .place(path.display().to_string())
                .why("a row of it is not finite")
                .into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(row: usize) -> Vec<f32> {
        (0..7).map(|i| ((row * 7 + i) as f32 * 1.7).sin() * 9.0).collect()
    }

    fn written(form: Form) -> (File, Windows) {
        let windows =
            Windows::over((0..19).map(|t| t % 7).collect(), 8, None, None, None).expect("two windows");
        let mut writer =
            Writer::new(tempfile::tempfile().expect("a file"), form, &windows, 7).expect("a header");
        (0..windows.count * windows.rows()).for_each(|row| writer.push(&logits(row)).expect("a row"));
        (writer.finish().expect("flushed"), windows)
    }

    #[test]
    fn rows_come_back() {
        for (form, bound) in [(Form::Exact, 1e-12), (Form::Shared, 2e-4)] {
            let (file, windows) = written(form);
            let (mut reader, found) = Reader::new(file, Path::new("x")).expect("sound");
            assert_eq!(found, windows);
            let mut log_probs = Vec::new();
            for row in 0..windows.count * windows.rows() {
                reader.next(&mut log_probs).expect("a row");
                let logits = logits(row);
                let (total, max) = (log_sum_exp(&logits), logits.iter().copied().fold(f32::MIN, f32::max));
                for (found, &logit) in log_probs.iter().zip(&logits) {
                    let held = if form == Form::Shared { logit.max(max - FLOOR) } else { logit };
                    assert!((found - (f64::from(held) - total)).abs() < bound, "{form:?} {found} {logit}");
                }
            }
            assert!(reader.next(&mut log_probs).is_err(), "there are no more");
        }
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let (mut file, _) = written(Form::Shared);
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("readable");
        let opens = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(bytes).expect("written");
            Reader::new(file, Path::new("x")).is_ok()
        };
        assert!(opens(&bytes));
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = to;
            bytes
        };
        assert!(!opens(&bytes[..bytes.len() - 1]) && !opens(&bytes[..12]) && !opens(b""));
        // Magic, window, vocabulary, windows (negative), a token beyond the vocabulary.
        for (at, to) in [(0, b'x'), (8, 9), (12, 6), (19, 0x80), (20, 7)] {
            assert!(!opens(&changed(at, to)), "byte {at}");
        }
    }
}
