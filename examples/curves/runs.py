"""The runs of the grid: writes a TOML file for each into a directory, and a list of their names, the most telling first.

    python3 examples/curves/runs.py DATA DIRECTORY [--steps 1500] [--precision bf16]

DATA holds what prepare.sh made: a tagged copy of the dataset and a set for each K and size (k5-100k, k5-1m, ...).
"""

import argparse
import pathlib

# The main model: 0.2M parameters besides an embedding of 0.5M. Larger baselines are wider, as deep.
SHAPES = {  # hidden, intermediate, layers, heads, kv_heads
    "1": (64, 192, 4, 4, 2),
    "1.3": (72, 224, 4, 4, 2),
    "2": (88, 284, 4, 4, 2),
    "3": (112, 328, 4, 4, 2),
}
# The f-gram model: width, width inside the feed-forward layers, blocks. None as wide as the main model, so that all end in
# the same kind of projection.
FGRAM = {"S": (72, 216, 1), "M": (128, 384, 1), "L": (256, 768, 1)}
SEEDS = (1, 2, 3)


def toml(data, steps, precision, seed, shape, fgrams=None, size="M", long=False):
    hidden, intermediate, layers, heads, kv_heads = SHAPES[shape]
    # Twice the tokens, with a fifth instead of a tenth of the updates for warming up.
    every, steps = steps // 10, 2 * steps if long else steps
    warmup = steps // 5 if long else steps // 10
    every = 2 * every if long else every
    text = f"""seed = {seed}

[data]
dataset = "{data}/{fgrams or 'k5-100k'}"

[model]
hidden_size = {hidden}
intermediate_size = {intermediate}
layers = {layers}
heads = {heads}
kv_heads = {kv_heads}
context = 256

[train]
steps = {steps}
batch = 16
learning_rate = 12e-3
warmup_steps = {warmup}
{precision}
[validation]
every = {every}
tokens = 200000

[checkpoint]
every = {every}
"""
    if fgrams:
        width, inner, blocks = FGRAM[size]
        text += f"""
[fgram]
set = "{data}/{fgrams}.parquet"
layers = {blocks}
learning_rate_scale = 0.2
own_embedding = true
hidden_size = {width}
intermediate_size = {inner}
"""
    return text


def runs():
    """Name, seed, shape of the main model, set, size of the f-gram model, whether it is a long one. report.sh goes by the names."""
    first, *more = SEEDS
    yield "base", first, "1", None, "M"
    yield "scone", first, "1", "k5-1m", "M"
    yield "base-2", first, "2", None, "M"
    for count in ("10k", "100k", "10m"):
        yield f"fgrams-{count}", first, "1", f"k5-{count}", "M"
    for size in ("S", "L"):
        yield f"fgram-model-{size.lower()}", first, "1", "k5-1m", size
    for factor in ("1.3", "3"):
        yield f"base-{factor}", first, factor, None, "M"
    for k in (2, 3, 4, 6):
        yield f"max-n-{k}", first, "1", f"k{k}-1m", "M"
    for seed in more:
        yield f"base-s{seed}", seed, "1", None, "M"
        yield f"scone-s{seed}", seed, "1", "k5-1m", "M"
        yield f"base-2-s{seed}", seed, "2", None, "M"
    for seed in SEEDS:
        suffix = "" if seed == first else f"-s{seed}"
        yield f"long-base{suffix}", seed, "1", None, "M", True
        yield f"long-scone{suffix}", seed, "1", "k5-1m", "L", True
        yield f"long-base-2{suffix}", seed, "2", None, "M", True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=1500, help="updates of 4,096 tokens")
    parser.add_argument("--precision", choices=("f32", "bf16"), help="bf16 is for GPUs: SCONE_DEVICE=cuda:0 run.sh ...")
    arguments = parser.parse_args()
    precision = f'precision = "{arguments.precision}"\n' if arguments.precision else ""
    arguments.directory.mkdir(parents=True, exist_ok=True)
    names = []
    for name, *run in runs():
        seed, shape, fgrams, size, *long = run
        text = toml(arguments.data.resolve(), arguments.steps, precision, seed, shape, fgrams, size, bool(long))
        (arguments.directory / f"{name}.toml").write_text(text)
        names.append(name)
    (arguments.directory / "names").write_text("\n".join(names) + "\n")


if __name__ == "__main__":
    main()
