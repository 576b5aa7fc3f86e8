//! Which instruction set the kernels use: found at run time, once, or forced with `SLOTBANK_ISA`.

use std::sync::OnceLock;

use thiserror::Error;

/// The environment variable that forces an instruction set: `scalar`, `avx2`, `avx512` or `neon`.
pub(crate) const VARIABLE: &str = "SLOTBANK_ISA";

/// An instruction set that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable Rust; the twin that every other kernel is compared with.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI (and everything of [`Isa::Avx2`]).
    Avx512,
    /// 64-bit Arm with the dot-product extension.
    Neon,
}

/// Why the instruction set asked for cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IsaError {
    /// The value of `SLOTBANK_ISA` names no instruction set.
    #[error("unknown instruction set \"{0}\" in {VARIABLE}")]
    Unknown(String),
    /// This processor lacks the instruction set.
    #[error("this processor cannot run the instruction set \"{}\" asked for by {VARIABLE}", .0.name())]
    Unsupported(Isa),
}

impl IsaError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let usable: Vec<_> = Isa::ALL.iter().filter(|i| i.is_supported()).map(|i| i.name()).collect();
        Some(format!("unset {VARIABLE}, or set it to one of: {}", usable.join(", ")))
    }
}

impl Isa {
    /// Every instruction set, plainest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon];

    /// The instruction set to use: the one named by `SLOTBANK_ISA`, else the best this processor has.
    ///
    /// # Errors
    /// `SLOTBANK_ISA` is set to an unknown name or to something that this processor cannot run.
    pub fn detect() -> Result<Isa, IsaError> {
        match std::env::var(VARIABLE) {
            Ok(name) if !name.is_empty() => {
                let isa = Isa::from_name(&name).ok_or(IsaError::Unknown(name))?;
                if isa.is_supported() { Ok(isa) } else { Err(IsaError::Unsupported(isa)) }
            }
            _ => Ok(Isa::best()),
        }
    }

    /// The best instruction set of this processor, whatever the environment says.
    pub fn best() -> Isa {
        [Isa::Avx512, Isa::Avx2, Isa::Neon].into_iter().find(|i| i.is_supported()).unwrap_or(Isa::Scalar)
    }

    /// What [`ops`](crate::ops) and the activation quantisers run with: [`Isa::detect`], asked once per process. A
    /// wrong `SLOTBANK_ISA` means scalar here; whoever loads a model calls `detect` and reports it.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| Isa::detect().unwrap_or(Isa::Scalar))
    }

    /// The name used in `SLOTBANK_ISA`, receipts and `doctor`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// The instruction set of that name, in any case.
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|i| i.name().eq_ignore_ascii_case(name))
    }

    /// Whether this processor (and operating system) can run it.
    pub fn is_supported(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_in_any_case() {
        for isa in Isa::ALL {
            assert_eq!(Isa::from_name(&isa.name().to_uppercase()), Some(isa));
        }
        assert_eq!(Isa::from_name("sse9"), None);
    }

    #[test]
    fn the_best_one_is_supported() {
        assert!(Isa::best().is_supported());
        assert!(Isa::Scalar.is_supported());
    }

    /// A wrong `SLOTBANK_ISA` would test the portable kernels and say nothing.
    #[test]
    fn the_environment_is_obeyed_or_the_tests_fail() {
        assert_eq!(Isa::current(), Isa::detect().unwrap());
    }

    #[test]
    fn errors_name_the_variable_and_the_way_out() {
        let e = IsaError::Unknown("mmx".into());
        assert_eq!(e.to_string(), "unknown instruction set \"mmx\" in SLOTBANK_ISA");
        assert!(e.hint().unwrap().contains("scalar"));
        assert!(IsaError::Unsupported(Isa::Neon).to_string().contains("\"neon\""));
    }
}
