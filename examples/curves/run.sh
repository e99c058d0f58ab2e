#!/usr/bin/env bash
# Trains and measures the runs that runs.py has written into a directory, those that are not measured yet:
#   examples/curves/run.sh RUNS_DIR [NAME=TEXT_FILE]...
# A run that was interrupted goes on where it was. THREADS=1 and several of these at a time use a machine better than one
# with all its threads; they never take the same run.
set -euo pipefail
runs=$(realpath "${1:?usage: examples/curves/run.sh RUNS_DIR [NAME=TEXT_FILE]...}")
shift
train=$(realpath "${SCONE_TRAIN:-$(dirname "$0")/../../target/release/scone-train}")
threads=(--threads "${THREADS:-0}")
texts=()
for text in "$@"; do texts+=(--text "$text"); done
while read -r name; do
    config=$runs/$name.toml run=$runs/$name
    (
        flock --nonblock 9 || exit 0
        [[ ! -f $run/results.json ]] || exit 0
        "$train" fit --config "$config" --output "$run" --resume "${threads[@]}" </dev/null &&
            "$train" measure "$run" --discard-table "${texts[@]}" "${threads[@]}" ||
            echo "$name failed: the others go on" >&2
    ) 9>"$config.lock"
done <"$runs/names"
