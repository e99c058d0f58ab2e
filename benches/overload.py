"""What overload does to those who are let in: latency at capacity, and at several times of it.

    cargo build --release && python benches/overload.py

A closed loop with as many requests as there are places gives the capacity. Then requests arrive at random at several times that
rate, whether or not earlier ones are answered. Of those that are let in, the server's log says how long they waited for
their turn and how long they took: what counts is the difference. Of the others, the load generator says how soon they had
their 429. Server and load generator share the machine, so that the figures are worse than a server of its own would show.
"""

import argparse
import json
import signal
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Server:
    """`scone serve` with a log of its requests."""

    def __init__(self, binary, directory, flags):
        self.log = Path(directory) / "server.log"
        command = [binary, "serve", "--listen", "127.0.0.1:0", "--log-format", "json", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True)
        self.url = self.process.stdout.readline().split()[-1]
        self.read = 0

    def requests(self):
        """The completions that were logged since this was last asked."""
        lines = self.log.read_text().splitlines()
        new, self.read = lines[self.read :], len(lines)
        entries = (json.loads(line) for line in new if line.startswith("{"))
        fields = (entry.get("fields", entry) for entry in entries)
        return [entry for entry in fields if entry.get("route") == "/v1/completions"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def load(binary, url, directory, arguments):
    """The load generator's log of its requests, and how long they took together in seconds."""
    log = Path(directory) / "requests.jsonl"
    command = [binary, "bench", "--target", f"scone={url}", "--repetitions", "1", "--prompt-tokens", "32", "--output-tokens", "64"]
    subprocess.run([*command, "--requests-log", log, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    sent = [json.loads(line) for line in log.read_text().splitlines()]
    start = min(request["start_s"] for request in sent)
    return sent, max(request["start_s"] + request["e2e_ms"] / 1e3 for request in sent) - start


def quantiles(values):
    """Median, 95th and 99th percentile, and the highest."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return [cuts[49], cuts[94], cuts[98], max(values)]


def answered(server):
    """Milliseconds of answered requests without their time in the queue."""
    return [entry["total_ms"] - entry["queue_ms"] for entry in server.requests() if entry["status"] == 200]


def row(name, values):
    print(f"| {name} | {len(values)} | " + " | ".join(f"{value:.1f}" for value in quantiles(values)) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scone", default=str(ROOT / "target/release/scone"), help="the program")
    parser.add_argument("--places", type=int, default=16, help="sequences at a time")
    parser.add_argument("--times", type=float, default=5, help="how many times the capacity arrives")
    parser.add_argument("--seconds", type=float, default=20, help="how long")
    arguments = parser.parse_args()
    places = str(arguments.places)
    with tempfile.TemporaryDirectory() as directory:
        server = Server(arguments.scone, directory, ["--max-sequences", places, "--max-queue", places])
        try:
            load(arguments.scone, server.url, directory, ["--concurrency", places, "--requests", "200"])
            answered(server)
            sent, seconds = load(arguments.scone, server.url, directory, ["--concurrency", places, "--requests", "1500"])
            capacity, before = len(sent) / seconds, answered(server)
            rate = arguments.times * capacity
            count = str(round(rate * arguments.seconds))
            sent, seconds = load(arguments.scone, server.url, directory, ["--rate", f"{rate:.1f}", "--requests", count])
            during = answered(server)
        finally:
            server.stop()
    refused = [request["e2e_ms"] for request in sent if request["error"]]
    others = [request["error"] for request in sent if request["error"] and "429" not in json.dumps(request["error"])]
    print(f"capacity {capacity:.0f} requests/s; {len(sent) / seconds:.0f} requests/s arrived for {seconds:.0f} s\n")
    print("| milliseconds | requests | median | p95 | p99 | highest |\n|---|---|---|---|---|---|")
    row("at capacity, without the queue", before)
    row(f"let in at {arguments.times:g} times, without the queue", during)
    row(f"refused at {arguments.times:g} times", refused)
    ratios = [after / at for after, at in zip(quantiles(during), quantiles(before))]
    print(f"\nlet in / at capacity: median {ratios[0]:.2f}, p95 {ratios[1]:.2f}, p99 {ratios[2]:.2f}; other errors: {len(others)}")
    if others:
        print(others[0])


main()
