#!/usr/bin/env bash
# The tables and charts of a grid of runs, from nothing but their directories:
#   examples/curves/report.sh RUNS_DIR [TEXT]...          writes docs/curves.md and docs/curves/*.svg
# TEXT: a name that `scone-train measure` gave a text; each gets charts of its own. See README.md beside this script for
# how the runs are called. Of a group that has no run yet nothing is said.
set -euo pipefail
runs=$(realpath "${1:?usage: examples/curves/report.sh RUNS_DIR [TEXT]...}")
shift
cd "$(dirname "$0")/../.."
train=${SCONE_TRAIN:-target/release/scone-train}
docs=${DOCS:-docs}
costs=costs.inference_flops,costs.accelerator_bytes,costs.table_bytes,costs.training_flops
mkdir -p "$docs/curves"
shopt -s nullglob

# Directories of runs with these names or patterns, each once. A name stands for its repetitions with other seeds too.
named() {
    local name run
    for name in "$@"; do
        for run in "$runs"/$name "$runs/$name"-s[0-9]; do
            [[ ! -f $run/metrics.jsonl ]] || echo "$run"
        done
    done | awk '!seen[$0]++'
}

# section TITLE FILE FIGURE OPTIONS... -- RUN...: one chart and one table for each text, of the runs that there are.
section() {
    local title=$1 file=$2 by=$3 options=() text of found first
    shift 3
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    first=$(named "$1" | wc -l)
    mapfile -t found < <(named "$@")
    ((${#found[@]} > first)) || return 0
    printf '## %s\n\n' "$title"
    for text in "" "${texts[@]}"; do
        of=(--show "$costs")
        [[ -z $text ]] || of=(--of "texts.$text.$(figure "$text")" --show "texts.$text.bits_per_byte,$costs")
        local chart=$file${text:+-$text}.svg
        printf '![%s](curves/%s)\n\n' "$title${text:+, $text}" "$chart"
        "$train" compare "${found[@]}" --by "$by" "${of[@]}" "${options[@]}" --output "$docs/curves/$chart"
        echo
    done
}

# What a text is judged by: WikiText by the word, as others report it.
figure() {
    if [[ $1 == *wiki* ]]; then echo word_perplexity; else echo perplexity; fi
}

texts=("$@")
{
    cat examples/curves/about.md
    section "More f-grams" fgrams fgrams -- base scone 'fgrams-*'
    section "A larger f-gram model" fgram-model parameters.fgram -- base scone 'fgram-model-*'
    section "Longer f-grams" max-n max_n -- base scone 'max-n-*'
    section "Larger baselines" baselines parameters.non_embedding --series fgrams -- base 'base-*' scone 'fgrams-*'
    section "Twice the tokens" long parameters.non_embedding --series fgrams -- long-base 'long-base-*' long-scone
    printf '## All runs\n\n![Validation loss of all runs](curves/all.svg)\n\n'
    mapfile -t all < <(named base '*')
    "$train" compare "${all[@]}" --show "$costs" --output "$docs/curves/all.svg"
} >"$docs/curves.md.partial"
mv "$docs/curves.md.partial" "$docs/curves.md"
