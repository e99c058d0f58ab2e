"""Puts what gpu-check has measured together: OUTPUT_DIR/gpu.json and OUTPUT_DIR/gpu.md.

    python3 scripts/gpu_report.py OUTPUT_DIR [PART_THAT_FAILED]...
"""

import json
import pathlib
import statistics
import sys


def read(path):
    """A JSON file, or None where a part has not written it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def speed(run):
    """The median of a run's tokens a second, without its first steps."""
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except OSError:
        return None
    rates = [line["tokens_per_second"] for line in lines[10:] if line.get("loss") is not None]
    return statistics.median(rates) if rates else None


def tests(path):
    """How many tests passed and failed, as the last line says it."""
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in reversed(lines) if line.startswith("test result")), "not run")


def number(x):
    return f"{x:.0f}" if x else ""


def median(times):
    return f"{times['p50']:.2f}" if times else ""


def ratio(a, b):
    return f"{a / b:.2f}" if a and b else ""


def beside_transformers(decoding, peers):
    """Our time of a step beside that of transformers, where both were measured."""
    ours = {(step["shape"], step["case"]): step["seconds"] for step in (decoding or {}).get("steps", ())}
    rows = []
    for shape, peer in peers.items():
        for step in (peer or {}).get("steps", ()):
            own = ours.get((shape, f"decode, {step['batch']} at {step['past']}"))
            if own:
                rows.append(f"| {shape} | {step['batch']} | {1e3 * own:.3f} | {1e3 * step['seconds']:.3f} | {step['seconds'] / own:.2f} |")
    if not rows:
        return []
    head = ["", "## Beside transformers", "", "| shape | batch | ms a step | transformers' | how often as fast |", "|---|---|---|---|---|"]
    return head + rows


def against_the_larger(decoding, tables):
    """The paper's table 5: 1.3B with a table of 10 million rows took 4.83 ms a token where 1.9B without took 6.45."""
    steps = (decoding or {}).get("steps", ())
    larger = next((s["seconds"] for s in steps if s["shape"] == "1.9B" and s["case"].startswith("decode, 4 ")), None)
    rows = [
        f"- rows in {way['rows_in']}: {way['seconds'] / larger:.3f} of the 1.9B model's time (paper: 0.749)"
        for way in (tables or {}).get("tables", ())
        if larger and way["rows"] >= 1_000_000
    ]
    return ["", *rows] if rows else []


def main():
    output, failed = pathlib.Path(sys.argv[1]), sys.argv[2:]
    ways = ("cpu-mmap", "cuda-mmap", "cuda-device", "cuda-pinned")
    perplexities = {way: read(output / f"eval-{way}.json") for way in ways}
    serving = {int(path.stem.split("-")[1]): read(path) for path in sorted(output.glob("serving-*.json"))}
    training = {run.name.removeprefix("train-"): speed(run) for run in output.glob("train-*") if run.is_dir()}
    decoding, tables = read(output / "decoding.json"), read(output / "table.json")
    peers = {path.stem.removeprefix("peer-"): read(path) for path in sorted(output.glob("peer-*.json"))}
    result = {
        "failed": failed,
        "tests": tests(output / "tests.txt"),
        "perplexity": {place: found and found.get("perplexity") for place, found in perplexities.items()},
        "decoding": decoding,
        "tables": tables and tables["tables"],
        "peers": peers,
        "serving": serving,
        "training_tokens_per_second": training,
    }
    (output / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    text = [f"# {(decoding or tables or {}).get('device', 'GPU')}", "", f"Tests: {result['tests']}"]
    if failed:
        text += ["", f"Failed: {', '.join(failed)}"]
    cpu = result["perplexity"]["cpu-mmap"]
    for way, found in result["perplexity"].items():
        if cpu and found and way != "cpu-mmap":
            text += ["", f"Perplexity of model_cards/default: {cpu:.4f} on the CPU, {found:.4f} by {way} ({found / cpu - 1:+.3%})"]
    table = output / "decoding.md"
    if table.exists():
        text += ["", "## Decoding", "", table.read_text().strip()]
    text += beside_transformers(decoding, peers)
    if (output / "table.md").exists():
        text += ["", "## A table", "", (output / "table.md").read_text().strip()]
        text += against_the_larger(decoding, tables)
    if training:
        text += ["", "## Training", "", "| shape | tokens/s | PyTorch's | scone / PyTorch |", "|---|---|---|---|"]
        for name, rate in sorted(training.items()):
            other = (peers.get(f"train-{name}") or {}).get("tokens_per_second")
            text.append(f"| {name} | {number(rate)} | {number(other)} | {ratio(rate, other)} |")
    if serving:
        text += ["", "## Serving a model of random weights through HTTP", ""]
        text += ["| clients | | tokens/s | first token, ms | a token after it, ms |", "|---|---|---|---|---|"]
        for clients, report in sorted(serving.items()):
            for found in report["results"] if report else ():
                text.append(
                    f"| {clients} | {found['target']} | {found['output_tokens_per_s']:.0f} "
                    f"| {median(found['ttft_ms'])} | {median(found['tpot_ms'])} |"
                )
    (output / "gpu.md").write_text("\n".join(text) + "\n")


main()
