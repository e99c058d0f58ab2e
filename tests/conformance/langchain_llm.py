"""LangChain's `OpenAI`: one prompt, a batch, a stream, and the same asynchronously."""

import asyncio

import openai
from langchain_openai import OpenAI

from checks import MODEL, URL, check, raises, run_checks

PROMPTS = ["It was a dark and stormy night;", "The captain stood upon the deck", "Once upon a time"]


def model(**parameters):
    settings = {"temperature": 0, "max_tokens": 12, "max_retries": 0} | parameters
    return OpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", **settings)


@check
def invoke_gives_text():
    assert len(model().invoke(PROMPTS[0])) > 0


@check
def a_batch_is_what_its_prompts_are_one_by_one():
    alone = [model().invoke(prompt) for prompt in PROMPTS]
    assert model().batch(PROMPTS) == alone
    assert model(batch_size=2).batch(PROMPTS) == alone


@check
def a_stream_is_what_invoke_gives():
    pieces = list(model().stream(PROMPTS[0]))
    assert "".join(pieces) == model().invoke(PROMPTS[0]) and len(pieces) > 1


@check
def asynchronous_calls_give_the_same():
    async def all_of_them():
        whole = await model().ainvoke(PROMPTS[0])
        pieces = [piece async for piece in model().astream(PROMPTS[0])]
        return whole, "".join(pieces), await model().abatch(PROMPTS)

    whole, joined, batch = asyncio.run(all_of_them())
    assert whole == joined == batch[0]


@check
def samples_usage_and_reasons_come_with_generate():
    result = model(temperature=1.0, n=2, best_of=2, seed=1).generate(PROMPTS)
    assert [len(samples) for samples in result.generations] == [2, 2, 2]
    assert all(sample.generation_info["finish_reason"] in ("stop", "length") for row in result.generations for sample in row)
    assert result.llm_output["token_usage"]["completion_tokens"] <= 6 * 12


@check
def stop_strings_logprobs_and_extra_parameters_are_passed_on():
    text = model().invoke(PROMPTS[0])
    assert model().invoke(PROMPTS[0], stop=[text[4:7]]) == text[:4] or text.index(text[4:7]) < 4
    scored = model(logprobs=2).generate([PROMPTS[0]]).generations[0][0]
    assert len(scored.generation_info["logprobs"]["token_logprobs"]) == 12
    assert model(temperature=2.0, extra_body={"top_k": 1}).invoke(PROMPTS[0]) == text


@check
def errors_are_those_of_the_client():
    raises(openai.BadRequestError, model(temperature=-1).invoke, "a")
    raises(openai.NotFoundError, OpenAI(model="gpt-9", base_url=f"{URL}/v1", api_key="none", max_retries=0).invoke, "a")


run_checks()
