//! What has been finished, so that a restart need not do it again.
//!
//! JSON lines in the destination, one per finished bin, each appended and synced only after the bin itself was synced and
//! renamed. A torn last line is a bin that will be written again. The file is removed when the manifest is in place.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dense::DenseSums;
use crate::Error;
use crate::sums::Sum;

/// The journal's file name.
pub(super) const FILE_NAME: &str = ".slotbank-extract.jsonl";

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begin { fingerprint: String },
    Layer { layer: u32, sums: BTreeMap<String, Vec<Sum>> },
    Dense { sums: DenseSums },
}

/// An open journal.
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    /// Sums of finished bins.
    pub(super) layers: BTreeMap<u32, BTreeMap<String, Vec<Sum>>>,
    /// Sums of the dense GGUF, when it is finished.
    pub(super) dense: Option<DenseSums>,
}

impl Journal {
    /// Opens or begins the journal of the extraction called `fingerprint` in `folder`.
    ///
    /// # Errors
    /// When another extraction was left unfinished there.
    pub(super) fn open(folder: &Path, fingerprint: &str) -> Result<Self, Error> {
        let path = folder.join(FILE_NAME);
        let fail = |e| Error::io(&path, e);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(fail)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(fail)?;
        let mut this = Self { file, path, layers: BTreeMap::new(), dense: None };
        if this.replay(&text, fingerprint)? {
            return Ok(this);
        }
        this.file.set_len(0).map_err(|e| Error::io(&this.path, e))?;
        this.append(&Line::Begin { fingerprint: fingerprint.to_owned() })?;
        Ok(this)
    }

    /// Takes in what earlier runs did; false when there is nothing to take in.
    fn replay(&mut self, text: &str, fingerprint: &str) -> Result<bool, Error> {
        let complete = text.rfind('\n').map_or("", |end| &text[..=end]);
        if complete.len() < text.len() {
            self.file.set_len(complete.len() as u64).map_err(|e| Error::io(&self.path, e))?;
        }
        let mut lines = complete.lines().map_while(|line| serde_json::from_str::<Line>(line).ok());
        match lines.next() {
            None => return Ok(false),
            Some(Line::Begin { fingerprint: found }) if found == fingerprint => {}
            Some(_) => {
                return Err(Error::Exists {
                    path: self.path.clone(),
                    hint: "another extraction was begun there: finish it with the same arguments, or pass --force to start over"
                        .into(),
                });
            }
        }
        for line in lines {
            match line {
                Line::Begin { .. } => {}
                Line::Layer { layer, sums } => drop(self.layers.insert(layer, sums)),
                Line::Dense { sums } => self.dense = Some(sums),
            }
        }
        Ok(true)
    }

    pub(super) fn layer_done(&mut self, layer: u32, sums: BTreeMap<String, Vec<Sum>>) -> Result<(), Error> {
        let line = Line::Layer { layer, sums };
        self.append(&line)?;
        if let Line::Layer { layer, sums } = line {
            self.layers.insert(layer, sums);
        }
        Ok(())
    }

    pub(super) fn dense_done(&mut self, sums: DenseSums) -> Result<(), Error> {
        self.append(&Line::Dense { sums: sums.clone() })?;
        self.dense = Some(sums);
        Ok(())
    }

    fn append(&mut self, line: &Line) -> Result<(), Error> {
        let mut text = serde_json::to_string(line)
            .map_err(|e| Error::Internal { why: format!("extract journal: {e}") })?;
        text.push('\n');
        let write = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        write.map_err(|e| Error::io(&self.path, e))
    }

    /// The extraction is complete.
    pub(super) fn finish(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(|e| Error::io(&self.path, e))
    }
}
