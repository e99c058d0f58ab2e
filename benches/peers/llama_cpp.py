"""`scone` beside llama.cpp: decoding and reading prompts, the same weights in the same threads, in turns.

    python benches/peers/llama_cpp.py --llama-bin LLAMA/build/bin --gguf MODEL.gguf [--rounds 5] [--threads 2]

Makes the variants of --types out of the model with llama-quantize (both programs then read the same file), and runs on each,
in turns, llama.cpp's llama-bench and llama-batched-bench, and `benches/decode.rs`. Prints, for each case, the median
over rounds of scone's tokens/s divided by llama.cpp's in the same round, both medians, and what share of the bound each
reached: for decoding the weights' bytes over the bandwidth at which the same threads read memory, for reading prompts
the weights' multiplications and additions over the threads' peak in f32 (instructions on bf16 and on bytes do more, so
that a share may exceed 100 %). A round before the first, which is not counted, finds out for each case whether llama.cpp
is faster with flash attention or without, and that is what scone is compared with. --json FILE keeps every measurement.

Needs nothing but Python, and a build of llama.cpp: see docs/performance.md.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

DECODE_1, DECODE_8, DECODE_LONG = "decode 1 sequence at 128", "decode 8 sequences at 128", "decode 1 sequence at 2048"
PREFILL = "prefill of 512"
CASES = [DECODE_1, DECODE_8, DECODE_LONG, PREFILL]


def run(command):
    """The standard output of a program; where it fails, so does this."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def variant(arguments, kind):
    """The model in this type: made once, and kept in --work."""
    path = arguments.work / f"{arguments.gguf.stem.split('.')[0]}.{kind}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        run([arguments.llama_bin / "llama-quantize", "--allow-requantize", arguments.gguf, unfinished, kind])
        unfinished.rename(path)
    return path


class Llama:
    """llama.cpp's own benchmarks. Its cache of keys and values is of f16, as it is unless told otherwise."""

    def __init__(self, arguments):
        self.arguments, self.facts = arguments, {}

    def bench(self, model, flash, *case):
        arguments = self.arguments
        command = [arguments.llama_bin / "llama-bench", "-m", model, "-t", arguments.threads, "-fa", flash]
        command += ["-r", arguments.repetitions, "-o", "jsonl", *case]
        rows = json_lines(run(command))
        self.facts[model] = {"bytes": rows[0]["model_size"], "parameters": rows[0]["model_n_params"]}
        self.facts["commit"], self.facts["processor"] = rows[0]["build_commit"], rows[0]["cpu_info"]
        return rows

    def measure(self, model, flash):
        """Tokens/s of each case, with flash[case] saying with which attention."""
        tokens, rates = self.arguments.tokens, {}
        for attention in sorted(set(flash.values())):
            depths = [depth for depth, case in [(128, DECODE_1), (2048, DECODE_LONG)] if flash[case] == attention]
            if depths:
                depths = ",".join(map(str, depths))
                for row in self.bench(model, attention, "-p", 0, "-n", tokens, "-d", depths):
                    rates[DECODE_1 if row["n_depth"] == 128 else DECODE_LONG] = row["avg_ts"]
            if flash[PREFILL] == attention:
                [row] = self.bench(model, attention, "-p", 512, "-n", 0)
                rates[PREFILL] = row["avg_ts"]
            if flash[DECODE_8] == attention:
                rates[DECODE_8] = self.batched(model, attention)
        return rates

    def batched(self, model, attention):
        threads, tokens = self.arguments.threads, self.arguments.tokens
        command = [self.arguments.llama_bin / "llama-batched-bench", "-m", model, "-t", threads, "-tb", threads, "-c", 8 * (128 + tokens)]
        command += ["-npp", 128, "-ntg", tokens, "-npl", 8, "-fa", ["off", "on"][attention], "--output-format", "jsonl"]
        return statistics.fmean(json_lines(run(command))[-1]["speed_tg"] for _ in range(self.arguments.repetitions))

    def choose(self, model):
        """With which attention llama.cpp is faster, case by case."""
        without, with_flash = (self.measure(model, dict.fromkeys(CASES, flash)) for flash in (0, 1))
        return {case: int(with_flash[case] >= without[case]) for case in CASES}


def decode_program(given):
    """The benchmark of this repository, built where it is not given."""
    if given:
        return given
    command = ["cargo", "bench", "--bench", "decode", "--no-run", "--message-format", "json"]
    messages = json_lines(run(command))
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "decode")


def scone(program, model, arguments):
    command = [program, model, "--threads", arguments.threads, "--json"]
    command += ["--repetitions", arguments.repetitions, "--tokens", arguments.tokens]
    result = json.loads(run(command))
    rates = {case: statistics.fmean(rates) for case, rates in result.pop("tokens_per_s").items()}
    return rates, result


def bound(case, facts, machine):
    """Tokens/s that the machine allows: no weight read twice for the tokens of a step, no operation but the products."""
    if case == PREFILL:
        # The output head, which is also the embedding, is read for the prompt's last token only.
        return machine["peak_flops"] / (2 * (facts["parameters"] - facts["embedding"]))
    return (8 if case == DECODE_8 else 1) * machine["read_bytes_per_s"] / facts["bytes"]


def measure(kind, llama, program, arguments):
    model = variant(arguments, kind)
    flash = llama.choose(model)
    rounds, machines = [], []
    for number in range(arguments.rounds):
        pair = {}
        for who in ["llama.cpp", "scone"] if number % 2 == 0 else ["scone", "llama.cpp"]:
            if who == "scone":
                pair[who], machine = scone(program, model, arguments)
                machines.append(machine)
            else:
                pair[who] = llama.measure(model, flash)
        rounds.append(pair)
        print(f"{kind}, round {number + 1} of {arguments.rounds}", file=sys.stderr)
    machine = {key: statistics.median(m[key] for m in machines) for key in ("read_bytes_per_s", "peak_flops")}
    facts = {**llama.facts[model], "embedding": arguments.embedding_parameters}
    return {"type": kind, "flash_attention": flash, "rounds": rounds, "machine": machine, "facts": facts}


def row(result, case):
    pairs = [pair for pair in result["rounds"] if case in pair["scone"]]
    if not pairs:
        return f"| {result['type']} | {case} | | | | | | |"
    ratios = [pair["scone"][case] / pair["llama.cpp"][case] for pair in pairs]
    ours, theirs = (statistics.median(pair[who][case] for pair in pairs) for who in ("scone", "llama.cpp"))
    most = bound(case, result["facts"], result["machine"])
    flash = "on" if result["flash_attention"][case] else "off"
    return (f"| {result['type']} | {case} | **{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}) | {ours:.1f} | "
            f"{100 * ours / most:.0f} % | {theirs:.1f} | {100 * theirs / most:.0f} % | {flash} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bin", type=pathlib.Path, required=True, help="where llama-bench and the others are")
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--decode", help="the built benches/decode.rs; cargo builds it if left out")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/peers"), help="where the variants are kept")
    parser.add_argument("--types", nargs="+", default=["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3, help="measurements of a case in a round, whose mean counts")
    parser.add_argument("--tokens", type=int, default=32, help="tokens that each sequence decodes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--embedding-parameters", type=int, default=49152 * 576, help="parameters of a tied embedding")
    parser.add_argument("--json", type=pathlib.Path, help="where to write every measurement")
    arguments = parser.parse_args()
    program, llama = decode_program(arguments.decode), Llama(arguments)
    results = [measure(kind, llama, program, arguments) for kind in arguments.types]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    machine = results[-1]["machine"]
    print(f"{llama.facts['processor']}, {arguments.threads} threads: {machine['read_bytes_per_s'] / 1e9:.1f} GB/s read, "
          f"{machine['peak_flops'] / 1e9:.0f} GFLOP/s peak in f32; llama.cpp {llama.facts['commit']}; {arguments.rounds} rounds\n")
    print("| weights | case | scone / llama.cpp | scone, tokens/s | of the bound | llama.cpp, tokens/s | of the bound | its flash attention |")
    print("|---|---|---|---|---|---|---|---|")
    for result in results:
        for case in CASES:
            print(row(result, case))


if __name__ == "__main__":
    main()
