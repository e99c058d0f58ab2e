#!/usr/bin/env bash
# Perplexity of the pair on held-out books and, if its file is given, on WikiText-103's validation text:
#   examples/books/measure.sh [SCONE_DIR BASELINE_DIR] [WIKI]       [model_cards/default model_cards/default-baseline]
# One JSON document a line: {"model", "text", ...what `scone eval --json` says}.
set -euo pipefail
cd "$(dirname "$0")/../.."
scone=${SCONE:-target/release/scone}
models=(model_cards/default model_cards/default-baseline)
if [[ $# -ge 2 ]]; then
    models=("$1" "$2")
    shift 2
fi
for text in data/books/test.txt "$@"; do
    for model in "${models[@]}"; do
        "$scone" eval "$model" --text "$text" --json |
            sed "s|^{|{\"model\":\"$model\",\"text\":\"$(basename "$text")\",|"
    done
done
