//! The engine by itself: what a request gets does not depend on what runs beside it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{BLOCK, CONTEXT, FAIL, HashModel, NAN, PANIC, VOCAB, greedy, log_softmax, logits};
use proptest::prelude::*;
use scone::engine::{
    Config, Counters, Engine, EngineError, EngineHandle, Event, Finish, Penalties, Request, Sampler,
    Sampling, score,
};
use tokio::sync::mpsc::UnboundedReceiver;

fn engine(max_sequences: usize, max_batch_tokens: usize) -> Engine {
    let config = Config { max_sequences, max_batch_tokens, ..Config::default() };
    Engine::start(Box::new(HashModel::new(max_sequences)), config).unwrap()
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        prompt,
        max_tokens,
        min_tokens: 0,
        sampling: Sampling::GREEDY,
        stop_tokens: vec![0],
        logprobs: None,
        prompt_logprobs: None,
    }
}

/// All events but the first, which says that the request's turn has come, and how many tokens it found cached.
fn collect_started(mut receiver: UnboundedReceiver<Event>) -> (Option<usize>, Vec<Event>) {
    let mut events: Vec<Event> = std::iter::from_fn(|| receiver.blocking_recv()).collect();
    let Some(Event::Started { cached_tokens }) = events.first().cloned() else { return (None, events) };
    events.remove(0);
    assert!(!events.iter().any(|event| matches!(event, Event::Started { .. })));
    (Some(cached_tokens), events)
}

fn collect(receiver: UnboundedReceiver<Event>) -> Vec<Event> {
    collect_started(receiver).1
}

fn submit(engine: &Engine, request: Request) -> UnboundedReceiver<Event> {
    engine.handle().submit(vec![request]).unwrap().remove(0)
}

fn run(engine: &Engine, request: Request) -> Vec<Event> {
    collect(submit(engine, request))
}

/// How many tokens of its prompt a request finds cached.
fn cached(engine: &Engine, request: Request) -> usize {
    collect_started(submit(engine, request)).0.unwrap()
}

/// The counters once nothing runs: the last event is sent a moment before the place is free.
fn at_rest(handle: &EngineHandle) -> Counters {
    let start = Instant::now();
    while (handle.running(), handle.waiting()) != (0, 0) {
        assert!(start.elapsed() < Duration::from_secs(5));
        std::thread::yield_now();
    }
    handle.counters()
}

/// One sequence at a time, without an engine.
fn alone(request: &Request) -> Vec<Event> {
    let mut events = Vec::new();
    let mut tokens = request.prompt.clone();
    if let Some(top) = request.prompt_logprobs {
        let later = (1..tokens.len()).map(|i| Some(score(&logits(&tokens[..i]), tokens[i], top).unwrap()));
        events.push(Event::Prompt(std::iter::once(None).chain(later).collect()));
    }
    let mut sampler = Sampler::new(request.sampling.clone(), &request.prompt);
    for generated in 0..request.max_tokens {
        let mut row = logits(&tokens);
        let banned = if generated < request.min_tokens { request.stop_tokens.as_slice() } else { &[] };
        let id = sampler.sample(&mut row, banned).unwrap();
        tokens.push(id);
        events.push(Event::Token { id, score: request.logprobs.map(|top| score(&row, id, top).unwrap()) });
        if request.stop_tokens.contains(&id) {
            events.push(Event::Done(Finish::Stop));
            return events;
        }
    }
    events.push(Event::Done(Finish::Length));
    events
}

fn any_sampling() -> impl Strategy<Value = Sampling> {
    let penalties = prop_oneof![
        2 => Just(Penalties::NONE),
        1 => (0.8f32..1.5, 0.0f32..1.0, 0.0f32..1.0)
            .prop_map(|(repetition, frequency, presence)| Penalties { repetition, frequency, presence }),
    ];
    let min_p = prop_oneof![Just(0.0), 0.0f64..0.3];
    // With few tokens to choose from, sequences repeat themselves and drafts are right.
    let repeats = any::<bool>();
    (any::<bool>(), 1usize..30, 0.5f64..1.0, min_p, penalties, repeats, any::<u64>(), 0u64..3).prop_map(
        |(is_greedy, top_k, top_p, min_p, penalties, repeats, seed, stream)| Sampling {
            temperature: if is_greedy { 0.0 } else { 1.3 },
            top_p,
            top_k,
            min_p,
            penalties,
            logit_bias: if repeats { (20..23).map(|id| (id, 9.0)).collect() } else { Vec::new() },
            seed: Some(seed),
            stream,
        },
    )
}

/// Many prompts begin alike.
fn any_prompt() -> impl Strategy<Value = Vec<u32>> {
    let end = prop_oneof![1..PANIC, 20u32..24];
    (0u32..2, 0u32..45, prop::collection::vec(end, 1..20)).prop_map(|(base, shared, end)| {
        let shared = (0..shared).map(|i| 1 + (i * i + 7 * base) % 250);
        shared.chain(end).collect()
    })
}

fn any_request() -> impl Strategy<Value = Request> {
    let top = prop::option::of(0usize..4);
    let scored = prop::option::weighted(0.2, 0usize..4);
    (any_prompt(), 0usize..20, 0usize..5, any_sampling(), top, scored).prop_map(
        |(prompt, max_tokens, min_tokens, sampling, logprobs, prompt_logprobs)| Request {
            prompt,
            max_tokens,
            min_tokens,
            sampling,
            // Many, so that many sequences stop.
            stop_tokens: (0..15).collect(),
            logprobs,
            prompt_logprobs,
        },
    )
}

/// What happens to a request that is handed in.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Runs,
    /// It is abandoned after so many events.
    Abandoned(usize),
    /// It has a token that the model fails at.
    Fails(u32),
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => Just(Fate::Runs),
        2 => (0usize..4).prop_map(Fate::Abandoned),
        1 => prop_oneof![Just(PANIC), Just(FAIL), Just(NAN)].prop_map(Fate::Fails),
    ]
}

fn any_config() -> impl Strategy<Value = Config> {
    let chunk = prop_oneof![Just(None), (1usize..20).prop_map(Some)];
    (1usize..7, 1usize..50, chunk, any::<bool>(), 0usize..6).prop_map(
        |(max_sequences, max_batch_tokens, prefill_chunk, prefix_cache, speculate)| Config {
            max_sequences,
            max_batch_tokens,
            prefill_chunk,
            max_queue: 1000,
            prefix_cache,
            speculate,
            ..Config::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 300, ..ProptestConfig::default() })]

    /// Whatever the order of things, how much memory there is, what is shared, guessed, pushed out, abandoned or fails.
    #[test]
    fn each_request_gets_what_it_would_get_alone(
        requests in prop::collection::vec((any_request(), 1usize..4, any_fate(), 0u64..300), 1..20),
        config in any_config(),
        // The longest request takes 21 blocks.
        blocks in 21usize..80,
    ) {
        let model = HashModel::with_blocks(blocks);
        let epoch = model.epoch();
        let engine = Engine::start(Box::new(model), config).unwrap();
        let handle = engine.handle();
        let mut running = Vec::new();
        for (request, samples, fate, pause) in requests {
            let mut request = request;
            if let Fate::Fails(token) = fate {
                let at = request.prompt.len() / 2;
                request.prompt[at] = token;
                request.max_tokens = request.max_tokens.max(1);
            }
            let sample = |i| {
                let sampling = Sampling { stream: i, ..request.sampling.clone() };
                Request { sampling, ..request.clone() }
            };
            let samples: Vec<Request> = (0..samples as u64).map(sample).collect();
            let receivers = handle.submit(samples.clone()).unwrap();
            for (request, mut receiver) in samples.into_iter().zip(receivers) {
                if let Fate::Abandoned(events) = fate {
                    (0..events).for_each(|_| _ = receiver.blocking_recv());
                } else {
                    running.push((request, fate, receiver));
                }
            }
            std::thread::sleep(Duration::from_micros(pause));
            if pause % 4 == 0 {
                epoch.store(pause, std::sync::atomic::Ordering::Relaxed);
            }
        }
        for (request, fate, receiver) in running {
            let events = collect(receiver);
            if fate == Fate::Runs {
                prop_assert_eq!(events, alone(&request));
            } else {
                // What fails at the prompt's last token has scored the prompt before.
                let [scored @ .., Event::Failed(_)] = &events[..] else {
                    return Err(TestCaseError::fail(format!("{events:?}")));
                };
                prop_assert!(matches!(scored, [] | [Event::Prompt(_)]), "{:?}", events);
            }
        }
        let Counters { free_blocks, kept_blocks, held_blocks, .. } = at_rest(&handle);
        prop_assert_eq!((free_blocks + kept_blocks, held_blocks), (blocks, 0));
    }
}

#[test]
fn a_prompt_that_was_there_before_is_not_computed_again() {
    let engine = engine(4, 100);
    let long = request((1..50).collect(), 3);
    let mut expected = alone(&long);
    assert_eq!((cached(&engine, long.clone()), run(&engine, long.clone())), (0, expected));
    // Whole blocks, and never the last token; what was generated counts too.
    assert_eq!(cached(&engine, long.clone()), 48 / BLOCK * BLOCK);
    let longer = Request { prompt: (1..50).chain(greedy(&long.prompt, 3, None)).collect(), ..long.clone() };
    assert_eq!(cached(&engine, longer.clone()), 48 / BLOCK * BLOCK);
    let other = request((1..30).chain(40..60).collect(), 3);
    expected = alone(&other);
    let (cached_tokens, events) = collect_started(submit(&engine, other));
    assert_eq!((cached_tokens, events), (Some(29 / BLOCK * BLOCK), expected));
    // All its logits are wanted, so all its tokens are computed.
    assert_eq!(cached(&engine, Request { prompt_logprobs: Some(1), ..long.clone() }), 0);
    assert_eq!(at_rest(&engine.handle()).cached_tokens, 3 * 48 + 28);

    let config = Config { prefix_cache: false, ..Config::default() };
    let engine = Engine::start(Box::new(HashModel::new(4)), config).unwrap();
    assert_eq!((cached(&engine, long.clone()), cached(&engine, long)), (0, 0));
    assert_eq!(at_rest(&engine.handle()).kept_blocks, 0);
}

#[test]
fn samples_of_a_prompt_share_it_even_without_a_cache() {
    for prefix_cache in [true, false] {
        let config = Config { max_batch_tokens: 10, prefix_cache, ..Config::default() };
        let engine = Engine::start(Box::new(HashModel::new(4)), config).unwrap();
        let one = request((1..50).collect(), 20);
        let samples = engine.handle().submit(vec![one.clone(); 4]).unwrap();
        let (cached, events): (Vec<_>, Vec<_>) = samples.into_iter().map(collect_started).unzip();
        assert_eq!(cached, [Some(0), Some(48), Some(48), Some(48)]);
        assert!(events.iter().all(|events| *events == alone(&one)));
    }
}

#[test]
fn another_table_makes_the_cache_worthless() {
    let model = HashModel::slow(2, Duration::from_millis(1));
    let epoch = model.epoch();
    let engine = Engine::start(Box::new(model), Config::default()).unwrap();
    let long = request((1..50).collect(), 20);
    assert_eq!((cached(&engine, long.clone()), cached(&engine, long.clone())), (0, 48));
    epoch.store(1, std::sync::atomic::Ordering::Relaxed);
    let mut running = submit(&engine, long.clone());
    assert_eq!(running.blocking_recv(), Some(Event::Started { cached_tokens: 0 }));
    // What was begun under the old table is nobody else's.
    epoch.store(2, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(collect(running), alone(&long));
    assert_eq!((cached(&engine, long.clone()), cached(&engine, long)), (0, 48));
}

#[test]
fn without_memory_the_youngest_waits_and_nothing_fails() {
    let config = Config { prefix_cache: false, ..Config::default() };
    let engine = Engine::start(Box::new(HashModel::with_blocks(25)), config).unwrap();
    let endless = |first| Request { stop_tokens: vec![], ..request((first..first + 20).collect(), 60) };
    let requests: Vec<Request> = (1..6).map(|i| endless(i * 10)).collect();
    let receivers = engine.handle().submit(requests.clone()).unwrap();
    for (request, receiver) in requests.iter().zip(receivers) {
        assert_eq!(collect(receiver), alone(request));
    }
    let counters = at_rest(&engine.handle());
    assert!(counters.preemptions > 0);
    assert_eq!(counters.free_blocks, 25);
    let refused = engine.handle().submit(vec![endless(1), request(vec![1; 50], 52)]).unwrap_err();
    assert_eq!(refused, EngineError::TooLarge { needed: 101, room: 100 });
    assert!(refused.to_string().contains("--kv-memory"));
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let model = HashModel::slow(3, Duration::from_millis(1));
    let config = Config { max_batch_tokens: 8, prefill_chunk: Some(2), ..Config::default() };
    let engine = Engine::start(Box::new(model), config).unwrap();
    let mut long = submit(&engine, request(vec![7; 200], 5));
    assert!(matches!(long.blocking_recv(), Some(Event::Started { .. })));
    assert_eq!(run(&engine, request(vec![3; 10], 5)), alone(&request(vec![3; 10], 5)));
    assert!(long.try_recv().is_err());
    assert_eq!(collect(long), alone(&request(vec![7; 200], 5)));
}

#[test]
fn the_next_part_of_a_prompt_is_known_a_step_before() {
    for speculate in [0, 3] {
        // Of so many blocks it is a model that is told.
        let model = HashModel::with_blocks(100);
        let foreseen = model.foreseen();
        let config = Config { max_batch_tokens: 16, prefill_chunk: Some(4), speculate, ..Config::default() };
        let engine = Engine::start(Box::new(model), config).unwrap();
        let prompts = [vec![7; 90], (1..40).collect(), vec![5, 6]];
        let all: Vec<Request> = prompts.into_iter().map(|prompt| request(prompt, 20)).collect();
        let receivers = engine.handle().submit(all.clone()).unwrap();
        for (receiver, request) in receivers.into_iter().zip(&all) {
            assert_eq!(collect(receiver), alone(request));
        }
        // All but what the first step reads, and no more.
        assert_eq!(foreseen.map(|count| count.load(Ordering::Relaxed)), [90 + 39 + 2 - 16; 2]);
    }
}

#[test]
fn drafts_are_checked_and_change_nothing_but_the_number_of_steps() {
    let base = Request { stop_tokens: vec![], ..request(vec![5, 6, 7], 40) };
    // The prompt says it all once, and begins again.
    let prompt: Vec<u32> = [&[5, 6, 7], &greedy(&[5, 6, 7], 40, None)[..], &[5, 6, 7]].concat();
    let logit_bias = (20..22).map(|id| (id, 20.0)).collect();
    let seeded = Sampling { temperature: 0.7, seed: Some(3), logit_bias, ..Sampling::GREEDY };
    for sampling in [Sampling::GREEDY, seeded] {
        let one = Request { prompt: prompt.clone(), sampling, ..base.clone() };
        let steps = [0, 4].map(|speculate| {
            let config = Config { speculate, ..Config::default() };
            // Its steps take as long with drafts as without: they pay, however the machine is loaded.
            let model = HashModel::slow(1, Duration::from_millis(2));
            let engine = Engine::start(Box::new(model), config).unwrap();
            assert_eq!(run(&engine, one.clone()), alone(&one));
            let counters = at_rest(&engine.handle());
            assert_eq!(counters.drafted > 0, speculate > 0);
            if speculate > 0 {
                assert!(counters.accepted >= 10, "{counters:?}");
            }
            counters.steps
        });
        assert!(steps[1] < steps[0]);
    }
}

#[test]
fn ten_thousand_requests_leave_memory_where_it_was() {
    let config = Config { max_queue: 20_000, speculate: 2, ..Config::default() };
    let engine = Engine::start(Box::new(HashModel::with_blocks(60)), config).unwrap();
    let handle = engine.handle();
    for round in 0..100 {
        let requests = (0..100).map(|i| request(vec![1 + i % 50, 2, 3 + round, 4, 5], 2)).collect();
        let receivers = handle.submit(requests).unwrap();
        // Every tenth is abandoned.
        let kept = receivers.into_iter().enumerate().filter(|(i, _)| i % 10 > 0);
        kept.for_each(|(_, receiver)| _ = collect(receiver));
    }
    let Counters { free_blocks, kept_blocks, held_blocks, .. } = at_rest(&handle);
    assert_eq!((free_blocks + kept_blocks, held_blocks), (60, 0));
}

#[test]
fn scores_are_the_models_own_log_probabilities() {
    let sampling = Sampling { temperature: 0.3, top_k: 2, seed: Some(1), ..Sampling::GREEDY };
    let request = Request { sampling, logprobs: Some(0), ..request(vec![5, 6, 7], 1) };
    let Event::Token { id, score: Some(score) } = &run(&engine(1, 10), request)[0] else { panic!() };
    assert!((f64::from(score.logprob) - log_softmax(&logits(&[5, 6, 7]))[*id as usize]).abs() < 1e-5);
    assert_eq!(score.top, [(*id, score.logprob)]);
}

#[test]
fn what_fails_ends_its_requests_and_not_the_engine() {
    let engine = engine(2, 100);
    for (bad, word) in [(PANIC, "not for me"), (FAIL, "cannot be computed")] {
        let events = run(&engine, request(vec![1, bad], 3));
        assert!(
            matches!(&events[..], [Event::Failed(failure)] if failure.to_string().contains(word)),
            "{events:?}"
        );
        let good = request(vec![1, 2], 5);
        assert_eq!(run(&engine, good.clone()), alone(&good));
    }
    at_rest(&engine.handle());
}

#[test]
fn what_fails_ends_alone() {
    let engine = engine(6, 100);
    let requests = [vec![1, 2, 3], vec![1, PANIC], vec![4, 5, 6], vec![FAIL], vec![7], vec![8, NAN, 9]]
        .map(|prompt| request(prompt, 9));
    let receivers = engine.handle().submit(requests.to_vec()).unwrap();
    for (request, receiver) in requests.iter().zip(receivers) {
        let events = collect(receiver);
        if request.prompt.iter().any(|&token| token >= PANIC) {
            assert!(matches!(events[..], [Event::Failed(_)]), "{events:?}");
        } else {
            assert_eq!(events, alone(request));
        }
    }
}

#[test]
fn requests_that_cannot_be_run_are_refused() {
    let handle = engine(1, 10).handle();
    let refusal = |prompt, max_tokens| {
        engine(1, 10).handle().submit(vec![request(vec![1], 1), request(prompt, max_tokens)]).unwrap_err()
    };
    assert_eq!(refusal(vec![], 1), EngineError::EmptyPrompt);
    assert_eq!(
        refusal(vec![1, VOCAB as u32], 1),
        EngineError::UnknownToken { token: VOCAB as u32, vocab_size: VOCAB }
    );
    let too_long = EngineError::TooLong { prompt: 2, max_tokens: CONTEXT - 1, context: CONTEXT };
    assert_eq!(refusal(vec![1, 2], CONTEXT - 1), too_long);
    assert!(matches!(refusal(vec![1, 2], usize::MAX), EngineError::TooLong { .. }));
    // That handle's engine has been dropped.
    assert_eq!(handle.submit(vec![request(vec![1], 1)]).unwrap_err(), EngineError::Stopped);
    assert!(!handle.is_alive());
}

#[test]
fn the_whole_context_can_be_used() {
    let full = Request { stop_tokens: vec![], ..request(vec![3; CONTEXT - 5], 5) };
    assert_eq!(run(&engine(1, 64), full.clone()), alone(&full));
    let scored = Request { prompt_logprobs: Some(1), ..request(vec![3; CONTEXT], 0) };
    assert_eq!(run(&engine(1, 64), scored.clone()), alone(&scored));
}

#[test]
fn an_abandoned_request_makes_room() {
    let model = HashModel::slow(1, Duration::from_millis(5));
    let engine =
        Engine::start(Box::new(model), Config { max_sequences: 1, max_batch_tokens: 8, ..Config::default() })
            .unwrap();
    let endless = |first| Request { stop_tokens: vec![], ..request(vec![first], 200) };
    let mut running = engine.handle().submit(vec![endless(1)]).unwrap().remove(0);
    running.blocking_recv().unwrap();
    let waiting = engine.handle().submit(vec![endless(2)]).unwrap();
    let last = engine.handle().submit(vec![request(vec![9], 2)]).unwrap().remove(0);
    drop((running, waiting));
    let start = Instant::now();
    assert_eq!(collect(last), alone(&request(vec![9], 2)));
    assert!(start.elapsed() < Duration::from_millis(500));
}

#[test]
fn dropping_the_engine_ends_everything() {
    let model = HashModel::slow(1, Duration::from_millis(5));
    let engine =
        Engine::start(Box::new(model), Config { max_sequences: 1, max_batch_tokens: 8, ..Config::default() })
            .unwrap();
    let receivers = engine.handle().submit(vec![request(vec![1], 200), request(vec![2], 200)]).unwrap();
    drop(engine);
    for receiver in receivers {
        assert!(matches!(collect(receiver).last(), Some(Event::Failed(_))));
    }
}

#[test]
fn greedy_is_greedy() {
    let tokens: Vec<u32> = run(&engine(1, 10), request(vec![7, 8], 30))
        .iter()
        .filter_map(|event| if let Event::Token { id, .. } = event { Some(*id) } else { None })
        .collect();
    assert_eq!(tokens, greedy(&[7, 8], 30, Some(0)));
}
