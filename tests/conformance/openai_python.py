"""OpenAI's client for Python: every parameter of `/v1/completions`, whole and streamed, chat, models, and its exceptions."""

import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
from openai import OpenAI

from checks import CHAT_URL, MODEL, STRICT_KEY, STRICT_URL, URL, check, raises, run_checks

client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
PROMPT = "It was a dark and stormy night; the rain fell in"
OTHER = "The captain stood upon the deck"


def complete(prompt=PROMPT, *, extra=None, **parameters):
    parameters = {"max_tokens": 8, "temperature": 0} | parameters
    return client.completions.create(model=MODEL, prompt=prompt, extra_body=extra, **parameters)


def streamed(prompt=PROMPT, **parameters):
    """A streamed answer put together: its choices' texts, reasons and log-probabilities by index, and all the chunks."""
    chunks = list(complete(prompt, stream=True, **parameters))
    choices = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        whole = choices.setdefault(choice.index, {"text": "", "reasons": [], "tokens": [], "token_logprobs": [], "offsets": []})
        assert not whole["reasons"], "nothing comes after the finish reason"
        whole["text"] += choice.text
        if choice.finish_reason is not None:
            whole["reasons"].append(choice.finish_reason)
        if choice.logprobs is not None:
            whole["tokens"] += choice.logprobs.tokens
            whole["token_logprobs"] += choice.logprobs.token_logprobs
            whole["offsets"] += choice.logprobs.text_offset
    return choices, chunks


def tokens_of(prompt):
    """A prompt's tokens, as the answer itself gives them."""
    answer = complete(prompt, max_tokens=1, extra={"return_token_ids": True})
    return answer.choices[0].prompt_token_ids


def same_streamed(prompt=PROMPT, **parameters):
    """The answer, which must be the same when it is streamed."""
    whole = complete(prompt, **parameters)
    choices, chunks = streamed(prompt, **parameters)
    assert sorted(choices) == [choice.index for choice in whole.choices] == list(range(len(whole.choices)))
    for choice in whole.choices:
        joined = choices[choice.index]
        assert joined["text"] == choice.text, (joined["text"], choice.text)
        assert joined["reasons"] == [choice.finish_reason]
        if choice.logprobs is not None:
            assert joined["tokens"] == choice.logprobs.tokens
            assert joined["token_logprobs"] == choice.logprobs.token_logprobs
            assert joined["offsets"] == choice.logprobs.text_offset
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id != whole.id
    return whole


@check
def an_answer_has_all_its_fields():
    before = int(time.time())
    answer = complete()
    assert answer.object == "text_completion" and answer.model == MODEL
    assert before <= answer.created <= time.time() + 1
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.usage.prompt_tokens_details.cached_tokens <= answer.usage.prompt_tokens
    assert answer.id != complete().id


@check
def what_was_computed_before_is_counted_as_cached():
    prompt = "Once more unto the breach, dear friends, once more; or close the wall up with our English dead! " * 2
    first, second = complete(prompt), complete(prompt)
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    assert first.choices[0].text == second.choices[0].text


@check
def a_prompt_has_four_forms():
    ids, other = tokens_of(PROMPT), tokens_of(OTHER)
    text = same_streamed(PROMPT).choices[0].text
    assert same_streamed(ids).choices[0].text == text
    assert complete([PROMPT]).choices[0].text == text
    for both in ([PROMPT, OTHER], [ids, other]):
        choices = same_streamed(both).choices
        assert [choice.index for choice in choices] == [0, 1] and choices[0].text == text
    assert complete(ids).usage.prompt_tokens == len(ids), "no BOS is added to tokens"
    assert complete(PROMPT).usage.prompt_tokens == len(ids)


@check
def streamed_and_whole_are_the_same():
    for parameters in (
        {},
        {"n": 3, "temperature": 0.9, "seed": 5},
        {"echo": True},
        {"echo": True, "logprobs": 2},
        {"logprobs": 5, "n": 2, "temperature": 1.0, "seed": 1},
        {"stop": [",", "."], "max_tokens": 40},
        {"stop": None, "logprobs": 0},
        {"temperature": 0.7, "top_p": 0.9, "seed": 11, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"max_tokens": 30, "extra": {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.2, "ignore_eos": True}},
    ):
        same_streamed([PROMPT, OTHER], **parameters)


@check
def usage_comes_in_a_last_chunk_without_choices():
    _, chunks = streamed(stream_options={"include_usage": True})
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    assert all(chunk.usage is None for chunk in chunks[:-1])
    _, chunks = streamed()
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


@check
def usage_can_come_with_each_chunk():
    _, chunks = streamed(stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 8 and chunks[-1].choices == []


@check
def logprobs_are_of_the_alternatives_and_of_what_was_chosen():
    for count in (0, 1, 5, 20):
        logprobs = same_streamed(logprobs=count).choices[0].logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 8
        assert all(value <= 0 for value in logprobs.token_logprobs)
        for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs or []):
            assert count <= len(top) <= count + 1 and abs(top[token] - value) < 1e-6
    text = complete(logprobs=1).choices[0]
    assert "".join(text.logprobs.tokens) == text.text


@check
def an_echoed_prompt_is_scored_and_its_first_token_is_not():
    ids = tokens_of(PROMPT)
    answer = complete(ids, echo=True, logprobs=2, max_tokens=0)
    choice = answer.choices[0]
    assert choice.text == PROMPT and choice.finish_reason == "length" and answer.usage.completion_tokens == 0
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    assert len(choice.logprobs.tokens) == len(ids)
    assert all(math.isfinite(value) for value in choice.logprobs.token_logprobs[1:])
    assert [choice.text[offset:] for offset in choice.logprobs.text_offset][0] == PROMPT
    assert "".join(choice.logprobs.tokens) == PROMPT
    longer = same_streamed(PROMPT, echo=True, logprobs=2).choices[0]
    assert longer.text.startswith(PROMPT) and len(longer.logprobs.tokens) == len(ids) + 8
    assert longer.logprobs.text_offset == sorted(longer.logprobs.text_offset)


@check
def n_and_best_of():
    choices = same_streamed(n=4, temperature=1.0, seed=3).choices
    assert len({choice.text for choice in choices}) > 1
    answer = complete(best_of=4, n=2, temperature=1.0, seed=3, logprobs=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    # The best of four are not worse than any of the four.
    four = complete(n=4, temperature=1.0, seed=3, logprobs=0)
    mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
    assert abs(max(map(mean, four.choices)) - max(map(mean, answer.choices))) < 1e-4
    assert raises(openai.BadRequestError, complete, best_of=1, n=2).param == "best_of"
    assert [choice.index for choice in complete([PROMPT, OTHER], n=2).choices] == [0, 1, 2, 3]


@check
def a_seed_repeats_itself_and_another_does_not():
    draw = lambda seed: complete(temperature=1.0, seed=seed, max_tokens=20).choices[0].text
    assert draw(1) == draw(1) != draw(2)


@check
def sampling_parameters_narrow_the_choice():
    greedy = complete().choices[0].text
    for narrow in ({"top_p": 1e-6}, {"extra": {"top_k": 1}}, {"extra": {"min_p": 1.0}}):
        assert complete(temperature=1.5, seed=9, **narrow).choices[0].text == greedy, narrow


@check
def penalties_and_biases_change_what_is_chosen():
    plain = complete(max_tokens=60, extra={"ignore_eos": True}).choices[0].text
    for parameters in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"extra": {"repetition_penalty": 1.5}}):
        parameters.setdefault("extra", {})["ignore_eos"] = True
        assert complete(max_tokens=60, **parameters).choices[0].text != plain, parameters
    answer = complete(max_tokens=1, extra={"return_token_ids": True})
    first = answer.choices[0].token_ids[0]
    banned = complete(max_tokens=1, logit_bias={str(first): -100}, extra={"return_token_ids": True})
    assert banned.choices[0].token_ids[0] != first
    forced = complete(max_tokens=3, logit_bias={str(first): 100}, extra={"return_token_ids": True})
    assert forced.choices[0].token_ids == [first] * 3


@check
def stop_takes_a_string_a_list_or_null():
    text = complete(max_tokens=30).choices[0].text
    stop = text.strip()[5:8]
    before = text[: text.index(stop)]
    for form in (stop, [stop], ["never ever", stop]):
        choice = same_streamed(max_tokens=30, stop=form).choices[0]
        assert (choice.text, choice.finish_reason) == (before, "stop")
    assert complete(max_tokens=30, stop=None).choices[0].text == text
    kept = complete(max_tokens=30, stop=stop, extra={"include_stop_str_in_output": True}).choices[0]
    assert kept.text == before + stop and kept.finish_reason == "stop"


@check
def stop_tokens_end_an_answer_and_min_tokens_holds_them_off():
    ids = complete(max_tokens=8, extra={"return_token_ids": True, "ignore_eos": True}).choices[0].token_ids
    assert len(ids) == 8
    stopped = complete(max_tokens=8, extra={"stop_token_ids": [ids[3]], "return_token_ids": True})
    assert stopped.choices[0].finish_reason == "stop" and stopped.usage.completion_tokens == ids.index(ids[3]) + 1
    held = complete(max_tokens=8, extra={"stop_token_ids": [ids[3]], "min_tokens": 8})
    assert held.usage.completion_tokens == 8


@check
def truncated_prompts_keep_their_end():
    ids = tokens_of(PROMPT)
    cut = complete(PROMPT, extra={"truncate_prompt_tokens": 5, "return_token_ids": True})
    assert cut.usage.prompt_tokens == 5 and cut.choices[0].prompt_token_ids == ids[-5:]
    assert cut.choices[0].text == complete(ids[-5:]).choices[0].text


@check
def token_ids_are_returned_when_streamed_too():
    whole = complete(extra={"return_token_ids": True}).choices[0]
    _, chunks = streamed(extra={"return_token_ids": True})
    joined = [id for chunk in chunks for choice in chunk.choices for id in choice.token_ids or []]
    assert joined == whole.token_ids and len(joined) == 8
    assert chunks[0].choices[0].prompt_token_ids == whole.prompt_token_ids


@check
def special_tokens_are_shown_if_asked_for():
    ids = tokens_of(PROMPT)
    hidden = complete(ids, logit_bias={"0": 100}, extra={"ignore_eos": True}, max_tokens=2).choices[0]
    shown = complete(
        ids, logit_bias={"0": 100}, extra={"ignore_eos": True, "skip_special_tokens": False}, max_tokens=2
    ).choices[0]
    assert hidden.text == "" and shown.text == "<|endoftext|>" * 2, (hidden.text, shown.text)
    ended = complete(ids, logit_bias={"0": 100}, logprobs=1)
    assert ended.choices[0].finish_reason == "stop" and ended.usage.completion_tokens == 1
    assert len(ended.choices[0].logprobs.token_logprobs) == 1, "an end of text has its entry"


@check
def unknown_parameters_and_user_are_taken():
    assert complete(user="me", extra={"no_such_thing": {"a": 1}}).choices[0].text == complete().choices[0].text


@check
def a_request_keeps_its_id():
    answer = client.completions.with_raw_response.create(
        model=MODEL, prompt=PROMPT, max_tokens=1, extra_headers={"x-request-id": "conformance-1"}
    )
    assert answer.headers["x-request-id"] == "conformance-1"
    assert complete(max_tokens=1)._request_id


@check
def models_are_listed_and_found():
    assert [model.id for model in client.models.list()] == [MODEL]
    model = client.models.retrieve(MODEL)
    assert model.object == "model" and model.id == MODEL
    assert raises(openai.NotFoundError, client.models.retrieve, "gpt-9").code == "model_not_found"


@check
def errors_are_of_their_classes_and_name_the_field():
    for field, value in (("temperature", -1), ("n", 0), ("logprobs", 99), ("max_tokens", -5), ("suffix", "end"), ("stop", [3])):
        error = raises(openai.BadRequestError, complete, **{field: value})
        assert error.status_code == 400 and error.param == field and error.type == "invalid_request_error", error
    error = raises(openai.BadRequestError, complete, stream_options={"include_usage": True})
    assert error.param == "stream_options"
    error = raises(openai.BadRequestError, complete, "word " * 3000)
    assert error.code == "context_length_exceeded"
    for stream in (False, True):
        error = raises(openai.NotFoundError, client.completions.create, model="gpt-9", prompt="a", stream=stream)
        assert error.code == "model_not_found" and error.param == "model"


@check
def a_missing_or_wrong_key_is_an_authentication_error():
    for key in ("wrong", STRICT_KEY + "x", STRICT_KEY[:-1]):
        stranger = OpenAI(base_url=f"{STRICT_URL}/v1", api_key=key, max_retries=0)
        error = raises(openai.AuthenticationError, stranger.completions.create, model=MODEL, prompt="a")
        assert error.status_code == 401 and STRICT_KEY not in str(error)
        raises(openai.AuthenticationError, stranger.models.list)
    friend = OpenAI(base_url=f"{STRICT_URL}/v1", api_key=STRICT_KEY, max_retries=0)
    assert friend.completions.create(model=MODEL, prompt="a", max_tokens=1).choices


@check
def a_full_server_is_a_rate_limit_error_and_waiting_helps():
    friend = OpenAI(base_url=f"{STRICT_URL}/v1", api_key=STRICT_KEY, max_retries=0)

    def ask(_):
        try:
            long = {"prompt": ["a"] * 64, "max_tokens": 100, "extra_body": {"ignore_eos": True}}
            return friend.completions.create(model=MODEL, **long)
        except openai.RateLimitError as error:
            return error

    with ThreadPoolExecutor(12) as threads:
        answers = threads.map(ask, range(12))
        # One that may try again gets through, behind all of these.
        patient = friend.with_options(max_retries=20)
        assert patient.completions.create(model=MODEL, prompt="c", max_tokens=1).choices
        refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert 0 < len(refused) < 12, f"{len(refused)} of 12 were turned away"
    for error in refused:
        assert error.status_code == 429 and error.type == "rate_limit_error"
        assert int(error.response.headers["retry-after"]) >= 1


@check
def a_time_out_and_a_closed_port_are_errors_of_the_connection():
    hasty = client.with_options(timeout=0.05)
    parameters = {"model": MODEL, "prompt": ["a"] * 64, "n": 2, "max_tokens": 240, "extra_body": {"ignore_eos": True}}
    raises(openai.APITimeoutError, hasty.completions.create, **parameters)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = OpenAI(base_url=f"http://127.0.0.1:{free.getsockname()[1]}/v1", api_key="none", max_retries=0)
        raises(openai.APIConnectionError, nobody.models.list)


@check
def a_stream_that_is_left_early_leaves_the_server_well():
    for _ in range(20):
        stream = complete(max_tokens=200, stream=True, extra={"ignore_eos": True})
        next(iter(stream))
        stream.close()
    assert complete(max_tokens=1).choices


MESSAGES = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Who goes there?"}]


@check
def chat_without_a_template_is_refused_and_says_why():
    error = raises(openai.BadRequestError, client.chat.completions.create, model=MODEL, messages=MESSAGES)
    assert "template" in error.message


@check
def chat_with_a_template_answers_whole_and_streamed():
    chat = OpenAI(base_url=f"{CHAT_URL}/v1", api_key="none", max_retries=0).chat.completions
    for limit in ("max_tokens", "max_completion_tokens"):
        common = {"model": MODEL, "messages": MESSAGES, "temperature": 0, limit: 12}
        whole = chat.create(**common)
        assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant"
        assert whole.usage.completion_tokens <= 12
        chunks = list(chat.create(**common, stream=True, stream_options={"include_usage": True}))
        assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == []
        joined = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert joined == whole.choices[0].message.content
        reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        assert reasons == [whole.choices[0].finish_reason]


@check
def chat_has_samples_and_log_probabilities():
    chat = OpenAI(base_url=f"{CHAT_URL}/v1", api_key="none", max_retries=0).chat.completions
    answer = chat.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, n=2, logprobs=True, top_logprobs=3, seed=1, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert len(choice.logprobs.content) == 5
        for entry in choice.logprobs.content:
            assert entry.logprob <= 0 and len(entry.top_logprobs) >= 3
            assert entry.bytes is None or bytes(entry.bytes).decode("utf-8", "replace") is not None
    error = raises(openai.BadRequestError, chat.create, model=MODEL, messages=[{"role": "user"}, 3])
    assert error.param == "messages", error


run_checks()
