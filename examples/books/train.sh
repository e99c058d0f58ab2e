#!/usr/bin/env bash
# The shipped pair, from data/books (see prepare.sh) to runs/books/{scone,baseline}/model with their cards. On one
# thread each the runs took 558 and 1,312 seconds. A run that was interrupted goes on where it was.
#   examples/books/train.sh [NAME=TEXT_FILE]...          texts to measure on, besides the validation split
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release --locked --bins
bin=${CARGO_TARGET_DIR:-target}/release
texts=()
for text in "$@"; do texts+=(--text "$text"); done
"$bin/scone-train" fit --config model_cards/default-baseline/train.toml --output runs/books/baseline --resume
"$bin/scone-train" fit --config model_cards/default/train.toml --output runs/books/scone --resume
"$bin/scone" table build runs/books/scone/model --fgrams data/books/fgrams.parquet --dtype int4
"$bin/scone" table verify runs/books/scone/model
for run in baseline scone; do "$bin/scone-train" measure "runs/books/$run" "${texts[@]}"; done
"$bin/scone-train" card runs/books/baseline --against runs/books/scone
"$bin/scone-train" card runs/books/scone --against runs/books/baseline
