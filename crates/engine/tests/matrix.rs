//! The table of docs/models.md: every architecture with its experts in every format, resident and streamed. A cell is green where
//! the streamed run gives the resident run's bits, or the file is refused as something this build cannot run.
//!
//! `SLOTBANK_UPDATE_DOCS=1 cargo test -p slotbank-engine --test matrix` writes the table anew.

mod common;

use std::path::Path;

use common::{assert_same_bits, exact, run};
use files::{Checkpoint, Class, GgmlType};
use slotbank_engine::{BankSize, Engine, EngineOptions, Promote, ReaderChoice, ReaderKind};
use toy::weights::tokens;
use toy::{Listed, Toy, Types};

const BEGIN: &str = "<!-- the table below is written by crates/engine/tests/matrix.rs -->\n";
const END: &str = "<!-- end of the table -->\n";

/// Types of ggml that never hold the weights of a model: integers, doubles, and the forms of activations.
const NO_WEIGHTS: [&str; 7] = ["I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"];

/// One architecture: its name, and a way to write a toy of it whose rows hold blocks of any size.
type Column = (String, Box<dyn Fn(&Types, &Path)>);

fn columns() -> Vec<Column> {
    let mut columns: Vec<Column> = vec![
        ("glm-dsa".into(), Box::new(|types, path| Toy::wide(types.clone()).write(path))),
        ("deepseek2".into(), Box::new(|types, path| Toy::wide_deepseek2(types.clone()).write(path))),
    ];
    for listed in Listed::all().into_iter().filter(|listed| listed.expert_row_divisor() >= 256) {
        columns
            .push((listed.architecture().to_owned(), Box::new(move |types, path| listed.write(types, path))));
    }
    columns
}

/// What became of one file.
fn cell(write: &dyn Fn(&Types, &Path), ty: GgmlType, what: &str) -> &'static str {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("toy.gguf");
    write(&Types { dense: GgmlType::Q8_0, experts: vec![[ty; 3]] }, &path);
    let load = |options| Engine::load(&Checkpoint::open(&path)?, options);
    let (tokens, chunks) = (tokens("matrix", 12, 64), [9, 1]);
    let mut resident = match load(EngineOptions { promote: Promote::Never, ..exact() }) {
        Ok(engine) => engine,
        Err(error) => {
            assert_eq!(error.class(), Class::Unsupported, "{what}: {error}");
            assert!(error.to_string().contains(ty.name()), "{what}: {error}");
            return "refused";
        }
    };
    let slots = resident.model().top_k;
    let resident = run(&mut resident, &tokens, &chunks);
    assert!(resident.iter().flatten().all(|logit| logit.is_finite()), "{what}");
    let mut streamed = load(EngineOptions {
        bank: BankSize::SlotsPerLayer(slots),
        reader_kind: ReaderKind::Pread,
        reader: ReaderChoice::Auto,
        ..exact()
    })
    .unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_same_bits(&run(&mut streamed, &tokens, &chunks), &resident, what);
    "✓"
}

fn table() -> String {
    let columns = columns();
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let mut text =
        format!("| experts stored as | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for ty in GgmlType::all().filter(|ty| !NO_WEIGHTS.contains(&ty.name())) {
        let cells: Vec<&str> = columns
            .iter()
            .map(|(name, write)| cell(write, ty, &format!("{name} with experts as {ty}")))
            .collect();
        text.push_str(&format!("| {ty} | {} |\n", cells.join(" | ")));
    }
    text
}

#[test]
fn the_table_of_models_and_formats() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/models.md");
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let (before, rest) = page.split_once(BEGIN).expect("the table's beginning is marked");
    let (written, after) = rest.split_once(END).expect("the table's end is marked");
    let table = table();
    if std::env::var_os("SLOTBANK_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}"))
            .expect("the page can be written");
    } else {
        assert_eq!(written, table, "docs/models.md says otherwise; SLOTBANK_UPDATE_DOCS=1 writes it anew");
    }
}
