"""An independent forward pass of a Llama-shaped GGUF file, to hold `scone` against: numpy, f32, one sequence at a time.

    python benches/peers/reference.py FILE.gguf --tokenizer TOKENIZER.json
    python benches/peers/reference.py FILE.gguf --tokenizer TOKENIZER.json --text FILE --max-bytes 90000 --cut CUT.txt
    scone eval FILE.gguf --text CUT.txt --context 1024 --stride 512 --json

Prints one JSON document. Without --text: the tokens of --prompt and the best logits after it. With --text: the
perplexity of the text, cut at the last line end before --max-bytes, and written to --cut so that `scone eval` reads the
very same bytes. Windows are those of `scone eval`: `context` tokens that start `stride` apart; a token counts once, in
the first window that holds it, and the first token of the text not at all. Weights are dequantised to f32 (F32, F16,
BF16, Q8_0, Q4_0, Q4_1) and everything is computed in f32; nothing here is shared with the Rust code. Needs numpy and
tokenizers.
"""

import argparse
import json
import math
import mmap
import pathlib
import struct
import time

import numpy as np

# GGUF, version 3: the types of metadata values, and of tensors (their number, elements and bytes of a block).
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TENSORS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34), 30: ("BF16", 1, 2)}


class Gguf:
    """A mapped file: its metadata, and its tensors as f32."""

    def __init__(self, path: pathlib.Path):
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.at = 0
        magic, version, tensors, values = self.bytes[:4], *struct.unpack_from("<IQQ", self.bytes, 4)
        if magic != b"GGUF" or version not in (2, 3):
            raise SystemExit(f"{path}: not a GGUF file of version 2 or 3")
        self.at = 24
        self.metadata = {}
        for _ in range(values):
            key = self.text()
            self.metadata[key] = self.value(self.scalar("I"))
        self.tensors = {}
        for _ in range(tensors):
            name, dimensions = self.text(), self.scalar("I")
            shape = [self.scalar("Q") for _ in range(dimensions)][::-1]
            self.tensors[name] = (shape, self.scalar("I"), self.scalar("Q"))
        alignment = self.metadata.get("general.alignment", 32)
        self.data = -(-self.at // alignment) * alignment

    def scalar(self, kind):
        (value,) = struct.unpack_from("<" + kind, self.bytes, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def text(self):
        length = self.scalar("Q")
        self.at += length
        return self.bytes[self.at - length : self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            kind, length = self.scalar("I"), self.scalar("Q")
            return [self.value(kind) for _ in range(length)]
        return self.scalar(SCALARS[kind])

    def tensor(self, name):
        shape, kind, offset = self.tensors[name]
        if kind not in TENSORS:
            raise SystemExit(f"{name} is of GGUF's tensor type {kind}, which this script does not read")
        kind, elements, size = TENSORS[kind]
        blocks = math.prod(shape) // elements
        raw = np.frombuffer(self.bytes, np.uint8, blocks * size, self.data + offset).reshape(blocks, size)
        return dequantise(kind, raw).reshape(shape)


def dequantise(kind, raw):
    """Blocks of bytes to f32, one row a block."""

    def half(columns):
        return np.ascontiguousarray(raw[:, columns]).view(np.float16).astype(np.float32)

    if kind == "F32":
        return np.ascontiguousarray(raw).view(np.float32)
    if kind == "F16":
        return half(slice(0, 2))
    if kind == "BF16":
        return (np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind == "Q8_0":
        return half(slice(0, 2)) * raw[:, 2:].view(np.int8)
    # Of a byte, the low half is in the first 16 numbers of the block and the high half in the last 16.
    nibbles = raw[:, 2:] if kind == "Q4_0" else raw[:, 4:]
    levels = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32)
    return half(slice(0, 2)) * (levels - 8) if kind == "Q4_0" else half(slice(0, 2)) * levels + half(slice(2, 4))


def halves(weight, heads):
    """Rows of Q or K from GGUF's order, where the two numbers that are rotated together lie side by side, to that of
    the original model, where one lies in the first half of the head and the other in the second."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


class Llama:
    def __init__(self, file: Gguf):
        if file.metadata["general.architecture"] != "llama":
            raise SystemExit("only the architecture llama is known here")
        get = lambda key, otherwise=None: file.metadata.get("llama." + key, otherwise)
        self.heads, self.eps = get("attention.head_count"), get("attention.layer_norm_rms_epsilon")
        self.kv_heads = get("attention.head_count_kv", self.heads)
        self.base, self.head = get("rope.freq_base", 10000.0), get("embedding_length") // self.heads
        self.embedding = file.tensor("token_embd.weight")
        self.output = file.tensor("output.weight") if "output.weight" in file.tensors else self.embedding
        self.norm = file.tensor("output_norm.weight")
        self.blocks = []
        for i in range(get("block_count")):
            names = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
            block = {name: file.tensor(f"blk.{i}.{name}.weight") for name in names}
            block["attn_q"] = halves(block["attn_q"], self.heads)
            block["attn_k"] = halves(block["attn_k"], self.kv_heads)
            self.blocks.append(block)

    def rms(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.eps)) * weight

    def rotate(self, x):
        """x: [heads, tokens, head]; position p turns the pair (i, i + head / 2) by p * base^(-2 i / head)."""
        half = self.head // 2
        angles = np.arange(x.shape[1])[:, None] * self.base ** (-np.arange(half) / half)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, x, block):
        tokens = len(x)
        split = lambda y, heads: y.reshape(tokens, heads, self.head).swapaxes(0, 1)
        q = self.rotate(split(x @ block["attn_q"].T, self.heads))
        k = self.rotate(split(x @ block["attn_k"].T, self.kv_heads))
        v = split(x @ block["attn_v"].T, self.kv_heads)
        future = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
        out = np.empty_like(q)
        for head in range(self.heads):
            group = head * self.kv_heads // self.heads
            scores = q[head] @ k[group].T / np.float32(math.sqrt(self.head)) + future
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out[head] = scores / scores.sum(-1, keepdims=True) @ v[group]
        return out.swapaxes(0, 1).reshape(tokens, -1) @ block["attn_output"].T

    def hidden(self, tokens):
        """What the output head reads, [tokens, d]."""
        x = self.embedding[tokens]
        for block in self.blocks:
            x = x + self.attention(self.rms(x, block["attn_norm"]), block)
            y = self.rms(x, block["ffn_norm"])
            gate = y @ block["ffn_gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ block["ffn_up"].T)) @ block["ffn_down"].T
        return self.rms(x, self.norm)


def perplexity(model, tokens, context, stride):
    losses, start, new = [], 0, 0
    while new < len(tokens):
        end = min(start + context, len(tokens))
        hidden = model.hidden(tokens[start:end])
        first = max(new, start + 1)
        # The head on a few positions at a time: their logits are the largest thing in memory.
        for at in range(first, end, 256):
            to = min(at + 256, end)
            logits = (hidden[at - 1 - start : to - 1 - start] @ model.output.T).astype(np.float64)
            top = logits.max(-1)
            total = np.log(np.exp(logits - top[:, None]).sum(-1)) + top
            losses.append(total - logits[np.arange(to - at), tokens[at:to]])
        start, new = start + stride, end
    losses = np.concatenate(losses)
    return {"tokens": len(tokens), "predicted": len(losses), "nll": losses.mean(), "perplexity": math.exp(losses.mean()),
            "context": context, "stride": stride}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="the tokenizer.json of the same model")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--top", type=int, default=3, help="how many of the best logits after the prompt")
    parser.add_argument("--text", type=pathlib.Path, help="a text to measure the perplexity of")
    parser.add_argument("--max-bytes", type=int, default=1 << 40, help="the text is cut at the line end before")
    parser.add_argument("--cut", type=pathlib.Path, help="where to write the text as it was cut")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--stride", type=int, help="half the context if left out")
    arguments = parser.parse_args()

    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.tokenizer))
    start = time.monotonic()
    model = Llama(Gguf(arguments.gguf))
    if arguments.text is None:
        tokens = tokenizer.encode(arguments.prompt).ids
        logits = model.hidden(np.array(tokens))[-1] @ model.output.T
        best = np.argsort(-logits)[: arguments.top]
        result = {"prompt": arguments.prompt, "tokens": tokens,
                  "best": [{"token": int(i), "text": tokenizer.decode([int(i)]), "logit": float(logits[i])} for i in best]}
    else:
        text = arguments.text.read_bytes()
        if len(text) > arguments.max_bytes:
            text = text[: text.rindex(b"\n", 0, arguments.max_bytes) + 1]
        if arguments.cut:
            arguments.cut.write_bytes(text)
        tokens = np.array(tokenizer.encode(text.decode()).ids)
        result = perplexity(model, tokens, arguments.context, arguments.stride or arguments.context // 2)
        result["bytes"] = len(text)
    print(json.dumps({"file": arguments.gguf.name, **result, "seconds": round(time.monotonic() - start, 1)}))


if __name__ == "__main__":
    main()
