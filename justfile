# Shortcuts of daily work. `just` alone lists them.

_list:
    @just --list

# What CI runs.
check:
    .ci/run

# All tests; arguments go to cargo (`just test -p slotbank-files`).
test *ARGS:
    cargo test --workspace {{ARGS}}

# Streamed logits == resident logits over every size, micro-batch, policy, reader and layout (CI runs a covering set).
matrix:
    SLOTBANK_MATRIX=full cargo test --release -p slotbank-engine --test streaming -- --nocapture

# Look at changed snapshots of the command line's output and accept them one by one (needs cargo-insta).
snapshots:
    cargo insta review --workspace

# Licences, advisories, sources and duplicate versions (needs cargo-deny).
deny:
    cargo deny check

# Golden numbers of the tests, from independent implementations (Python; each script says what it needs).
goldens:
    python3 tools/goldens/glm_dsa_goldens.py
    python3 tools/goldens/deepseek2_goldens.py
    python3 tools/goldens/quant_goldens.py tests/fixtures/quant
    python3 tools/goldens/tokenizer_goldens.py
    python3 tools/goldens/template_goldens.py

# Train the embedded demo model from nothing into WORK and put it in place (Python: tools/demo_model/README.md).
demo WORK="/tmp/demo_train":
    mkdir -p {{WORK}}
    python3 tools/demo_model/tokenizer.py --out {{WORK}}/tokenizer.json
    python3 tools/demo_model/train.py --tokenizer {{WORK}}/tokenizer.json --out {{WORK}}/run
    python3 tools/demo_model/export.py --tokenizer {{WORK}}/tokenizer.json --checkpoint {{WORK}}/run/last.pt --package crates/cli/demo/model
    cargo run --release -- verify crates/cli/demo/model --write-sums
    python3 tools/demo_model/make_items.py --tokenizer {{WORK}}/tokenizer.json --out crates/cli/demo/eval/retrieval.jsonl

# The figures in the README, with their receipt.
bench-readme:
    cargo build --release
    python3 tools/bench/resident_vs_floor.py --binary target/release/slotbank --out benches/receipts/demo-resident-vs-floor.json
