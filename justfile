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

# Golden logits from transformers (needs Python with torch and transformers: see tools/).
goldens:
    python3 tools/goldens/make.py

# Train the embedded demo model from nothing (needs Python with torch and transformers: see tools/demo_model).
demo:
    python3 tools/demo_model/train.py

# The figures in the README, with their receipt in benches/receipts/.
bench-readme:
    tools/bench_readme.sh
