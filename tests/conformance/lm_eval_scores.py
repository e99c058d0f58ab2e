"""lm-eval's `local-completions` against the offline scorer: the same log-likelihoods to 1e-4 a token, the same accuracy and the
same rolling perplexity, whatever the batch, the number of requests at a time, and who tokenizes."""

import json
import os
import subprocess
import tempfile

# Nothing here comes from a hub.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
from lm_eval.tasks import TaskManager

from checks import MODEL, MODEL_DIRECTORY, URL, check, run_checks

SCONE = os.environ.get("SCONE_BINARY", "scone")
CHOICE, ROLLING = "scone_choice", "scone_rolling"
# Of this lm-eval keeps one token for a generated one, and its windows predict one less than what is left.
MAX_LENGTH, WINDOW = 256, 254
# Nats a token that two ways of scoring may differ by.
TOLERANCE = 1e-4


def evaluate(*, batch, concurrent, tokenizer="huggingface", as_tokens=True):
    """lm-eval's results for both tasks."""
    arguments = {
        "model": MODEL,
        "base_url": f"{URL}/v1/completions",
        "tokenizer_backend": tokenizer,
        "tokenized_requests": as_tokens,
        "num_concurrent": concurrent,
        "max_length": MAX_LENGTH,
        "max_retries": 1,
    }
    if tokenizer == "huggingface":
        arguments["tokenizer"] = MODEL_DIRECTORY
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=[CHOICE, ROLLING],
        task_manager=TaskManager(include_path="task", include_defaults=False),
        batch_size=batch,
        bootstrap_iters=0,
    )


def offline(*arguments):
    """What the scorer that needs no server prints."""
    command = [SCONE, "eval", MODEL_DIRECTORY, "--context", str(WINDOW), *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def offline_pairs(pairs):
    """The offline scores of pairs of context and continuation."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for context, continuation in pairs:
            file.write(json.dumps({"context": context, "continuation": continuation}) + "\n")
        file.flush()
        return dict(zip(pairs, offline("--pairs", file.name), strict=True))


def same(results):
    """Holds lm-eval's results against the offline scorer's; the largest difference in nats a token."""
    samples = results["samples"][CHOICE]
    told = {tuple(pair): answer for sample in samples for pair, (answer,) in zip(sample["arguments"], sample["resps"], strict=True)}
    own = offline_pairs(list(told))
    assert len(told) == 160, len(told)
    worst, right = 0.0, 0
    for pair, (likelihood, is_greedy) in told.items():
        difference = abs(likelihood - own[pair]["loglikelihood"]) / own[pair]["tokens"]
        assert difference < TOLERANCE, (pair, likelihood, own[pair])
        assert bool(is_greedy) == own[pair]["is_greedy"], (pair, own[pair])
        worst = max(worst, difference)
    for sample in samples:
        scores = [own[tuple(pair)]["loglikelihood"] for pair in sample["arguments"]]
        right += scores.index(max(scores)) == sample["doc"]["answer"]
    accuracy = results["results"][CHOICE]["acc,none"]
    assert accuracy == right / len(samples), (accuracy, right)

    (rolling,) = offline("--rolling", "--json", "--text", "task/rolling.jsonl")
    answers = [sample["resps"][0][0] for sample in results["samples"][ROLLING]]
    differences = [abs(a - b) for a, b in zip(answers, rolling["loglikelihoods"], strict=True)]
    assert sum(differences) / rolling["tokens"] < TOLERANCE, (answers, rolling)
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        told = results["results"][ROLLING][f"{name},none"]
        assert abs(told / rolling[name] - 1) < 1e-3, (name, told, rolling[name])
    print(
        f"accuracy {accuracy:.4f}; byte perplexity {rolling['byte_perplexity']:.6f}; nats a token apart at most "
        f"{worst:.1e} (choices), {max(differences) / rolling['tokens']:.1e} (rolling)"
    )


@check
def scores_are_the_offline_ones_one_request_at_a_time():
    same(evaluate(batch=1, concurrent=1))


@check
def scores_are_the_offline_ones_in_batches_of_eight():
    same(evaluate(batch=8, concurrent=1))


@check
def scores_are_the_offline_ones_eight_requests_at_a_time():
    same(evaluate(batch=1, concurrent=8))


@check
def scores_are_the_offline_ones_eight_batches_of_eight_at_a_time():
    same(evaluate(batch=8, concurrent=8))


@check
def scores_are_the_offline_ones_where_the_server_tokenizes():
    same(evaluate(batch=8, concurrent=8, tokenizer="remote"))


@check
def scores_are_the_offline_ones_where_text_is_sent():
    same(evaluate(batch=1, concurrent=8, as_tokens=False))


run_checks()
