"""Training in PyTorch, beside `scone-train fit --device cuda`: tokens a second of a Llama of a given shape.

    python benches/peers/gpu_training.py --shape 768,2048,17,12 --vocabulary 2048 [--batch 32] [--context 512] [--steps 40]

transformers' Llama with PyTorch's fused attention, bf16 autocast over f32 weights, the fused AdamW, norms clipped, under
torch.compile; random tokens, which cost what others cost. Prints one JSON document. Needs torch and transformers.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shape", required=True, help="width, feed-forward width, layers, heads")
    arguments.add_argument("--vocabulary", type=int, default=2048)
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--context", type=int, default=512)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--eager", action="store_true", help="without torch.compile")
    options = arguments.parse_args()
    d, ffn, layers, heads = map(int, options.shape.split(","))
    device = torch.device(options.device)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=d,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").to(device).train()
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)

    def loss_of(inputs, targets):
        logits = model(inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    run = loss_of if options.eager else torch.compile(loss_of)

    def step():
        start = time.perf_counter()
        tokens = torch.randint(0, options.vocabulary, (options.batch, options.context + 1), device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = run(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return options.batch * options.context / (time.perf_counter() - start)

    rates = [step() for _ in range(options.steps)][options.steps // 4 :]
    parameters = sum(p.numel() for p in model.parameters())
    found = {"peer": "PyTorch", "torch": torch.__version__, "parameters": parameters}
    print(json.dumps({**found, "tokens_per_second": statistics.median(rates)}))


main()
