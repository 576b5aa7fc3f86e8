//! Models to run, and a way to run the binary that no machine's folders or settings can change.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use files::GgmlType;
use toy::{Convention, Layout, Package, Toy, Types, Vocabulary};

/// A folder of its own for one test: models, cache and output.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `slotbank` with a private cache and no colour, one thread less to care about.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("slotbank"));
        command
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("TMPDIR", self.folder.path())
            .env("NO_COLOR", "1")
            .env("COLUMNS", "100")
            .env_remove("SLOTBANK_ISA")
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end. A string of arguments is split at blanks; paths are relative to the place.
    pub(crate) fn run(&self, args: &str) -> Done {
        self.run_args(&args.split_whitespace().collect::<Vec<_>>())
    }

    pub(crate) fn run_args(&self, args: &[&str]) -> Done {
        self.done(self.command().args(args).output().expect("the binary starts"))
    }

    pub(crate) fn done(&self, output: Output) -> Done {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
        Done {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            root: self.folder.path().to_owned(),
        }
    }
}

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    root: PathBuf,
}

impl Done {
    /// Fails the test unless the run ended with `code`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in {}", self.stdout))
    }

    /// Exit code, stdout and stderr with everything that changes from machine to machine replaced.
    pub(crate) fn transcript(&self) -> String {
        let mut text = format!("exit code: {}\n", self.code);
        for (name, part) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !part.is_empty() {
                text.push_str(&format!("----- {name}\n{}\n", part.trim_end()));
            }
        }
        let real = self.root.canonicalize().expect("the folder exists");
        text.replace(&real.display().to_string(), "[DIR]").replace(&self.root.display().to_string(), "[DIR]")
    }
}

/// Compares a transcript with its snapshot; numbers that depend on the machine are masked.
macro_rules! transcript {
    ($name:literal, $done:expr) => {
        insta::with_settings!({
            omit_expression => true,
            prepend_module_to_snapshot => false,
            filters => vec![
                (r"[0-9.]+ (B|KiB|MiB|GiB|TiB) available", "[SIZE] available"),
                (r"[0-9.]+ [KMGT]iB free", "[SIZE] free"),
                (r"[0-9]+ threads", "[N] threads"),
            ],
        }, { insta::assert_snapshot!($name, $done.transcript()) });
    };
}
pub(crate) use transcript;

/// A small model that can talk: a byte vocabulary, three MoE layers of twelve experts, three used per token.
pub(crate) fn talking() -> Toy {
    let types = Types { dense: GgmlType::Q8_0, experts: vec![[GgmlType::Q8_0; 3], [GgmlType::Q4_0; 3]] };
    let mut toy = Toy::wide(types);
    toy.config.vocab_size = 288;
    toy.vocabulary = Vocabulary::Bytes;
    toy
}

/// The same without a vocabulary.
pub(crate) fn silent() -> Toy {
    Toy { vocabulary: Vocabulary::None, ..talking() }
}

/// Writes the talking model as dense GGUF and sidecar into `place/name`.
pub(crate) fn package(place: &Place, name: &str) -> Package {
    talking().write_package(&place.path(name), Convention::Flat, Layout::WholeTensor)
}

/// Writes the talking model as one GGUF.
pub(crate) fn gguf(place: &Place, name: &str) -> PathBuf {
    let path = place.path(name);
    talking().write(&path);
    path
}

/// Changes one byte.
pub(crate) fn flip(path: &Path, offset: u64) {
    let mut bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes[usize::try_from(offset).expect("small files")] ^= 0x40;
    std::fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Cuts a file.
pub(crate) fn truncate(path: &Path, len: u64) {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(len))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
