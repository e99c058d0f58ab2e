#!/usr/bin/env bash
# From text to a SCONE model that can be served, and its baseline to compare with: about two minutes on two cores after the build.
#
#   examples/train-your-own.sh [INPUT] [OUT]
#
# INPUT  text, JSONL (its "text" field), .zst of either, or a directory of such [examples/sotu/sotu-small.jsonl]
# OUT    a directory for everything that is made, not there yet or empty [runs/sotu]
# HELD_OUT, in the environment: a text to compare the two models on [examples/sotu/held-out.txt]
set -euo pipefail

here=$(pwd)
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"

# As an absolute path, for arguments are relative to where the script was called.
absolute() {
    case $1 in
        /*) echo "$1" ;;
        *) echo "$here/$1" ;;
    esac
}

fail() {
    echo "error: $*" >&2
    exit 1
}

[[ $# -le 2 && ${1:-} != -* ]] || fail "usage: examples/train-your-own.sh [INPUT] [OUT]"
input=examples/sotu/sotu-small.jsonl
output=runs/sotu
held_out=examples/sotu/held-out.txt
[[ -z ${1:-} ]] || input=$(absolute "$1")
[[ -z ${2:-} ]] || output=$(absolute "$2")
[[ -z ${HELD_OUT:-} ]] || held_out=$(absolute "$HELD_OUT")
[[ -e $input ]] || fail "there is no $input"
[[ -f $held_out ]] || fail "there is no $held_out"
[[ ! -e $output || -z $(ls -A "$output") ]] || fail "$output is not empty: remove it, or name another directory"

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

step cargo build --release --locked --bins
bin=${CARGO_TARGET_DIR:-target}/release
train=$bin/scone-train
scone=$bin/scone

# Paths in a run's TOML are relative to where it lies: beside the data.
mkdir -p "$output"
cp examples/sotu/scone.toml examples/sotu/baseline.toml "$output"

# 1. Text to tokens: a byte-level BPE is trained on it first. One document in eight is held out, to choose the best step.
step "$train" prepare "$input" --output "$output/dataset" --vocab-size 2048 --validation 0.12
# 2. The most frequent n-grams, and at each token the length of the longest that ends there.
step "$train" mine "$output/dataset" --output "$output/fgrams.parquet" --max-n 4 --size 20000
step "$train" tag "$output/dataset" --fgrams "$output/fgrams.parquet"
# 3. The two models. Ctrl-C stops a run; the same command with --resume goes on.
step "$train" fit --config "$output/scone.toml" --output "$output/scone"
step "$train" fit --config "$output/baseline.toml" --output "$output/baseline"
# 4. Every f-gram's embedding, computed once. From here on the f-gram model is not needed.
step "$scone" table build "$output/scone/model" --fgrams "$output/fgrams.parquet"
step "$scone" table verify "$output/scone/model"
# 5. What it is worth: the same text through both.
step "$scone" eval "$output/baseline/model" --text "$held_out"
step "$scone" eval "$output/scone/model" --text "$held_out"
# 6. What it looks like.
prompt="The people of the United States have always"
step "$scone" explain "$output/scone/model" --text "$prompt"
step "$scone" generate "$output/scone/model" --prompt "$prompt" --max-tokens 60 --seed 1

cat <<END

Serve it:
  $scone serve $output/scone/model
and ask it:
  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\
    -d '{"prompt": "$prompt", "max_tokens": 60}'
END
