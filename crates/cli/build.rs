//! Writes the table of the embedded demo model: every file under `demo/model`, with its BLAKE3 hash.
//!
//! The table follows the folder, so retraining the demo changes no source file. An empty or absent folder gives an
//! empty table, and the binary then says that it carries no demo.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    let root = PathBuf::from(env("CARGO_MANIFEST_DIR")).join("demo").join("model");
    let mut files = Vec::new();
    watch_and_list(&root, &mut files);
    files.sort();

    let mut whole = blake3::Hasher::new();
    let mut table = String::from("pub(crate) static FILES: &[DemoFile] = &[\n");
    for path in &files {
        let name = relative(&root, path);
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let hash = blake3::hash(&bytes);
        whole.update(name.as_bytes()).update(&[0]).update(hash.as_bytes());
        let path = path.to_str().expect("the demo folder has a UTF-8 path");
        writeln!(
            table,
            "    DemoFile {{ name: {name:?}, bytes: include_bytes!({path:?}), blake3: {:?} }},",
            hash.as_bytes()
        )
        .expect("writing to a string");
    }
    table.push_str("];\n");
    writeln!(table, "pub(crate) const DIGEST: &str = {:?};", &whole.finalize().to_hex()[..16])
        .expect("writing to a string");
    let out = PathBuf::from(env("OUT_DIR")).join("demo_files.rs");
    std::fs::write(&out, table).unwrap_or_else(|e| panic!("cannot write {}: {e}", out.display()));
    println!("cargo::rerun-if-changed=build.rs");
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// Hidden files and notes (`.gitkeep`, editor leftovers) are not part of the model.
fn watch_and_list(folder: &Path, files: &mut Vec<PathBuf>) {
    println!("cargo::rerun-if-changed={}", folder.display());
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() {
            watch_and_list(&path, files);
        } else {
            println!("cargo::rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
}

/// `/` on every system, since the name is also the path inside the cache.
fn relative(root: &Path, path: &Path) -> String {
    let inside = path.strip_prefix(root).expect("listed below the root");
    let parts: Vec<_> = inside.iter().map(|p| p.to_str().expect("demo files have UTF-8 names")).collect();
    parts.join("/")
}
