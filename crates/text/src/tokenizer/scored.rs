//! Sentencepiece's BPE: of all neighbours whose concatenation is a piece, those with the best score are joined
//! first, the leftmost of equals; until none is left. Characters that end up in no piece are written byte by byte.
//!
//! A queue of candidates and a linked list of symbols make that n log n for any text.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::vocabulary::Checked;
use crate::Error;

/// A vocabulary of scored pieces.
pub(super) struct Scored {
    pieces: HashMap<String, Piece>,
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
}

struct Piece {
    id: u32,
    score: f32,
}

/// A stretch of the text, and its neighbours in the list. Joined to the one before, it is empty.
struct Symbol {
    start: usize,
    end: usize,
    previous: usize,
    next: usize,
}

/// The end of the list.
const NONE: usize = usize::MAX;

/// A symbol that may be joined to the next one.
struct Candidate {
    score: f32,
    left: usize,
    /// Of both together, in bytes; if it has changed, so have they.
    len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl Scored {
    /// The scores are those of a vocabulary that was checked to have one for each token.
    pub(super) fn new(checked: &Checked) -> Self {
        let piece = |(text, id): (&str, u32)| {
            (text.to_owned(), Piece { id, score: checked.scores.get(id as usize).copied().unwrap_or(0.0) })
        };
        Self {
            pieces: checked.mergeable().map(piece).collect(),
            bytes: checked.byte_tokens(),
            unk: checked.unk,
        }
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.pieces.get(token).map(|piece| piece.id)
    }

    /// Appends the ids of `text`, whose spaces are written as sentencepiece does.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, char))| Symbol {
                start,
                end: start + char.len_utf8(),
                previous: index.checked_sub(1).unwrap_or(NONE),
                next: index + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut queue = BinaryHeap::new();
        for left in 0..symbols.len() {
            self.propose(text, &symbols, left, &mut queue);
        }
        while let Some(Candidate { left, len, .. }) = queue.pop() {
            let (start, right) = (symbols[left].start, symbols[left].next);
            let is_stale = symbols[left].end == start || right == NONE || symbols[right].end - start != len;
            if is_stale {
                continue;
            }
            let (end, next) = (symbols[right].end, symbols[right].next);
            symbols[right].start = end;
            (symbols[left].end, symbols[left].next) = (end, next);
            if next != NONE {
                symbols[next].previous = left;
            }
            self.propose(text, &symbols, symbols[left].previous, &mut queue);
            self.propose(text, &symbols, left, &mut queue);
        }
        self.collect(text, &symbols, ids)
    }

    /// Queues `left` and the symbol after it, if they are a piece together.
    fn propose(&self, text: &str, symbols: &[Symbol], left: usize, queue: &mut BinaryHeap<Candidate>) {
        let Some(symbol) = symbols.get(left) else { return };
        let Some(next) = symbols.get(symbol.next) else { return };
        if let Some(piece) = self.pieces.get(&text[symbol.start..next.end]) {
            queue.push(Candidate { score: piece.score, left, len: next.end - symbol.start });
        }
    }

    /// The ids of the symbols that are left.
    fn collect(&self, text: &str, symbols: &[Symbol], ids: &mut Vec<u32>) -> Result<(), Error> {
        // Neighbours that are unknown are one unknown.
        let mut after_unk = false;
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            let word = &text[symbol.start..symbol.end];
            if let Some(id) = self.id(word) {
                ids.push(id);
                after_unk = false;
                continue;
            }
            let bytes: Option<Vec<u32>> = word.bytes().map(|byte| self.bytes[usize::from(byte)]).collect();
            match (bytes, self.unk) {
                (Some(bytes), _) => {
                    ids.extend(bytes);
                    after_unk = false;
                }
                (None, Some(unk)) => {
                    if !after_unk {
                        ids.push(unk);
                    }
                    after_unk = true;
                }
                (None, None) => {
                    let is_missing = |byte: &u8| self.bytes[usize::from(*byte)].is_none();
                    return Err(Error::NoSymbol { byte: word.bytes().find(is_missing).unwrap_or_default() });
                }
            }
        }
        Ok(())
    }
}
