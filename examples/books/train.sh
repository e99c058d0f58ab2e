#!/usr/bin/env bash
# The shipped pair, from data/books (see prepare.sh) to runs/books/{scone,baseline}/model. On one thread each of
# a busy machine they took 37 and 27 minutes. A run that was interrupted goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release --locked --bins
bin=${CARGO_TARGET_DIR:-target}/release
"$bin/scone-train" fit --config model_cards/default-baseline/train.toml --output runs/books/baseline --resume
"$bin/scone-train" fit --config model_cards/default/train.toml --output runs/books/scone --resume
"$bin/scone" table build runs/books/scone/model --fgrams data/books/fgrams.parquet --dtype int8
"$bin/scone" table verify runs/books/scone/model
