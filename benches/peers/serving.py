"""`scone serve` beside llama.cpp's `llama-server`: the same requests over HTTP, the servers in turns, one at a time.

    python benches/peers/serving.py --llama-bin LLAMA/build/bin --model MODEL.gguf [--rounds 5]

In each round each server is started anew, loaded by `scone bench`, and stopped: first by --sequences clients in a closed
loop, then by Poisson arrivals at each of --loads times the requests/s at which llama-server answered the closed loop in a
round before the first, which is not counted. Below 1 a server can keep up and waiting is what counts; above 1 it cannot,
and what it gets done is. Prompts are real (prompts.jsonl beside this script, cut at --max-prompt-chars), each request asks
for 16 to 128 tokens, drawn by the round's seed, and gets them all (ignore_eos); both servers get the same requests at
the same times. Each prompt begins with its number, so that no two share a prefix that a server could have cached, and
llama-server's cache of prompts is off.

Prints the median over rounds of every figure and of scone's divided by llama-server's in the same round. Without
--llama-bin scone alone is measured, at --rates requests/s. --json FILE keeps every round. Needs nothing but Python.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

import servers

# Requests to a server before those that count.
WARMUP = 4
FIGURES = [("output tokens/s", ["output_tokens_per_s"]), ("TTFT p50, ms", ["ttft_ms", "p50"]), ("TTFT p99, ms", ["ttft_ms", "p99"]),
           ("ITL p50, ms", ["itl_ms", "p50"]), ("ITL p99, ms", ["itl_ms", "p99"]), ("requests/s", ["requests_per_s"])]


def figure(result, path):
    for key in path:
        result = result and result[key]
    return result


def bench(name, url, load, prompts, seed, arguments):
    """What one server did under one load: a line of the results of `scone bench`."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        file.flush()
        command = [arguments.scone, "bench", "--target", f"{name}={url}", *load, "--prompts", file.name, "--json"]
        command += ["--max-prompt-chars", arguments.max_prompt_chars, "--requests", arguments.requests, "--repetitions", 1, "--warmup", WARMUP]
        command += ["--output-tokens", arguments.output_tokens, "--seed", seed, "--timeout", 600]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if not done.stdout:
        sys.exit(f"scone bench failed:\n{done.stderr}")
    [result] = json.loads(done.stdout)["results"]
    for kind, failures in result["failures"].items():
        print(f"{name}: {failures['count']} requests failed ({kind}): {failures['first']}", file=sys.stderr)
    return result


def measure(name, loads, seed, arguments, prompts):
    """The results under all loads; a server starts anew for each, so that no load inherits what another left."""
    order = random.Random(seed)
    # As many as are sent, with those that warm the server up.
    drawn = [prompt for _ in range(1 + (arguments.requests + WARMUP) // len(prompts)) for prompt in order.sample(prompts, len(prompts))]
    numbered = [f"Question {number}. {prompt}" for number, prompt in enumerate(drawn[: arguments.requests + WARMUP], 1)]
    results = {}
    for title, load in loads.items():
        with servers.running(name, arguments) as url:
            results[title] = bench(name, url, load, numbered, seed, arguments)
        print(f"seed {seed}, {name}, {title}: {results[title]['output_tokens_per_s']:.1f} tokens/s", file=sys.stderr)
    return results


def table(title, rounds):
    """The medians under one load, as Markdown."""
    names = list(rounds[0])
    ratio = " scone / llama-server (in the rounds) |" if len(names) == 2 else ""
    lines = [f"| {title} | {' | '.join(names)} |{ratio}", "|---" * (1 + len(names) + (len(names) == 2)) + "|"]
    for label, path in FIGURES:
        values = {name: [figure(each[name][title], path) for each in rounds] for name in names}
        if any(value is None for of_name in values.values() for value in of_name):
            lines.append(f"| {label} |" + " |" * (len(names) + (len(names) == 2)))
            continue
        line = f"| {label} | " + " | ".join(f"{statistics.median(values[name]):.1f}" for name in names) + " |"
        if len(names) == 2:
            ratios = sorted(ours / theirs for ours, theirs in zip(values["scone"], values["llama-server"]))
            line += f" **{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        lines.append(line)
    failed = " | ".join(str(sum(each[name][title]["failed"] for each in rounds)) for name in names)
    short = " | ".join(str(sum(each[name][title]["short"] for each in rounds)) for name in names)
    lines += [f"| failed requests, all rounds | {failed} |" + (" |" if ratio else "")]
    lines += [f"| answers shorter than asked for | {short} |" + (" |" if ratio else "")]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    servers.add_arguments(parser)
    parser.add_argument("--prompts", type=pathlib.Path, default=pathlib.Path(__file__).parent / "prompts.jsonl")
    parser.add_argument("--max-prompt-chars", type=int, default=4000)
    parser.add_argument("--output-tokens", default="16..128")
    parser.add_argument("--requests", type=int, default=96, help="of each load in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loads", type=float, nargs="*", default=[0.7, 1.3], help="times llama-server's requests/s")
    parser.add_argument("--rates", type=float, nargs="*", help="requests/s, instead of --loads")
    parser.add_argument("--json", type=pathlib.Path, help="where to write every round")
    arguments = parser.parse_args()
    prompts = [json.loads(line)["prompt"] for line in arguments.prompts.read_text().splitlines()]
    names = servers.names(arguments)
    closed = f"{arguments.sequences} clients"
    loads = {closed: ["--concurrency", arguments.sequences]}
    rates = arguments.rates
    if rates is None:
        before = measure(names[-1], loads, 0, arguments, prompts)[closed]["requests_per_s"]
        rates = [round(before * load, 2) for load in arguments.loads]
    loads |= {f"Poisson, {rate:g} requests/s": ["--rate", rate] for rate in rates}
    rounds = []
    for seed in range(1, arguments.rounds + 1):
        order = names if seed % 2 else names[::-1]
        results = {name: measure(name, loads, seed, arguments, prompts) for name in order}
        rounds.append({name: results[name] for name in names})
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=1))
    print(f"{arguments.model.name}, {arguments.threads} threads, {arguments.rounds} rounds of {arguments.requests} requests")
    for title in loads:
        print("\n" + table(title, rounds))


if __name__ == "__main__":
    main()
