//! The routing trace: one JSON object per routed layer call, one call per line.
//!
//! ```json
//! {"seq":0,"layer":3,"n_expert_used":2,"n_tokens":1,"experts":[17,201],"slots":[0,1]}
//! ```
//! `experts` holds `n_expert_used · n_tokens` ids, token by token, in router order; `slots` the slots given,
//! in the same shape, numbered per layer. When a call needs more experts than it gets slots, a slot number
//! serves several experts one after the other.
//!
//! Behind these keys a line may have `"predicted":[…]`: the experts that a look-ahead named for this call one
//! routed layer earlier, likeliest first. Readers pass over keys that they do not know.
//!
//! Lines are buffered; [`Trace::finish`] writes them out. Writing a line allocates nothing.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where trace lines go.
pub struct Trace {
    out: BufWriter<Box<dyn Write + Send + Sync>>,
    seq: u64,
    /// The first thing that went wrong; nothing is written after it.
    failed: Option<std::io::Error>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("seq", &self.seq).field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Trace {
    /// Lines into `out`.
    pub fn new(out: Box<dyn Write + Send + Sync>) -> Self {
        Trace { out: BufWriter::with_capacity(1 << 16, out), seq: 0, failed: None }
    }

    /// Lines into a new file, or over an old one.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|source| Error::Open { path: path.into(), source })?;
        Ok(Self::new(Box::new(file)))
    }

    /// One routed layer call. A write that fails is reported by [`Trace::finish`]: a full disk must not end a
    /// generation.
    pub(crate) fn record(
        &mut self,
        layer: u32,
        k: u32,
        experts: &[u32],
        slots: impl Iterator<Item = u32>,
        predicted: &[u32],
    ) {
        if self.failed.is_none() {
            self.failed = self.write(layer, k, experts, slots, predicted).err();
        }
    }

    fn write(
        &mut self,
        layer: u32,
        k: u32,
        experts: &[u32],
        slots: impl Iterator<Item = u32>,
        predicted: &[u32],
    ) -> std::io::Result<()> {
        let n_tokens = experts.len() as u32 / k;
        let seq = self.seq;
        write!(
            self.out,
            r#"{{"seq":{seq},"layer":{layer},"n_expert_used":{k},"n_tokens":{n_tokens},"experts":["#
        )?;
        write_list(&mut self.out, experts.iter().copied())?;
        self.out.write_all(br#"],"slots":["#)?;
        write_list(&mut self.out, slots)?;
        if !predicted.is_empty() {
            self.out.write_all(br#"],"predicted":["#)?;
            write_list(&mut self.out, predicted.iter().copied())?;
        }
        self.out.write_all(b"]}\n")?;
        self.seq += 1;
        Ok(())
    }

    /// Writes out what is buffered and reports the first write that failed.
    pub fn finish(mut self) -> Result<()> {
        match self.failed.take() {
            Some(error) => Err(Error::TraceIo(error)),
            None => self.out.flush().map_err(Error::TraceIo),
        }
    }
}

fn write_list(out: &mut impl Write, values: impl Iterator<Item = u32>) -> std::io::Result<()> {
    for (i, value) in values.enumerate() {
        if i > 0 {
            out.write_all(b",")?;
        }
        write!(out, "{value}")?;
    }
    Ok(())
}

/// One routed layer call, read back. Keys beyond these are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRecord {
    /// Number of the call, over all layers.
    #[serde(default)]
    pub seq: u64,
    /// Block index.
    pub layer: u32,
    /// Experts per token.
    pub n_expert_used: u32,
    /// Tokens in the call.
    pub n_tokens: u32,
    /// Expert ids, token-major.
    pub experts: Vec<u32>,
    /// Slots given, numbered per layer; may be missing in hand-made traces.
    #[serde(default)]
    pub slots: Vec<u32>,
    /// Experts that a look-ahead expected in this call before its router had spoken; empty where there was none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub predicted: Vec<u32>,
}

/// The records of a trace, in order. Empty lines and lines that begin with `#` are skipped.
pub fn read(input: impl BufRead) -> impl Iterator<Item = Result<TraceRecord>> {
    input.lines().zip(1u64..).filter_map(|(text, line)| match text {
        Err(error) => Some(Err(Error::TraceIo(error))),
        Ok(text) if text.trim().is_empty() || text.trim_start().starts_with('#') => None,
        Ok(text) => Some(parse(&text).map_err(|why| Error::TraceLine { line, why })),
    })
}

/// The records of a trace file.
pub fn open(path: &Path) -> Result<impl Iterator<Item = Result<TraceRecord>> + use<>> {
    let file = File::open(path).map_err(|source| Error::TraceOpen { path: path.into(), source })?;
    Ok(read(BufReader::new(file)))
}

fn parse(text: &str) -> Result<TraceRecord, String> {
    let record: TraceRecord = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let (k, n) = (record.n_expert_used, record.n_tokens);
    let wanted = u64::from(k) * u64::from(n);
    if k == 0 || record.experts.len() as u64 != wanted {
        return Err(format!("{} experts for {n} tokens of {k}", record.experts.len()));
    }
    if !record.slots.is_empty() && record.slots.len() != record.experts.len() {
        return Err(format!("{} slots for {} experts", record.slots.len(), record.experts.len()));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_have_exactly_the_known_keys_in_order() {
        let sink = Sink::default();
        let mut trace = Trace::new(Box::new(sink.clone()));
        trace.record(3, 8, &[17, 201, 4, 88, 139, 250, 63, 9], 0..8, &[]);
        trace.record(4, 2, &[5, 6, 6, 7], [1, 0, 0, 2].into_iter(), &[]);
        trace.finish().unwrap();
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let golden = concat!(
            r#"{"seq":0,"layer":3,"n_expert_used":8,"n_tokens":1,"experts":[17,201,4,88,139,250,63,9],"slots":[0,1,2,3,4,5,6,7]}"#,
            "\n",
            r#"{"seq":1,"layer":4,"n_expert_used":2,"n_tokens":2,"experts":[5,6,6,7],"slots":[1,0,0,2]}"#,
            "\n",
        );
        assert_eq!(text, golden);
        let records: Vec<_> = read(text.as_bytes()).collect::<Result<_>>().unwrap();
        assert_eq!(records[1].experts, [5, 6, 6, 7]);
        assert_eq!(serde_json::to_string(&records[0]).unwrap(), golden.lines().next().unwrap());
    }

    #[test]
    fn foreign_lines_are_understood_or_refused_by_number() {
        let text = "# a comment\n\n{\"layer\":1,\"n_expert_used\":1,\"n_tokens\":1,\"experts\":[4],\"phase\":\"decode\"}\n{\"layer\":1}\n";
        let records: Vec<_> = read(text.as_bytes()).collect();
        assert_eq!(records[0].as_ref().unwrap().experts, [4]);
        assert!(matches!(&records[1], Err(Error::TraceLine { line: 4, .. })), "{:?}", records[1]);
        let wrong = "{\"layer\":1,\"n_expert_used\":2,\"n_tokens\":2,\"experts\":[4]}";
        assert!(read(wrong.as_bytes()).next().unwrap().is_err());
    }

    #[test]
    fn predictions_are_read_where_there_are_any() {
        let line = r#"{"seq":7,"layer":1,"n_expert_used":2,"n_tokens":1,"experts":[4,9],"slots":[0,1],"predicted":[9,3,4]}"#;
        let record = read(line.as_bytes()).next().unwrap().unwrap();
        assert_eq!(record.predicted, [9, 3, 4]);
        assert_eq!(serde_json::to_string(&record).unwrap(), line);
    }
}
