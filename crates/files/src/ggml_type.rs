//! Every ggml tensor type by id, name and size, whether or not a kernel exists for it.
//!
//! Two namespaces meet here. A GGUF stores a number; a sidecar manifest stores a name. Forks of llama.cpp took numbers that
//! mainline later gave to other types (42 is `Q2_0` in mainline and `F8_E4M3_B128` in the Flash-MoE fork), so a number alone
//! does not always identify a type. [`GgmlType::id`] is therefore slotbank's own key: mainline's number where mainline has
//! the type, a number far outside its range for a fork type whose number is taken. [`GgmlType::file_id`] is the number found in
//! files, and [`GgmlType::candidates`] lists all types that share it; the GGUF reader chooses by the space between tensors.

use std::fmt;

/// A tensor type whose block size is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GgmlType(u32);

/// One line of the table.
struct Row {
    id: u32,
    file_id: u32,
    name: &'static str,
    block_elements: u64,
    block_bytes: u64,
}

/// Marks fork types whose file number means something else in mainline.
const FORK: u32 = 0x1_0000;

macro_rules! types {
    ($($konst:ident = $id:expr, $file:expr, $name:literal, $elements:literal, $bytes:literal;)*) => {
        const ROWS: &[Row] = &[$(Row { id: $id, file_id: $file, name: $name, block_elements: $elements, block_bytes: $bytes }),*];
        impl GgmlType {
            $(#[doc = concat!("`", $name, "`: blocks of ", $elements, " elements in ", $bytes, " bytes.")]
            #[allow(non_upper_case_globals, reason = "ggml's own spelling")]
            pub const $konst: GgmlType = GgmlType($id);)*
        }
    };
}

types! {
    F32 = 0, 0, "F32", 1, 4;
    F16 = 1, 1, "F16", 1, 2;
    Q4_0 = 2, 2, "Q4_0", 32, 18;
    Q4_1 = 3, 3, "Q4_1", 32, 20;
    Q5_0 = 6, 6, "Q5_0", 32, 22;
    Q5_1 = 7, 7, "Q5_1", 32, 24;
    Q8_0 = 8, 8, "Q8_0", 32, 34;
    Q8_1 = 9, 9, "Q8_1", 32, 36;
    Q2_K = 10, 10, "Q2_K", 256, 84;
    Q3_K = 11, 11, "Q3_K", 256, 110;
    Q4_K = 12, 12, "Q4_K", 256, 144;
    Q5_K = 13, 13, "Q5_K", 256, 176;
    Q6_K = 14, 14, "Q6_K", 256, 210;
    Q8_K = 15, 15, "Q8_K", 256, 292;
    IQ2_XXS = 16, 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, 21, "IQ3_S", 256, 110;
    IQ2_S = 22, 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, 23, "IQ4_XS", 256, 136;
    I8 = 24, 24, "I8", 1, 1;
    I16 = 25, 25, "I16", 1, 2;
    I32 = 26, 26, "I32", 1, 4;
    I64 = 27, 27, "I64", 1, 8;
    F64 = 28, 28, "F64", 1, 8;
    IQ1_M = 29, 29, "IQ1_M", 256, 56;
    BF16 = 30, 30, "BF16", 1, 2;
    TQ1_0 = 34, 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, 35, "TQ2_0", 256, 66;
    MXFP4 = 39, 39, "MXFP4", 32, 17;
    NVFP4 = 40, 40, "NVFP4", 64, 36;
    Q1_0 = 41, 41, "Q1_0", 128, 18;
    Q2_0 = 42, 42, "Q2_0", 64, 18;
    STQ1_0 = 43, 43, "STQ1_0", 256, 42;
    IQ1_XS = 64, 64, "IQ1_XS", 256, 46;
    IQ1_XXS = 65, 65, "IQ1_XXS", 256, 42;
    IQ1_XXXS = 66, 66, "IQ1_XXXS", 256, 38;
    F8_E4M3_B128 = FORK + 42, 42, "F8_E4M3_B128", 128, 129;
}

/// Numbers that ggml once used and has withdrawn.
const REMOVED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

/// Types of ik_llama.cpp, which mainline does not read. Named so that the message can say what the file is.
const IK_LLAMA: &[(u32, &str)] = &[
    (97, "Q8_0_X4"),
    (98, "Q8_1_X4"),
    (99, "Q8_2_X4"),
    (133, "Q6_0"),
    (134, "IQ1_BN"),
    (135, "IQ2_BN"),
    (136, "Q8_K64"),
    (137, "IQ2_K"),
    (138, "IQ3_K"),
    (139, "IQ4_K"),
    (140, "IQ5_K"),
    (141, "IQ6_K"),
    (144, "IQ4_KS"),
    (145, "IQ2_KS"),
    (146, "IQ4_KSS"),
    (147, "Q8_K16"),
    (148, "Q8_K32"),
    (149, "Q8_KR8"),
    (150, "Q8_K128"),
    (151, "Q8_KV"),
    (152, "IQ5_KS"),
    (153, "IQ2_KT"),
    (154, "IQ3_KT"),
    (155, "IQ4_KT"),
    (156, "IQ3_KS"),
    (157, "IQ2_KL"),
    (158, "IQ1_KT"),
    (202, "Q4_0_R8"),
    (206, "Q5_0_R4"),
    (208, "Q8_0_R8"),
    (210, "Q2_K_R4"),
    (211, "Q3_K_R4"),
    (212, "Q4_K_R4"),
    (213, "Q5_K_R4"),
    (214, "Q6_K_R4"),
    (216, "IQ2_XXS_R4"),
    (217, "IQ2_XS_R4"),
    (218, "IQ3_XXS_R4"),
    (219, "IQ1_S_R4"),
    (220, "IQ4_NL_R4"),
    (221, "IQ3_S_R4"),
    (222, "IQ2_S_R4"),
    (223, "IQ4_XS_R8"),
    (229, "IQ1_M_R4"),
    (230, "BF16_R16"),
    (233, "Q6_0_R4"),
    (335, "IQ2_BN_R4"),
    (337, "IQ2_K_R4"),
    (338, "IQ3_K_R4"),
    (339, "IQ4_K_R4"),
    (340, "IQ5_K_R4"),
    (344, "IQ4_KS_R4"),
    (352, "IQ5_KS_R4"),
    (398, "Q8_KV_R8"),
    (399, "Q8_K_R8"),
];

/// Ranges in which ik_llama.cpp keeps its private numbers, named ones included.
const IK_LLAMA_RANGES: &[(u32, u32)] = &[(97, 99), (133, 158), (202, 230), (233, 233), (335, 399)];

impl GgmlType {
    /// The type that mainline means by `id`; falls back to a fork's where mainline has none.
    pub fn from_id(id: u32) -> Option<Self> {
        ROWS.iter().find(|row| row.id == id).map(|row| GgmlType(row.id))
    }

    /// The type called `name`, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        ROWS.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| GgmlType(row.id))
    }

    /// All types that some writer stores as `file_id`, mainline first.
    pub fn candidates(file_id: u32) -> impl Iterator<Item = Self> {
        ROWS.iter().filter(move |row| row.file_id == file_id).map(|row| GgmlType(row.id))
    }

    /// Every known type.
    pub fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| GgmlType(row.id))
    }

    /// A number that identifies this type and no other. Equal to ggml's except for fork types whose number is taken.
    pub fn id(self) -> u32 {
        self.0
    }

    /// The number that stands for this type in a GGUF.
    pub fn file_id(self) -> u32 {
        self.row().file_id
    }

    /// ggml's name, upper case as gguf-py writes it.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Elements in a block.
    pub fn block_elements(self) -> u64 {
        self.row().block_elements
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> u64 {
        self.row().block_bytes
    }

    /// Bytes of a row of `n` elements; `None` when `n` is no multiple of the block or the product overflows.
    pub fn row_bytes(self, n: u64) -> Option<u64> {
        let row = self.row();
        n.is_multiple_of(row.block_elements).then(|| (n / row.block_elements).checked_mul(row.block_bytes))?
    }

    /// Bytes of a whole tensor of `shape` (contiguous dimension first); `None` as in [`GgmlType::row_bytes`].
    pub fn tensor_bytes(self, shape: &[u64]) -> Option<u64> {
        let (first, rest) = shape.split_first()?;
        rest.iter().try_fold(self.row_bytes(*first)?, |bytes, &n| bytes.checked_mul(n))
    }

    /// Why `file_id` cannot be read, for an error message.
    pub fn explain_unknown_id(file_id: u32) -> String {
        if let Some((_, name)) = REMOVED.iter().find(|(id, _)| *id == file_id) {
            return format!("type {file_id} ({name}) was removed from ggml");
        }
        if let Some((_, name)) = IK_LLAMA.iter().find(|(id, _)| *id == file_id) {
            return format!("type {file_id} ({name}) needs ik_llama.cpp");
        }
        if IK_LLAMA_RANGES.iter().any(|(low, high)| (*low..=*high).contains(&file_id)) {
            return format!("type {file_id} is a private type: it needs ik_llama.cpp");
        }
        format!("unknown type {file_id}")
    }

    /// Why the type called `name` cannot be read, for an error message.
    pub fn explain_unknown_name(name: &str) -> String {
        let known = |table: &[(u32, &str)]| table.iter().any(|(_, known)| known.eq_ignore_ascii_case(name));
        if known(REMOVED) {
            format!("type `{name}` was removed from ggml")
        } else if known(IK_LLAMA) {
            format!("type `{name}` needs ik_llama.cpp")
        } else {
            format!("unknown type `{name}`")
        }
    }

    fn row(self) -> &'static Row {
        // The field is private and only ever filled from the table.
        ROWS.iter().find(|row| row.id == self.0).expect("a type of the table")
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for GgmlType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_unique() {
        for a in ROWS {
            assert_eq!(ROWS.iter().filter(|b| b.id == a.id).count(), 1, "{}", a.name);
            assert_eq!(ROWS.iter().filter(|b| b.name.eq_ignore_ascii_case(a.name)).count(), 1, "{}", a.name);
        }
    }

    #[test]
    fn names_resolve_separately_from_ids() {
        assert_eq!(GgmlType::from_id(42), Some(GgmlType::Q2_0));
        assert_eq!(GgmlType::from_name("f8_e4m3_b128"), Some(GgmlType::F8_E4M3_B128));
        assert_ne!(GgmlType::F8_E4M3_B128.id(), GgmlType::Q2_0.id());
        assert_eq!(GgmlType::F8_E4M3_B128.file_id(), GgmlType::Q2_0.file_id());
        assert_eq!(GgmlType::candidates(42).collect::<Vec<_>>(), [GgmlType::Q2_0, GgmlType::F8_E4M3_B128]);
        assert_eq!(GgmlType::from_name("mxfp4"), Some(GgmlType::MXFP4));
    }

    #[test]
    fn glm_5_2_sizes_match_the_published_ones() {
        // 24 blocks of 56 bytes, 2,048 rows.
        assert_eq!(GgmlType::IQ1_M.tensor_bytes(&[6144, 2048]), Some(2_752_512));
        assert_eq!(GgmlType::IQ2_XXS.tensor_bytes(&[6144, 2048]), Some(3_244_032));
        assert_eq!(GgmlType::IQ3_XXS.tensor_bytes(&[2048, 6144]), Some(4_816_896));
    }

    #[test]
    fn rows_must_be_whole_blocks_and_must_not_overflow() {
        assert_eq!(GgmlType::Q4_K.row_bytes(255), None);
        assert_eq!(GgmlType::F64.row_bytes(u64::MAX), None);
        assert_eq!(GgmlType::F32.tensor_bytes(&[1 << 40, 1 << 40]), None);
        assert_eq!(GgmlType::F32.tensor_bytes(&[]), None);
    }

    #[test]
    fn unknown_types_say_who_knows_them() {
        for id in [4, 5, 31, 32, 33, 36, 37, 38] {
            assert_eq!(GgmlType::from_id(id), None);
            assert!(GgmlType::explain_unknown_id(id).contains("removed"), "{id}");
        }
        for id in [97, 133, 142, 153, 158, 202, 230, 233, 335, 399] {
            assert_eq!(GgmlType::from_id(id), None);
            assert!(GgmlType::explain_unknown_id(id).contains("needs ik_llama.cpp"), "{id}");
        }
        assert_eq!(GgmlType::explain_unknown_id(9999), "unknown type 9999");
        assert!(GgmlType::explain_unknown_name("iq4_ks").contains("ik_llama.cpp"));
    }
}
