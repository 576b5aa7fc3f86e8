//! One mutable slice shared by the tasks of a dispatch, each writing its own part.

use std::marker::PhantomData;

/// A `&mut [T]` that several tasks may write at once, at places that do not overlap. The only door through which the
/// kernels write from more than one thread.
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: handing out parts is unsafe and its caller promises that they do not overlap, so sharing the wrapper moves
// exclusive access to T between threads, which needs T: Send.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Borrows the slice for as long as the wrapper lives.
    pub fn new(slice: &'a mut [T]) -> SharedMut<'a, T> {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), _borrow: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements `from..from + len`.
    ///
    /// # Safety
    /// While the returned slice lives, nobody else has a part that overlaps it.
    ///
    /// # Panics
    /// The part lies outside the slice.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from, "part outside the shared slice");
        // SAFETY: inside the borrowed slice (checked), and not aliased (the caller's promise).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    /// The elements `from..from + len`, to read.
    ///
    /// # Safety
    /// While the returned slice lives, nobody has a part to write that overlaps it, and whoever wrote there before
    /// synchronised with this thread.
    ///
    /// # Panics
    /// The part lies outside the slice.
    pub unsafe fn read(&self, from: usize, len: usize) -> &[T] {
        assert!(from <= self.len && len <= self.len - from, "part outside the shared slice");
        // SAFETY: inside the borrowed slice (checked), and not written while it lives (the caller's promise).
        unsafe { std::slice::from_raw_parts(self.start.add(from), len) }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// Nobody else has or reads a part that contains it.
    ///
    /// # Panics
    /// `index` is outside the slice.
    pub unsafe fn write(&self, index: usize, value: T)
    where
        T: Copy,
    {
        assert!(index < self.len, "element outside the shared slice");
        // SAFETY: inside the borrowed slice (checked), not aliased (the caller's promise); T: Copy needs no drop.
        unsafe { self.start.add(index).write(value) }
    }
}
