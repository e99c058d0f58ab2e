//! A real model with a table, run by the engine: whatever the schedule, each request gets the very bits that it gets alone,
//! token for token and log-probability for log-probability.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tiny.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
mod tiny;

use proptest::prelude::*;
use scone::engine::{Config, Engine, Event, Request, Sampling};
use scone::kernels::{BLOCK, Encoding, KvType};
use scone::model::ModelDirectory;
use scone::table::RowType;
use tokio::sync::mpsc::UnboundedReceiver;

/// An engine over the model, with so many blocks of keys and values.
fn engine(
    directory: &ModelDirectory,
    as_held: (Option<Encoding>, KvType),
    blocks: usize,
    config: Config,
) -> Engine {
    let mut runtime = tiny::runtime(blocks * BLOCK);
    (runtime.dtype, runtime.kv_type) = as_held;
    Engine::start(Box::new(directory.load(None, &runtime).unwrap()), config).unwrap()
}

/// What was generated and scored.
fn collect(mut receiver: UnboundedReceiver<Event>) -> Vec<Event> {
    let events = std::iter::from_fn(|| receiver.blocking_recv());
    events.filter(|event| !matches!(event, Event::Started { .. })).collect()
}

/// How many blocks the whole context of a sequence takes.
const WHOLE: usize = 64 / BLOCK;

fn any_request(text: Vec<u32>) -> impl Strategy<Value = Request> {
    // Many prompts begin alike, and some text comes again and again: prefixes are shared, and drafts are accepted.
    let start = prop::sample::select(vec![0usize, 0, 0, 40, 200]);
    (start, 1usize..40, 0usize..24, prop::bool::ANY, any::<u64>(), prop::bool::weighted(0.2)).prop_map(
        move |(start, len, max_tokens, is_greedy, seed, is_scored)| Request {
            prompt: text[start..start + len].to_vec(),
            max_tokens,
            min_tokens: 0,
            sampling: Sampling {
                temperature: if is_greedy { 0.0 } else { 0.8 },
                seed: Some(seed),
                ..Sampling::GREEDY
            },
            stop_tokens: vec![],
            logprobs: Some(3),
            prompt_logprobs: is_scored.then_some(2),
        },
    )
}

#[test]
fn every_schedule_gives_each_request_the_bits_it_gets_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = tiny::write(temporary.path(), 5, RowType::Int8);
    let text = directory.tokenizer().encode(&tiny::text()).unwrap();
    let encodings = [None, Some(Encoding::Bf16), Some(Encoding::Q8_0), Some(Encoding::Q4_1)];
    let as_held =
        (prop::sample::select(encodings.to_vec()), prop::sample::select(vec![KvType::F32, KvType::F16]));
    let schedule = (1usize..6, 1usize..40, prop::option::of(1usize..9), 0usize..5, WHOLE..3 * WHOLE);
    let requests = prop::collection::vec(any_request(text), 1..10);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(40));
    runner
        .run(&(as_held, schedule, requests), |(as_held, schedule, requests)| {
            let (max_sequences, max_batch_tokens, prefill_chunk, speculate, blocks) = schedule;
            let plain = Config { max_sequences: 1, prefix_cache: false, ..Config::default() };
            let alone = engine(&directory, as_held, WHOLE, plain);
            let config = Config {
                max_sequences,
                max_batch_tokens,
                prefill_chunk,
                speculate,
                prefix_cache: true,
                ..Config::default()
            };
            let together = engine(&directory, as_held, blocks, config);
            let receivers: Vec<_> = requests
                .iter()
                .map(|request| together.handle().submit(vec![request.clone()]).unwrap().remove(0))
                .collect();
            for (request, receiver) in requests.into_iter().zip(receivers) {
                let expected = collect(alone.handle().submit(vec![request]).unwrap().remove(0));
                prop_assert!(matches!(expected.last(), Some(Event::Done(_))), "{expected:?}");
                prop_assert_eq!(collect(receiver), expected);
            }
            Ok(())
        })
        .unwrap();
}

/// Otherwise the test above might pass without what it is about.
#[test]
fn schedules_do_share_preempt_and_speculate() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = tiny::write(temporary.path(), 5, RowType::Int8);
    let text = directory.tokenizer().encode(&tiny::text()).unwrap();
    let config = Config { max_sequences: 4, speculate: 4, ..Config::default() };
    let engine = engine(&directory, (None, KvType::F16), WHOLE + 2, config);
    let request = |seed| Request {
        prompt: text[..20].to_vec(),
        max_tokens: 40,
        min_tokens: 0,
        sampling: Sampling { temperature: 0.2, seed: Some(seed), ..Sampling::GREEDY },
        stop_tokens: vec![],
        logprobs: None,
        prompt_logprobs: None,
    };
    for receiver in engine.handle().submit((0..6).map(request).collect()).unwrap() {
        assert!(matches!(collect(receiver).last(), Some(Event::Done(_))));
    }
    let counters = engine.handle().counters();
    assert!(counters.preemptions > 0 && counters.cached_tokens > 0 && counters.drafted > 0, "{counters}");
}
