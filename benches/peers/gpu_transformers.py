"""Decoding by Hugging Face's transformers, compiled, beside `cargo bench --features cuda --bench gpu`.

    gpu --shapes 1B --write-model MODEL_DIR
    python benches/peers/gpu_transformers.py MODEL_DIR [--device cuda] [--batches 1,4,32,128] [--past 128] [--steps 64] [--json FILE]

The model is loaded in bf16 and decodes greedily with a static cache, its forward pass under torch.compile (mode
"reduce-overhead", which records CUDA graphs). As in our benchmark a step begins with the tokens on the device and ends
when the likeliest next token of each sequence is on the host. Prints a table in Markdown. Needs torch and transformers.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, StaticCache


def decode(model, step, cache, batch, past, steps, device):
    """Seconds of each step."""
    vocabulary, length = model.config.vocab_size, past + steps + 8
    tokens = torch.randint(1, vocabulary, (batch, length), device=device)
    places = torch.arange(length, device=device).split(1)
    cache.reset()
    # cache_position: newer versions count by themselves and let it pass.
    first = torch.arange(past, device=device)
    model(tokens[:, :past], past_key_values=cache, cache_position=first, use_cache=True, logits_to_keep=1)
    times = []
    for at in range(past, length):
        start = time.perf_counter()
        chosen = step(tokens[:, at : at + 1], cache, places[at])
        chosen.cpu()
        times.append(time.perf_counter() - start)
    return times[8:]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--batches", default="1,4,32,128")
    arguments.add_argument("--past", type=int, default=128)
    arguments.add_argument("--steps", type=int, default=64)
    arguments.add_argument("--eager", action="store_true", help="without torch.compile")
    arguments.add_argument("--json", type=pathlib.Path)
    options = arguments.parse_args()
    device = torch.device(options.device)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).to(device).eval()

    def step(tokens, cache, position):
        out = model(tokens, past_key_values=cache, cache_position=position, use_cache=True)
        return out.logits[:, -1].argmax(-1)

    found = []
    print("| batch | ms a step | tokens/s |\n|---|---|---|")
    with torch.inference_mode():
        for batch in map(int, options.batches.split(",")):
            cache = StaticCache(config=model.config, max_cache_len=options.past + options.steps + 8)
            run = step
            if not options.eager:
                # Anew for each batch, so that none gets kernels that were made for any.
                torch._dynamo.reset()
                run = torch.compile(step, mode="reduce-overhead", dynamic=False)
            # Twice: the first time it is compiled.
            for _ in range(2):
                times = decode(model, run, cache, batch, options.past, options.steps, device)
            median = statistics.median(times)
            print(f"| {batch} | {1e3 * median:.3f} | {batch / median:.0f} |", flush=True)
            found.append({"batch": batch, "past": options.past, "seconds": median})
    if options.json:
        versions = {"torch": torch.__version__}
        options.json.write_text(json.dumps({"peer": "transformers", **versions, "steps": found}, indent=1) + "\n")


main()
