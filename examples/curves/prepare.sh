#!/usr/bin/env bash
# The f-gram sets of the grid, from a dataset of examples/books/prepare.sh:
#   examples/curves/prepare.sh [DATASET] [OUT]          [data/books/dataset data/curves]
# A dataset holds the tags of one set, so each set gets links to the dataset's files and tags of its own.
set -euo pipefail
dataset=${1:-data/books/dataset}
out=${2:-data/curves}
train=${SCONE_TRAIN:-target/release/scone-train}
mkdir -p "$out"
for set in "5 100k 100000" "5 1m 1000000" "5 10k 10000" "5 10m 10000000" "2 1m 1000000" "3 1m 1000000" "4 1m 1000000" "6 1m 1000000"; do
    read -r k name size <<<"$set"
    name=$out/k$k-$name
    [[ -f $name.parquet ]] || "$train" mine "$dataset" --output "$name.parquet" --max-n "$k" --size "$size"
    [[ -f $name/tags.json ]] && continue
    mkdir -p "$name"
    for file in "$dataset"/{dataset.json,tokenizer.json,*.bin}; do ln -f "$file" "$name/"; done
    "$train" tag "$name" --fgrams "$name.parquet"
done
