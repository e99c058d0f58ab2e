"""A synthetic dataset for `cargo bench --bench lookup`: tokens drawn independently from Zipf's distribution.

    python benches/peers/zipf.py TOKENIZER.json DATASET [--tokens 40000000] [--exponent 1.0] [--seed 1]

Writes what `scone-train prepare` would (documents of 1,000 tokens, none held out); mine it with `scone-train mine`. Needs numpy.
"""

import argparse
import hashlib
import json
import pathlib

import numpy

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("tokenizer", type=pathlib.Path)
parser.add_argument("dataset", type=pathlib.Path)
parser.add_argument("--tokens", type=int, default=40_000_000)
parser.add_argument("--exponent", type=float, default=1.0)
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

text = args.tokenizer.read_bytes()
tokenizer = json.loads(text)
eos = next(token["id"] for token in tokenizer["added_tokens"] if token["special"])
vocabulary = numpy.array(sorted(set(tokenizer["model"]["vocab"].values()) - {eos}))
weights = 1.0 / numpy.arange(1, len(vocabulary) + 1) ** args.exponent
uniform = numpy.random.default_rng(args.seed).random(args.tokens)
tokens = vocabulary[numpy.searchsorted(numpy.cumsum(weights / weights.sum()), uniform).clip(max=len(vocabulary) - 1)]
tokens[999::1000] = eos
tokens[-1] = eos

args.dataset.mkdir(parents=True)
dtype = "u16" if vocabulary.max() < 1 << 16 else "u32"
tokens.astype({"u16": "<u2", "u32": "<u4"}[dtype]).tofile(args.dataset / "train-00000.bin")
(args.dataset / "tokenizer.json").write_bytes(text)
documents = int((tokens == eos).sum())
shard = {"file": "train-00000.bin", "tokens": len(tokens), "documents": documents}
split = {"shards": [shard], "tokens": len(tokens), "documents": documents, "bytes": 0}
empty = {"shards": [], "tokens": 0, "documents": 0, "bytes": 0}
manifest = {
    "tokenizer_sha256": hashlib.sha256(text).hexdigest(), "dtype": dtype, "eos": int(eos), "tokens": len(tokens),
    "documents": documents, "train": split, "validation": empty,
}
(args.dataset / "dataset.json").write_text(json.dumps(manifest, indent=2))
