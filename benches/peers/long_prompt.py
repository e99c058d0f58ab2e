"""What a long prompt does to the others: gaps between the tokens of running streams while one is read.

    python benches/peers/long_prompt.py --model MODEL.gguf [--llama-bin LLAMA/build/bin] [--rounds 5]

In each round each server is started anew, --streams completions run, and after all of them have begun, for --usual seconds
their gaps are the usual ones. Then a prompt of --prompt-tokens is sent, and the gaps that end before its first token does
(those of the streams, not its own) are those beside it. Prints both 99th percentiles and their ratio, the median over
rounds. The prompt is text of this repository, whose length in tokens is what the server says. Needs nothing but Python.
"""

import argparse
import asyncio
import json
import pathlib
import statistics
import time
import urllib.parse

import servers

# More than a stream decodes while it is watched, less than a context.
STREAM_TOKENS = 4000
TEXT = pathlib.Path(__file__).parents[2] / "examples/sotu/held-out.txt"


async def complete(url, prompt, max_tokens):
    """Yields the events of a streamed completion, each with the time when it came."""
    host = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}, "model": "any"}
    body["model"] = await model_of(url)
    body = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"{status.decode().strip()}: {(await reader.read()).decode()[-500:]}")
        # Chunk sizes and empty lines lie between; an event is one line.
        async for line in reader:
            if line.startswith(b"data: {"):
                yield time.perf_counter(), json.loads(line[6:])
    finally:
        writer.close()


async def model_of(url):
    """The name of the only model."""
    import urllib.request

    read = lambda: json.load(urllib.request.urlopen(url + "/v1/models"))
    return (await asyncio.to_thread(read))["data"][0]["id"]


def is_token(event):
    choices = event.get("choices")
    return bool(choices) and (bool(choices[0].get("text")) or choices[0].get("finish_reason") is None)


async def stream(url, prompt, times):
    async for at, event in complete(url, prompt, STREAM_TOKENS):
        if is_token(event):
            times.append(at)


async def read_prompt(url, prompt):
    """When the prompt was sent, when its first token came, and its length in tokens."""
    sent, first, length = time.perf_counter(), None, None
    async for at, event in complete(url, prompt, 1):
        first = first or (at if is_token(event) else None)
        length = (event.get("usage") or {}).get("prompt_tokens", length)
    return sent, first, length


def p99(gaps):
    gaps = sorted(gaps)
    return gaps[min(len(gaps) - 1, -(-99 * len(gaps) // 100) - 1)]


async def measure(url, arguments):
    text = TEXT.read_text()
    start = lambda i: 4000 + 300 * i
    times = [[] for _ in range(arguments.streams)]
    tasks = [asyncio.create_task(stream(url, text[start(i) : start(i) + 300], times[i])) for i in range(arguments.streams)]
    while not all(len(each) > 20 for each in times):
        for task in tasks:
            if task.done():
                task.result()
        await asyncio.sleep(0.05)
    begin = time.perf_counter()
    await asyncio.sleep(arguments.usual)
    sent, first, length = await read_prompt(url, text[: round(arguments.prompt_tokens * arguments.characters)])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    gaps = [(a, b) for each in times for a, b in zip(each, each[1:])]
    usual = [b - a for a, b in gaps if begin <= a and b <= sent]
    beside = [b - a for a, b in gaps if b > sent and a < first]
    return {"prompt_tokens": length, "ttft_s": first - sent, "usual_gaps": len(usual), "usual_p99_ms": 1e3 * p99(usual), "beside_gaps": len(beside),
            "beside_p99_ms": 1e3 * p99(beside), "beside_max_ms": 1e3 * max(beside), "ratio": p99(beside) / p99(usual)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    servers.add_arguments(parser)
    parser.set_defaults(sequences=9, context=8192)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--usual", type=float, default=10, help="seconds")
    parser.add_argument("--prompt-tokens", type=int, default=4096, help="about so many")
    parser.add_argument("--characters", type=float, default=5.355, help="of a token of the text, on average")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    names = servers.names(arguments)
    rounds = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            with servers.running(name, arguments) as url:
                rounds[name].append(asyncio.run(measure(url, arguments)))
    print("| server | prompt tokens | its TTFT, s | usual p99 gap, ms | beside it | longest | beside it / usual |\n|---|---|---|---|---|---|---|")
    for name in names:
        middle = lambda key: statistics.median(each[key] for each in rounds[name])
        print(f"| {name} | {middle('prompt_tokens'):.0f} | {middle('ttft_s'):.2f} | {middle('usual_p99_ms'):.1f} | "
              f"{middle('beside_p99_ms'):.1f} | {middle('beside_max_ms'):.1f} | **{middle('ratio'):.2f}** |")


if __name__ == "__main__":
    main()
