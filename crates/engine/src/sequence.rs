//! One conversation's place in the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::StateChange;

/// A sequence: its cached positions belong to it until it is dropped.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) slot: usize,
    pub(crate) len: usize,
    /// Of models that carry a state from token to token.
    carried: Option<Carried>,
    busy: Arc<AtomicBool>,
}

/// Where the states of a sequence's layers are, in positions.
#[derive(Debug)]
struct Carried {
    at: usize,
    /// Those of the snapshots, by place.
    saved: Vec<Option<usize>>,
    /// The place that the next one takes.
    next: usize,
}

impl Sequence {
    /// Takes the cache `slot` when it is free. `snapshots` are the places for them, of models that carry a state.
    pub(crate) fn claim(slot: usize, busy: &Arc<AtomicBool>, snapshots: Option<usize>) -> Option<Self> {
        let free = busy.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        let carried = snapshots.map(|places| Carried { at: 0, saved: vec![None; places], next: 0 });
        free.then(|| Self { slot, len: 0, carried, busy: Arc::clone(busy) })
    }

    /// Cached positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the model carries a state from token to token, so that only some positions can be come back to: those at which
    /// [`Engine::save`](crate::Engine::save) was called.
    pub fn carries_state(&self) -> bool {
        self.carried.is_some()
    }

    /// Forgets positions from `len` on, or from the last position before that can be come back to where the model carries a state;
    /// returns how many are left. What remains is continued exactly as if the others had never been there.
    pub fn truncate(&mut self, len: usize) -> usize {
        let wanted = self.len.min(len);
        let Some(carried) = &mut self.carried else {
            self.len = wanted;
            return wanted;
        };
        let saved = carried.saved.iter().flatten().copied().filter(|&at| at <= wanted).max();
        // While a snapshot waits to be restored, the state is ahead of the sequence.
        self.len = if wanted == self.len { wanted } else { saved.unwrap_or(0) };
        let len = self.len;
        carried.saved.iter_mut().filter(|at| at.is_some_and(|at| at > len)).for_each(|at| *at = None);
        len
    }

    /// What has to happen to the states before a step; `None` where there are none.
    pub(crate) fn before_step(&self) -> Option<StateChange> {
        let carried = self.carried.as_ref()?;
        Some(match carried.saved.iter().position(|at| *at == Some(self.len)) {
            _ if self.len == 0 => StateChange::Clear,
            _ if carried.at == self.len => StateChange::Begin,
            Some(place) => StateChange::Restore(place),
            None => unreachable!("`truncate` stops where the state is or can be restored"),
        })
    }

    /// The states are where the sequence ends.
    pub(crate) fn states_follow(&mut self) {
        if let Some(carried) = &mut self.carried {
            carried.at = self.len;
        }
    }

    /// The place for a snapshot of the states as they are, unless there is none or nothing to keep.
    pub(crate) fn place_to_save(&mut self) -> Option<usize> {
        let carried = self.carried.as_mut()?;
        let kept = self.len == 0 || carried.saved.is_empty() || carried.saved.contains(&Some(self.len));
        if kept {
            return None;
        }
        let place = carried.saved.iter().position(Option::is_none).unwrap_or(carried.next);
        carried.next = (place + 1) % carried.saved.len();
        carried.saved[place] = Some(self.len);
        Some(place)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(snapshots: Option<usize>) -> Sequence {
        Sequence::claim(0, &Arc::default(), snapshots).expect("a free slot")
    }

    /// As after a finished step.
    fn run_to(sequence: &mut Sequence, len: usize) {
        sequence.states_follow();
        sequence.len = len;
        sequence.states_follow();
    }

    #[test]
    fn cached_rows_can_be_cut_anywhere() {
        let mut s = sequence(None);
        run_to(&mut s, 10);
        assert!(!s.carries_state() && s.before_step().is_none());
        assert_eq!((s.truncate(7), s.len()), (7, 7));
        assert_eq!(s.truncate(20), 7);
    }

    #[test]
    fn states_come_back_to_snapshots_only() {
        let mut s = sequence(Some(2));
        assert_eq!(s.before_step(), Some(StateChange::Clear));
        assert_eq!(s.place_to_save(), None, "nothing to keep");
        for (len, place) in [(10, Some(0)), (20, Some(1))] {
            run_to(&mut s, len);
            assert_eq!(s.before_step(), Some(StateChange::Begin));
            assert_eq!((s.place_to_save(), s.place_to_save()), (place, None));
        }
        run_to(&mut s, 25);
        assert_eq!(s.truncate(25), 25);
        assert_eq!(s.before_step(), Some(StateChange::Begin), "the state is there");
        assert_eq!(s.truncate(24), 20);
        assert_eq!(s.before_step(), Some(StateChange::Restore(1)));
        assert_eq!(s.truncate(22), 20, "it has not run since");
        assert_eq!(s.truncate(19), 10);
        assert_eq!(s.before_step(), Some(StateChange::Restore(0)));
        run_to(&mut s, 20); // other tokens than before: the snapshot at 20 is no longer of this sequence
        assert_eq!(s.truncate(15), 10);
        run_to(&mut s, 30);
        assert_eq!(s.truncate(29), 10);
        assert_eq!(s.truncate(9), 0);
        assert_eq!(s.before_step(), Some(StateChange::Clear));
    }

    #[test]
    fn the_oldest_snapshot_makes_room() {
        let mut s = sequence(Some(2));
        for (len, place) in [(1, 0), (2, 1), (3, 0), (4, 1)] {
            run_to(&mut s, len);
            assert_eq!(s.place_to_save(), Some(place));
        }
        run_to(&mut s, 9);
        assert_eq!(s.truncate(3), 3);
        assert_eq!(s.truncate(2), 0);
    }

    #[test]
    fn without_places_there_is_only_the_beginning() {
        let mut s = sequence(Some(0));
        run_to(&mut s, 5);
        assert_eq!(s.place_to_save(), None);
        assert_eq!((s.truncate(5), s.truncate(4)), (5, 0));
    }
}
