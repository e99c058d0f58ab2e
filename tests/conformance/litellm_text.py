"""LiteLLM's text completion: whole, streamed, asynchronous, and its exceptions."""

import asyncio
import os

# Its list of prices would be fetched from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from checks import MODEL, URL, check, raises, run_checks

PROMPT = "It was a dark and stormy night;"


def arguments(**parameters):
    # `text-completion-openai` is what it calls servers with OpenAI's older endpoint.
    common = {"model": f"text-completion-openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "prompt": PROMPT}
    return common | {"max_tokens": 12, "temperature": 0, "max_retries": 0} | parameters


def text(**parameters):
    return litellm.text_completion(**arguments(**parameters)).choices[0].text


@check
def an_answer_has_text_reason_and_usage():
    answer = litellm.text_completion(**arguments())
    assert answer.object == "text_completion" and answer.choices[0].text
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 12


@check
def a_stream_is_the_same_text():
    chunks = litellm.text_completion(**arguments(stream=True))
    assert "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices) == text()


@check
def asynchronous_calls_give_the_same():
    async def both():
        whole = await litellm.atext_completion(**arguments())
        chunks = await litellm.atext_completion(**arguments(stream=True))
        return whole.choices[0].text, "".join([chunk.choices[0].text or "" async for chunk in chunks if chunk.choices])

    whole, joined = asyncio.run(both())
    assert whole == joined == text()


@check
def several_prompts_and_samples():
    answer = litellm.text_completion(**arguments(prompt=[PROMPT, "Once upon a time"]))
    assert [choice.index for choice in answer.choices] == [0, 1]
    answer = litellm.text_completion(**arguments(n=3, temperature=1.0))
    assert len(answer.choices) == 3


@check
def parameters_are_passed_on():
    assert text(temperature=1.5, top_p=1e-6) == text()
    assert text(stop=[text()[3:6]]) != text()
    answer = litellm.text_completion(**arguments(logprobs=2))
    assert len(answer.choices[0].logprobs.token_logprobs) == 12
    assert text(presence_penalty=0.5, frequency_penalty=0.5, logit_bias={"5": -100}, user="me", seed=1)


@check
def errors_are_of_its_classes():
    raises(litellm.BadRequestError, text, temperature=-1)
    raises(litellm.NotFoundError, text, model="text-completion-openai/gpt-9")


run_checks()
