//! A zeroed, page-aligned byte buffer: arenas, activation rows, caches.
//!
//! The memory comes from a zeroing allocation of the system allocator, which for large sizes hands out untouched pages:
//! they cost nothing until first written, or until [`AlignedBuf::touch`] faults them in.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const PAGE: usize = 4 << 10;
const HUGE_PAGE: usize = 2 << 20;

/// A fixed-size, zero-initialised buffer aligned to 4 KiB, or to 2 MiB from 2 MiB upwards.
pub struct AlignedBuf {
    start: NonNull<u8>, // aligned, inside the allocation
    len: usize,
    base: NonNull<u8>,
    layout: Layout, // of the whole allocation at `base`; size 0 means there is none
    locked: bool,
}

/// Weights are read once per token from far apart: with small pages each 4 KiB costs a page walk.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(start: NonNull<u8>, len: usize) {
    // SAFETY: the range lies inside an allocation that nobody uses yet; the advice changes no content.
    // It is only advice: a system without huge pages refuses, and nothing is lost.
    let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, rustix::mm::Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_start: NonNull<u8>, _len: usize) {}

// SAFETY: the buffer owns its memory exclusively, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads bytes.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes. Aborts like `Vec` when the allocator refuses.
    ///
    /// # Panics
    /// `len` is beyond what an allocation can be.
    pub fn zeroed(len: usize) -> AlignedBuf {
        if len == 0 {
            let dangling = NonNull::dangling();
            return AlignedBuf {
                start: dangling,
                len,
                base: dangling,
                layout: Layout::new::<()>(),
                locked: false,
            };
        }
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
        // Over-allocating with a small alignment keeps the allocator's zero-page path; asking for a large one would
        // make it write every byte.
        let size = len.checked_add(align).expect("buffer length overflows");
        let layout = Layout::from_size_align(size, 16).expect("buffer length overflows");
        // SAFETY: the layout's size is not zero.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        let skip = base.as_ptr().align_offset(align);
        debug_assert!(skip <= align);
        // SAFETY: skip < align, so start + len stays inside the allocation of len + align bytes.
        let start = unsafe { base.add(skip) };
        if len >= HUGE_PAGE {
            ask_for_huge_pages(start, len);
        }
        AlignedBuf { start, len, base, layout, locked: false }
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: start..start+len is inside our allocation and initialised (zeroed); shared borrow of self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// All bytes, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in as_slice, and self is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The first byte; aligned to 4 KiB at least (dangling when empty).
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The first byte, for readers that fill the buffer through a pointer.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Faults every page in, keeping the contents, so that first use is not slow; on several threads where that pays, since the
    /// system has to clear each page.
    pub fn touch(&mut self) {
        /// Bytes that are worth a thread.
        const SHARE_MIN: usize = 64 << 20;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = self.len.div_ceil(threads).max(SHARE_MIN).next_multiple_of(HUGE_PAGE);
        std::thread::scope(|scope| {
            let mut shares = self.as_mut_slice().chunks_mut(share);
            let own = shares.next();
            for share in shares {
                scope.spawn(|| touch_pages(share));
            }
            own.map(touch_pages);
        });
    }

    /// Asks the system to keep the buffer's pages in memory, whatever else it needs memory for, until [`AlignedBuf::unlock`] or the end
    /// of the buffer. False where it refuses, as beyond the limit of locked memory. A last page that is shared with other memory is left
    /// out.
    pub fn lock(&mut self) -> bool {
        self.locked = self.locked || lock_pages(self.start, self.whole_pages());
        self.locked
    }

    /// Takes [`AlignedBuf::lock`] back.
    pub fn unlock(&mut self) {
        if std::mem::take(&mut self.locked) {
            unlock_pages(self.start, self.whole_pages());
        }
    }

    fn whole_pages(&self) -> usize {
        self.len - self.len % PAGE
    }
}

fn touch_pages(bytes: &mut [u8]) {
    for page in bytes.chunks_mut(PAGE) {
        let first: *mut u8 = &mut page[0];
        // SAFETY: a valid, exclusively borrowed byte; volatile so that the write is not optimised away.
        unsafe { first.write_volatile(first.read_volatile()) };
    }
}

#[cfg(target_os = "linux")]
fn lock_pages(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: whole pages of an allocation of ours; locking changes neither their content nor who may use them.
    len == 0 || unsafe { rustix::mm::mlock(start.as_ptr().cast(), len) }.is_ok()
}

#[cfg(target_os = "linux")]
fn unlock_pages(start: NonNull<u8>, len: usize) {
    if len > 0 {
        // SAFETY: as above. What cannot be unlocked stays in memory until it is unmapped, which harms nobody.
        let _ = unsafe { rustix::mm::munlock(start.as_ptr().cast(), len) };
    }
}

#[cfg(not(target_os = "linux"))]
fn lock_pages(_start: NonNull<u8>, _len: usize) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn unlock_pages(_start: NonNull<u8>, _len: usize) {}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // The allocator may hand the pages on, and they would count against the limit for ever.
        self.unlock();
        if self.layout.size() != 0 {
            // SAFETY: base was allocated with exactly this layout and is freed once.
            unsafe { dealloc(self.base.as_ptr(), self.layout) }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_writable() {
        for len in [1, 4095, 4096, 100_000, HUGE_PAGE, HUGE_PAGE + 1, 3 * HUGE_PAGE] {
            let mut buf = AlignedBuf::zeroed(len);
            let align = if len >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
            assert_eq!(buf.as_ptr() as usize % align, 0);
            assert_eq!(buf.len(), len);
            assert!(buf.iter().all(|&b| b == 0));
            buf[len - 1] = 7;
            buf.touch();
            assert_eq!(buf[len - 1], 7);
        }
    }

    /// Bytes that this process has locked, as the system counts them.
    #[cfg(target_os = "linux")]
    fn locked_kb() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn locked_pages_are_counted_until_the_buffer_ends() {
        let mut buf = AlignedBuf::zeroed(3 * PAGE + 7);
        let before = locked_kb();
        if !buf.lock() {
            return; // not even three pages may be locked here
        }
        assert!(buf.lock(), "twice is once");
        assert_eq!(locked_kb() - before, 12);
        buf.unlock();
        assert_eq!(locked_kb(), before);
        assert!(buf.lock());
        drop(buf);
        assert_eq!(locked_kb(), before);
        assert!(AlignedBuf::zeroed(0).lock() && AlignedBuf::zeroed(1).lock());
    }

    #[test]
    fn empty_is_fine() {
        let mut buf = AlignedBuf::zeroed(0);
        buf.touch();
        assert!(buf.is_empty());
    }
}
