#!/usr/bin/env bash
# From the two book files (see README.md beside this script) to what the shipped models are trained and judged on:
#   examples/books/prepare.sh BOOKS_DIR [OUT]
# Every 60th book is set aside as the test text before anything else sees it; of the rest, `prepare` holds out its
# validation documents. Takes about three minutes on two cores.
set -euo pipefail
books=${1:?usage: examples/books/prepare.sh BOOKS_DIR [OUT]}
out=${2:-data/books}
train=${SCONE_TRAIN:-target/release/scone-train}
mkdir -p "$out"

zstdcat "$books"/part-1.jsonl.zst "$books"/part-2.jsonl.zst | awk 'NR % 60 != 30' >"$out/rest.jsonl"
zstdcat "$books"/part-1.jsonl.zst "$books"/part-2.jsonl.zst | awk 'NR % 60 == 30' >"$out/test.jsonl"
"$train" prepare "$out/rest.jsonl" --output "$out/dataset" --vocab-size 8192 --validation 0.01
"$train" mine "$out/dataset" --output "$out/fgrams.parquet" --max-n 5 --size 1000000
"$train" tag "$out/dataset" --fgrams "$out/fgrams.parquet"
# 20,000 characters from the middle of each test book, one after the other.
python3 - "$out/test.jsonl" >"$out/test.txt" <<'PYTHON'
import json, sys
for line in open(sys.argv[1], encoding="utf-8"):
    text = json.loads(line)["text"]
    start = max(0, len(text) // 2 - 10_000)
    print(text[start:start + 20_000].strip(), end="\n\n")
PYTHON
