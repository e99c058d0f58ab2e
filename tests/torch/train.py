"""The training of `scone-train fit`, again, in PyTorch: to hold our gradients, our losses and our speed against.

    scone-train fit --config RUN.toml --output RUN_DIR --stop-after 0
    python tests/torch/train.py RUN_DIR --steps 200 --scone target/release/scone-train

The first command writes the initial weights. The script then trains the same model from them on the same batches, and lets
scone-train do the same in a copy of RUN_DIR, the two taking turns of --turn steps, so that whatever disturbs the machine
disturbs both. It prints each step's losses, the largest relative difference, and the median ratio of tokens/s. Without
--scone it only trains.

Nothing is shared with the Rust code: the model is written with torch.nn.functional, gradients are autograd's, the
optimizer is torch.optim.AdamW, and the order of the data is computed here from the configuration's seed. F-grams are
embedded once each, those of a length in one batch. Needs torch, numpy and safetensors.
"""

import argparse
import json
import math
import pathlib
import shutil
import statistics
import subprocess
import time
import tomllib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """SplitMix64's step."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def permuted(i: int, length: int, key: int) -> int:
    """Where index `i` goes in a permutation of `length`: four rounds of a Feistel network, again until it is inside."""
    half = max(1, -(-max(length - 1, 0).bit_length() // 2))
    mask = (1 << half) - 1
    at = i
    while True:
        left, right = at >> half, at & mask
        for turn in range(4):
            left, right = right, left ^ (mix(right ^ mix((key + turn) & MASK)) & mask)
        at = left << half | right
        if at < length:
            return at


class Data:
    """The training windows of a dataset in their shuffled order."""

    def __init__(self, directory: pathlib.Path, context: int, seed: int, tagged: bool):
        info = json.loads((directory / "dataset.json").read_text())
        dtype = {"u16": np.uint16, "u32": np.uint32}[info["dtype"]]
        files = [directory / shard["file"] for shard in info["train"]["shards"]]
        self.tokens = [np.memmap(file, dtype, "r") for file in files]
        self.tags = [np.memmap(file.with_suffix(".tags"), np.uint8, "r") for file in files] if tagged else None
        self.counts = [(len(shard) - 1) // context for shard in self.tokens]
        self.context, self.seed = context, seed

    def batch(self, number: int, size: int):
        """Tokens [size, context + 1] and the lengths of their longest matches [size, context], if there are tags."""
        windows = sum(self.counts)
        rows, tags = [], []
        for at in range(number * size, (number + 1) * size):
            window = permuted(at % windows, windows, mix(self.seed ^ mix(at // windows)))
            shard = 0
            while window >= self.counts[shard]:
                window -= self.counts[shard]
                shard += 1
            start = window * self.context
            rows.append(self.tokens[shard][start : start + self.context + 1].astype(np.int64))
            if self.tags:
                found = self.tags[shard][start : start + self.context]
                # No match reaches before the window.
                tags.append(np.minimum(found, np.arange(1, self.context + 1)))
        return np.stack(rows), np.stack(tags) if tags else None


class Decoder:
    """A Llama decoder without embedding and head."""

    def __init__(self, weights: dict, part: str, layers: int, heads: int, kv_heads: int, theta: float, eps: float, context: int):
        self.weights, self.part, self.layers = weights, part, layers
        self.heads, self.kv_heads, self.eps = heads, kv_heads, eps
        self.head = weights[f"{part}/model.norm.weight"].numel() // heads
        angles = torch.outer(torch.arange(context), theta ** (-torch.arange(0, self.head, 2) / self.head))
        self.cos, self.sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def norm(self, x, weight):
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def rotate(self, x):
        n = x.shape[-2]
        a, b = x.chunk(2, -1)
        return x * self.cos[:n] + torch.cat([-b, a], -1) * self.sin[:n]

    def __call__(self, x):
        """[sequences, tokens, d] to the hidden states before the last norm."""
        sequences, n, d = x.shape
        for i in range(self.layers):
            w = lambda name: self.weights[f"{self.part}/model.layers.{i}.{name}.weight"]
            h = self.norm(x, w("input_layernorm"))
            split = lambda y, heads: y.view(sequences, n, heads, self.head).transpose(1, 2)
            q = self.rotate(split(F.linear(h, w("self_attn.q_proj")), self.heads))
            k = self.rotate(split(F.linear(h, w("self_attn.k_proj")), self.kv_heads))
            v = split(F.linear(h, w("self_attn.v_proj")), self.kv_heads)
            grouped = self.heads != self.kv_heads
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            x = x + F.linear(mixed.transpose(1, 2).reshape(sequences, n, d), w("self_attn.o_proj"))
            h = self.norm(x, w("post_attention_layernorm"))
            inner = F.silu(F.linear(h, w("mlp.gate_proj"))) * F.linear(h, w("mlp.up_proj"))
            x = x + F.linear(inner, w("mlp.down_proj"))
        return x


class Joint:
    """The main model and, unless it is a baseline, the f-gram model."""

    def __init__(self, config: dict, weights: dict):
        model, fgram = config["model"], config.get("fgram")
        self.weights = weights
        common = model["rope_theta"], model["rms_norm_eps"], model["context"]
        self.main = Decoder(weights, "main", model["layers"], model["heads"], model["kv_heads"], *common)
        self.fgram = None
        if fgram:
            heads = fgram.get("heads") or model["heads"]
            kv_heads = heads if fgram.get("heads") else model["kv_heads"]
            self.fgram = Decoder(weights, "fgram", fgram["layers"], heads, kv_heads, *common)
            self.residual = fgram.get("residual_output", True)
            if fgram.get("fallback"):
                raise SystemExit("matches that fall back at random are not done here: set fallback to 0")

    def fgram_rows(self, tokens, tags):
        """The embeddings of a batch's different f-grams, and for each that occurs its row and its position."""
        table = self.weights["main/model.embed_tokens.weight"]
        own = self.weights.get("fgram/model.embed_tokens.weight", table)
        rows, at, where = [], [], []
        count = 0
        flat = tokens[:, :-1].reshape(-1)
        for n in sorted(set(tags[tags >= 2].tolist())):
            positions = np.flatnonzero(tags.reshape(-1) == n)
            grams = np.stack([flat[positions - n + 1 + i] for i in range(n)], 1)
            unique, inverse = np.unique(grams, axis=0, return_inverse=True)
            unique = torch.from_numpy(unique)
            row = self.fgram.norm(self.fgram(own[unique])[:, -1], self.weights["fgram/model.norm.weight"])
            if "fgram/output_proj.weight" in self.weights:
                row = F.linear(row, self.weights["fgram/output_proj.weight"])
            if "fgram/output_gain" in self.weights:
                row = self.weights["fgram/output_gain"] * row
            if self.residual:
                row = row + table[unique[:, -1]]
            rows.append(row)
            at.append(inverse.reshape(-1) + count)
            where.append(positions)
            count += len(unique)
        return rows, at, where

    def loss(self, tokens, tags):
        table = self.weights["main/model.embed_tokens.weight"]
        batch = torch.from_numpy(tokens)
        x = F.embedding(batch[:, :-1], table)
        if self.fgram:
            rows, at, where = self.fgram_rows(tokens, tags)
            if rows:
                where, at = (torch.from_numpy(np.concatenate(part)) for part in (where, at))
                x = x.reshape(-1, x.shape[-1]).index_copy(0, where, torch.cat(rows)[at]).view_as(x)
        h = self.main.norm(self.main(x), self.weights["main/model.norm.weight"])
        return F.cross_entropy(F.linear(h, table).flatten(0, 1), batch[:, 1:].flatten())


def learning_rate(train: dict, step: int) -> float:
    warmup = min(train["warmup_steps"], train["steps"])
    if step <= warmup:
        return train["learning_rate"] * step / warmup
    progress = min(1.0, (step - warmup) / max(1, train["steps"] - warmup))
    share = train["final_share"] + (1 - train["final_share"]) * 0.5 * (1 + math.cos(math.pi * progress))
    return train["learning_rate"] * share


class Trainer:
    def __init__(self, run: pathlib.Path):
        self.config = config = tomllib.loads((run / "config.toml").read_text())
        with safe_open(max(run.glob("step-*.safetensors")), "pt") as file:
            state = json.loads(file.metadata()["state"])
            if state["step"]:
                raise SystemExit(f"{run} is at step {state['step']}: start it with --stop-after 0")
            weights = {name[2:]: file.get_tensor(name).float() for name in file.keys() if name.startswith("p/")}
        self.weights = {name: tensor.requires_grad_() for name, tensor in weights.items()}
        self.model = Joint(config, self.weights)
        dataset = pathlib.Path(config["data"]["dataset"])
        self.data = Data(dataset, config["model"]["context"], config.get("seed", 0), "fgram" in config)
        train, scale = config["train"], config.get("fgram", {}).get("learning_rate_scale", 1.0)
        groups = {}
        for name, tensor in self.weights.items():
            decay = train["weight_decay"] if tensor.dim() >= 2 else 0.0
            groups.setdefault((decay, scale if name.startswith("fgram/") else 1.0), []).append(tensor)
        groups = [{"params": params, "weight_decay": decay, "scale": scale} for (decay, scale), params in groups.items()]
        self.optimizer = torch.optim.AdamW(groups, betas=(train["beta1"], train["beta2"]), eps=train["epsilon"], fused=True)

    def step(self, step: int):
        """An update, counted from 1. Its loss and its seconds."""
        train = self.config["train"]
        start, total = time.perf_counter(), 0.0
        self.optimizer.zero_grad()
        for micro in range(train["accumulate"]):
            number = (step - 1) * train["accumulate"] + micro
            loss = self.model.loss(*self.data.batch(number, train["batch"])) / train["accumulate"]
            loss.backward()
            total += loss.item()
        # Before the first f-gram occurs its model has no gradient.
        for tensor in self.weights.values():
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), train["clip"])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, step) * group["scale"]
        self.optimizer.step()
        return total, time.perf_counter() - start


def scone_turn(scone: pathlib.Path, run: pathlib.Path, steps: int) -> list:
    """Lets scone-train do so many updates more; their lines of metrics."""
    command = [scone, "fit", "--config", run / "config.toml", "--output", run, "--resume", "--stop-after", str(steps)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-steps:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="a run at step 0")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--turn", type=int, default=20, help="steps of one after which it is the other's turn")
    parser.add_argument("--scone", type=pathlib.Path, help="scone-train; left out: only PyTorch trains")
    parser.add_argument("--threads", type=int, help="of PyTorch [default: its own]")
    parser.add_argument("--json", type=pathlib.Path, help="where to write both loss curves")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    trainer = Trainer(arguments.run)
    train = trainer.config["train"]
    tokens = train["batch"] * train["accumulate"] * trainer.config["model"]["context"]
    copy = arguments.run.with_name(arguments.run.name + "-scone")
    if arguments.scone:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(arguments.run, copy)
    losses, ours, ratios = [], [], []
    for first in range(1, arguments.steps + 1, arguments.turn):
        count = min(arguments.turn, arguments.steps + 1 - first)
        turn = [trainer.step(step) for step in range(first, first + count)]
        losses += [loss for loss, _ in turn]
        rate = tokens / statistics.median(seconds for _, seconds in turn)
        line = f"step {first + count - 1}: torch loss {losses[-1]:.4f}, {rate:.0f} tokens/s"
        if arguments.scone:
            lines = scone_turn(arguments.scone, copy, count)
            ours += [one["loss"] for one in lines]
            speed = statistics.median(one["tokens_per_second"] for one in lines)
            ratios.append(speed / rate)
            line += f"; scone loss {ours[-1]:.4f}, {speed:.0f} tokens/s, {ratios[-1]:.2f} times"
        print(line, flush=True)
    if arguments.scone:
        differences = [abs(a - b) / b for a, b in zip(ours, losses)]
        print(f"largest relative difference of losses over {len(losses)} steps: {max(differences):.2e}")
        print(f"scone / torch, tokens/s: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": losses, "scone": ours, "ratios": ratios}))


if __name__ == "__main__":
    main()
