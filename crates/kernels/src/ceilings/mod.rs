//! What the processor can do at most: loops that read memory or multiply and add, and nothing else.
//!
//! They give a measurement its scale: a kernel is judged by the share of these figures that it reaches. Nothing else uses
//! them, and they compute nothing of value; the caller takes the time.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::Isa;

/// Multiply-adds of one kind, as the dot kernels use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Products of 8-bit integers, each group widened and added in 32 bits: what an exact dot of any length needs.
    Int8,
    /// Products of 8-bit integers added in 16 bits: the bound for kernels that widen only now and then. Instruction sets
    /// with a dot-product instruction have no cheaper form; there it is [`Arithmetic::Int8`] again.
    Int8Narrow,
    /// Products of 16-bit integers added in 32 bits.
    Int16,
    /// Fused multiply-adds of floats.
    F32,
}

impl Arithmetic {
    /// Every kind.
    pub const ALL: [Arithmetic; 4] =
        [Arithmetic::Int8, Arithmetic::Int8Narrow, Arithmetic::Int16, Arithmetic::F32];

    /// The name in receipts.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::Int8 => "int8",
            Arithmetic::Int8Narrow => "int8_narrow",
            Arithmetic::Int16 => "int16",
            Arithmetic::F32 => "f32",
        }
    }
}

/// Independent sums per loop: more than latency times throughput of any instruction used, and few enough for 16 registers.
const CHAINS: usize = 12;

/// Runs `rounds` rounds of multiply-adds on the calling thread, with the instructions of `isa`, on registers alone.
/// Returns how many multiply-adds (two operations each) that was, and a sum that keeps the loop alive.
///
/// # Panics
/// This processor does not support `isa`.
pub fn multiply_add(kind: Arithmetic, isa: Isa, rounds: u64) -> (u64, u32) {
    assert!(isa.is_supported(), "this processor does not support {}", isa.name());
    match isa {
        // SAFETY: the instruction set was checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::avx512(kind, rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::avx2(kind, rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => unsafe { neon::neon(kind, rounds) },
        _ => portable(kind, rounds),
    }
}

/// What plain Rust makes of it on the target's least processor.
fn portable(kind: Arithmetic, rounds: u64) -> (u64, u32) {
    const LANES: usize = 32;
    let macs = rounds * LANES as u64;
    let sum = match kind {
        Arithmetic::F32 => {
            let (x, mut sums) = (std::hint::black_box([0.5f32; LANES]), [1.0f32; LANES]);
            for _ in 0..rounds {
                sums.iter_mut().zip(&x).for_each(|(sum, x)| *sum = *sum * x + x);
            }
            sums.iter().map(|sum| sum.to_bits()).fold(0, u32::wrapping_add)
        }
        Arithmetic::Int8 | Arithmetic::Int8Narrow | Arithmetic::Int16 => {
            let (x, mut sums) = (std::hint::black_box([3i16; LANES]), [1i32; LANES]);
            for _ in 0..rounds {
                let step = |(sum, x): (&mut i32, &i16)| {
                    *sum = sum.wrapping_add(i32::from(*sum as i16) * i32::from(*x));
                };
                sums.iter_mut().zip(&x).for_each(step);
            }
            sums.iter().fold(0u32, |all, sum| all.wrapping_add(*sum as u32))
        }
    };
    (macs, sum)
}

/// Reads all of `data` once on the calling thread, as four rising streams, which is faster than one; the sum of its whole 32-bit
/// words keeps the loads alive.
///
/// # Panics
/// This processor does not support `isa`.
pub fn read(isa: Isa, data: &[u8]) -> u32 {
    assert!(isa.is_supported(), "this processor does not support {}", isa.name());
    match isa {
        // SAFETY: the instruction set was checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => unsafe { x86::read(data) },
        _ => read_words(data, |_| {}),
    }
}

/// Bytes that are asked for ahead in each stream.
#[cfg(target_arch = "x86_64")]
const AHEAD_BYTES: usize = 2048;

/// Sixteen sums side by side, so that the compiler may use vectors; `fetch` asks for the memory ahead of a block.
#[inline(always)]
fn read_words(data: &[u8], fetch: impl Fn(&[u8; 64])) -> u32 {
    let (blocks, tail) = data.as_chunks::<64>();
    let quarter = blocks.len() / 4;
    let mut sums = [0u32; 16];
    let mut add = |block: &[u8; 64]| {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks::<4>().0) {
            *sum = sum.wrapping_add(u32::from_le_bytes(*word));
        }
    };
    for i in 0..quarter {
        for stream in 0..4 {
            let block = &blocks[stream * quarter + i];
            fetch(block);
            add(block);
        }
    }
    blocks[4 * quarter..].iter().for_each(&mut add);
    let words = tail.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    sums.into_iter().chain(words).fold(0, u32::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_by_the_round() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for kind in Arithmetic::ALL {
                let (one, _) = multiply_add(kind, isa, 1);
                assert!(one >= 32, "{} {}", isa.name(), kind.name());
                assert_eq!(multiply_add(kind, isa, 1000).0, 1000 * one);
            }
        }
    }

    /// The sum depends on every round: the compiler cannot have dropped one.
    #[test]
    fn rounds_are_really_run() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for kind in [Arithmetic::Int8, Arithmetic::Int8Narrow, Arithmetic::Int16] {
                let sums = [0, 1, 2, 3].map(|rounds| multiply_add(kind, isa, rounds).1);
                assert!(sums.windows(2).all(|w| w[0] != w[1]), "{} {}: {sums:?}", isa.name(), kind.name());
            }
        }
    }

    #[test]
    fn every_byte_is_read() {
        let data: Vec<u8> = (0..4096 + 12).map(|i| (i * 7 % 251) as u8).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for len in [0, 4, 128, 132, 1000, data.len()] {
                let want = data[..len].chunks_exact(4).fold(0u32, |sum, word| {
                    sum.wrapping_add(u32::from_le_bytes(word.try_into().expect("four bytes")))
                });
                assert_eq!(read(isa, &data[..len]), want, "{} {len}", isa.name());
            }
        }
    }
}
