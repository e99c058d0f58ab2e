#!/usr/bin/env bash
# What is kept of a grid in the repository: the files of each measured run that report.sh reads.
#   examples/curves/keep.sh RUNS_DIR [OUT]               [examples/curves/runs]
# Of metrics.jsonl every tenth update and all validations; of the data's paths what prepare.sh calls them.
set -euo pipefail
runs=${1:?usage: examples/curves/keep.sh RUNS_DIR [OUT]}
out=${2:-$(dirname "$0")/runs}
for results in "$runs"/*/results.json; do
    run=$(dirname "$results")
    kept=$out/$(basename "$run")
    mkdir -p "$kept"
    cp "$results" "$kept/"
    sed -E 's|^(dataset\|set) = ".*/([^/]+)"$|\1 = "data/curves/\2"|' "$run/config.toml" >"$kept/config.toml"
    awk '/"step":[0-9]*0,/ || /validation_loss/' "$run/metrics.jsonl" >"$kept/metrics.jsonl"
done
