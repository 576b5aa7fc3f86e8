//! Codebooks of the IQ formats, expanded at compile time to rows of signed bytes: eight in a `u64`, four in a `u32`, the first
//! value in the lowest byte.

mod iq1s;
mod iq2s;
mod iq2xs;
mod iq2xxs;
mod iq3s;
mod iq3xxs;

const LEVELS_2: [u8; 4] = [8, 25, 43, 0];
const LEVELS_3XXS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
const LEVELS_3S: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
const LEVELS_1: [u8; 4] = [0xf8, 0, 8, 0]; // −1, 0, 1 times 8: the shift of 1/8 becomes an integer

pub(super) static IQ2_XXS: [u64; 256] = eights(&iq2xxs::CODES, LEVELS_2);
pub(super) static IQ2_XS: [u64; 512] = eights(&iq2xs::CODES, LEVELS_2);
pub(super) static IQ2_S: [u64; 1024] = eights(&iq2s::CODES, LEVELS_2);
pub(super) static IQ3_XXS: [u32; 256] = fours(&iq3xxs::CODES, LEVELS_3XXS);
pub(super) static IQ3_S: [u32; 512] = fours(&iq3s::CODES, LEVELS_3S);
/// Eight times the values.
pub(super) static IQ1: [u64; 2048] = eights(&iq1s::CODES, LEVELS_1);
/// The same plus 8, for kernels that want unsigned bytes.
#[cfg(target_arch = "x86_64")]
pub(super) static IQ1_RAISED: [u64; 2048] = eights(&iq1s::CODES, [0, 8, 16, 0]);

const fn eights<const N: usize>(codes: &[u16; N], levels: [u8; 4]) -> [u64; N] {
    let mut rows = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 8 {
            rows[i] |= (levels[(codes[i] >> (2 * j)) as usize & 3] as u64) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    rows
}

const fn fours<const N: usize>(codes: &[u16; N], levels: [u8; 8]) -> [u32; N] {
    let mut rows = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 4 {
            rows[i] |= (levels[(codes[i] >> (3 * j)) as usize & 7] as u32) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    rows
}

/// A byte of −1 (all ones) for each set bit and 0 for each clear one.
pub(super) static SIGNS: [u64; 256] = {
    let mut rows = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut j = 0;
        while j < 8 {
            if i >> j & 1 == 1 {
                rows[i] |= 0xff << (8 * j);
            }
            j += 1;
        }
        i += 1;
    }
    rows
};

/// The same for seven sign bits; the eighth makes the number of minus signs even.
pub(super) static EVEN_SIGNS: [u64; 128] = {
    let mut rows = [0; 128];
    let mut i = 0usize;
    while i < 128 {
        rows[i] = SIGNS[i | (i.count_ones() as usize & 1) << 7];
        i += 1;
    }
    rows
};

/// The levels of IQ4_NL and IQ4_XS.
pub(super) static IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// The first eight bytes of the SHA-256 of all values as signed bytes, row after row.
    fn hash<const N: usize>(rows: impl Iterator<Item = [u8; N]>) -> String {
        let bytes: Vec<u8> = rows.flatten().collect();
        Sha256::digest(bytes)[..8].iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_codebooks_are_those_of_ggml() {
        let eights = |rows: &[u64]| hash(rows.iter().map(|r| r.to_le_bytes()));
        let fours = |rows: &[u32]| hash(rows.iter().map(|r| r.to_le_bytes()));
        assert_eq!(eights(&IQ2_XXS), "05826b5d3e472a3a");
        assert_eq!(eights(&IQ2_XS), "06e47aaca60b4dc1");
        assert_eq!(eights(&IQ2_S), "e1aa1473412b0552");
        assert_eq!(fours(&IQ3_XXS), "46e35f5a997efdee");
        assert_eq!(fours(&IQ3_S), "bd1af4945a1717c6");
        let eighth = |r: &u64| r.to_le_bytes().map(|b| (b as i8 / 8) as u8);
        assert_eq!(hash(IQ1.iter().map(eighth)), "07540ffc1aeaf6ad");
    }

    #[test]
    fn codes_ascend() {
        assert!(iq1s::CODES.is_sorted() && iq2s::CODES.is_sorted() && iq2xs::CODES.is_sorted());
        assert!(iq2xxs::CODES.is_sorted() && iq3s::CODES.is_sorted() && iq3xxs::CODES.is_sorted());
    }

    #[test]
    fn signs_are_bytes_of_minus_one() {
        assert_eq!(SIGNS[0b1000_0101], 0xff00_0000_00ff_00ff);
        assert!(EVEN_SIGNS.iter().all(|s| s.count_ones().is_multiple_of(16)));
        assert_eq!(EVEN_SIGNS[1], 0xff00_0000_0000_00ff);
    }
}
