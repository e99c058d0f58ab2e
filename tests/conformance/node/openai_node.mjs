// OpenAI's client for Node: every parameter of `/v1/completions`, whole and streamed, chat, models, and its exceptions.

import assert from "node:assert/strict";
import OpenAI from "openai";

const { SCONE_URL, SCONE_STRICT_URL, SCONE_STRICT_KEY, SCONE_CHAT_URL, SCONE_MODEL: model = "default" } = process.env;
const at = (url, options = {}) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000, ...options });
const client = at(SCONE_URL);
const PROMPT = "It was a dark and stormy night; the rain fell in";
const OTHER = "The captain stood upon the deck";

// The client passes on what it does not know, so vLLM's parameters stand beside OpenAI's.
const complete = (parameters = {}) =>
    client.completions.create({ model, prompt: PROMPT, max_tokens: 8, temperature: 0, ...parameters });

async function collect(stream) {
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    return chunks;
}

/** The answer, which must be the same when it is streamed. */
async function sameStreamed(parameters = {}) {
    const whole = await complete(parameters);
    const chunks = await collect(await complete({ ...parameters, stream: true }));
    const pieces = chunks.flatMap((chunk) => chunk.choices);
    for (const choice of whole.choices) {
        const own = pieces.filter((piece) => piece.index === choice.index);
        assert.equal(own.map((piece) => piece.text).join(""), choice.text);
        assert.deepEqual(own.map((piece) => piece.finish_reason).filter(Boolean), [choice.finish_reason]);
        if (choice.logprobs) {
            for (const list of ["tokens", "token_logprobs", "text_offset"]) {
                assert.deepEqual(own.flatMap((piece) => piece.logprobs?.[list] ?? []), choice.logprobs[list]);
            }
        }
    }
    return whole;
}

/** The exception of this class that the promise ends with. */
async function fails(kind, promise) {
    try {
        await promise;
    } catch (error) {
        assert.ok(error instanceof kind, `${error.constructor.name} instead of ${kind.name}: ${error}`);
        return error;
    }
    assert.fail(`no ${kind.name}`);
}

const checks = {
    async "an answer has all its fields"() {
        const answer = await complete();
        assert.equal(answer.object, "text_completion");
        assert.equal(answer.choices[0].finish_reason, "length");
        assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 8);
        assert.equal(typeof answer.usage.prompt_tokens_details.cached_tokens, "number");
        assert.ok(Math.abs(answer.created - Date.now() / 1000) < 60);
    },
    async "a prompt has four forms"() {
        const ids = async (prompt) =>
            (await complete({ prompt, max_tokens: 1, return_token_ids: true })).choices[0].prompt_token_ids;
        const [first, second] = [await ids(PROMPT), await ids(OTHER)];
        const { text } = (await complete()).choices[0];
        for (const prompt of [PROMPT, [PROMPT], first, [first], [PROMPT, OTHER], [first, second]]) {
            assert.equal((await sameStreamed({ prompt })).choices[0].text, text);
        }
        assert.equal((await complete({ prompt: first })).usage.prompt_tokens, first.length);
    },
    async "every parameter is taken, whole and streamed"() {
        const all = {
            echo: true, logprobs: 3, n: 2, temperature: 0.8, top_p: 0.9, seed: 7, stop: ["\n\n\n"], user: "me",
            presence_penalty: 0.1, frequency_penalty: 0.1, logit_bias: { 5: -1 }, prompt: [PROMPT, OTHER],
            top_k: 40, min_p: 0.01, repetition_penalty: 1.05, min_tokens: 2, stop_token_ids: [7], ignore_eos: true,
            include_stop_str_in_output: true, skip_special_tokens: true, truncate_prompt_tokens: 100, return_token_ids: true,
        };
        const whole = await sameStreamed(all);
        assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1, 2, 3]);
        for (const [name, value] of Object.entries(all)) await complete({ [name]: value });
        await complete({ stop: null, suffix: null, best_of: 1 });
    },
    async "usage comes last and, if asked for, with each chunk"() {
        const options = (stream_options) => complete({ stream: true, stream_options }).then(collect);
        const last = await options({ include_usage: true });
        assert.deepEqual(last.at(-1).choices, []);
        assert.equal(last.at(-1).usage.completion_tokens, 8);
        assert.ok(last.slice(0, -1).every((chunk) => !chunk.usage));
        const each = await options({ include_usage: true, continuous_usage_stats: true });
        assert.ok(each.every((chunk) => chunk.usage.prompt_tokens > 0));
    },
    async "an echoed prompt is scored"() {
        const [choice] = (await sameStreamed({ echo: true, logprobs: 1, max_tokens: 0 })).choices;
        assert.equal(choice.text, PROMPT);
        assert.equal(choice.logprobs.token_logprobs[0], null);
        assert.ok(choice.logprobs.token_logprobs.slice(1).every((value) => value < 0));
    },
    async "a stream that is left early leaves the server well"() {
        for await (const chunk of await complete({ max_tokens: 200, ignore_eos: true, stream: true })) {
            assert.ok(chunk.id);
            break;
        }
        await complete({ max_tokens: 1 });
    },
    async "models are listed and found"() {
        assert.deepEqual((await collect(await client.models.list())).map((entry) => entry.id), [model]);
        assert.equal((await client.models.retrieve(model)).id, model);
    },
    async "errors are of their classes and name the field"() {
        for (const [field, value] of Object.entries({ temperature: -1, n: 0, logprobs: 99, max_tokens: -5, suffix: "end" })) {
            const error = await fails(OpenAI.BadRequestError, complete({ [field]: value }));
            assert.equal(error.param, field);
            assert.equal(error.type, "invalid_request_error");
        }
        assert.equal((await fails(OpenAI.NotFoundError, complete({ model: "gpt-9" }))).code, "model_not_found");
        assert.equal((await fails(OpenAI.NotFoundError, complete({ model: "gpt-9", stream: true }))).param, "model");
        await fails(OpenAI.NotFoundError, client.models.retrieve("gpt-9"));
        const hasty = at(SCONE_URL, { timeout: 30 });
        const long = { model, prompt: Array(64).fill("a"), n: 2, max_tokens: 240, ignore_eos: true };
        await fails(OpenAI.APIConnectionTimeoutError, hasty.completions.create(long));
        await fails(OpenAI.APIConnectionError, at("http://127.0.0.1:9").models.list());
    },
    async "a wrong key is an authentication error"() {
        const ask = (apiKey) => at(SCONE_STRICT_URL, { apiKey }).completions.create({ model, prompt: "a", max_tokens: 1 });
        assert.equal((await fails(OpenAI.AuthenticationError, ask("wrong"))).status, 401);
        assert.ok((await ask(SCONE_STRICT_KEY)).choices.length);
    },
    async "a full server is a rate limit error and waiting helps"() {
        const friend = at(SCONE_STRICT_URL, { apiKey: SCONE_STRICT_KEY });
        const long = { model, prompt: Array(64).fill("a"), max_tokens: 100, ignore_eos: true };
        const results = await Promise.allSettled(Array.from({ length: 12 }, () => friend.completions.create(long)));
        const refused = results.filter((result) => result.status === "rejected").map((result) => result.reason);
        assert.ok(refused.length > 0 && refused.length < results.length, `${refused.length} of ${results.length} refused`);
        for (const error of refused) {
            assert.ok(error instanceof OpenAI.RateLimitError, `${error}`);
            assert.ok(Number(error.headers.get("retry-after")) >= 1);
        }
        const patient = friend.completions.create({ model, prompt: "a", max_tokens: 1 }, { maxRetries: 10 });
        assert.ok((await patient).choices.length);
    },
    async "chat without a template is refused, with one it answers"() {
        const messages = [{ role: "user", content: "Who goes there?" }];
        const request = { model, messages, max_tokens: 10, temperature: 0 };
        assert.match((await fails(OpenAI.BadRequestError, client.chat.completions.create(request))).message, /template/);
        const chat = at(SCONE_CHAT_URL).chat.completions;
        const whole = await chat.create(request);
        const chunks = await collect(await chat.create({ ...request, stream: true }));
        const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
        assert.equal(text, whole.choices[0].message.content);
        assert.equal(chunks[0].choices[0].delta.role, "assistant");
    },
};

let [passed, failed] = [0, 0];
for (const [name, check] of Object.entries(checks)) {
    const start = performance.now();
    try {
        await check();
        passed += 1;
        console.log(`ok   ${name} (${((performance.now() - start) / 1000).toFixed(2)} s)`);
    } catch (error) {
        failed += 1;
        console.log(`FAIL ${name}\n${error.stack}`);
    }
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed > 0 ? 1 : 0);
