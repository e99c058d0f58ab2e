//! The engine by itself: what a request gets does not depend on what runs beside it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{CONTEXT, FAIL, HashModel, PANIC, VOCAB, greedy, log_softmax, logits};
use proptest::prelude::*;
use scone::engine::{Config, Engine, EngineError, Event, Finish, Request, Sampler, Sampling, score};
use tokio::sync::mpsc::UnboundedReceiver;

fn engine(slots: usize, max_batch_tokens: usize) -> Engine {
    Engine::start(
        Box::new(HashModel::new(slots)),
        Config { max_sequences: slots, max_batch_tokens, max_queue: 100 },
    )
    .unwrap()
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        prompt,
        max_tokens,
        sampling: Sampling::GREEDY,
        stop_tokens: vec![0],
        logprobs: None,
        prompt_logprobs: None,
    }
}

fn collect(mut receiver: UnboundedReceiver<Event>) -> Vec<Event> {
    std::iter::from_fn(|| receiver.blocking_recv()).collect()
}

fn run(engine: &Engine, request: Request) -> Vec<Event> {
    collect(engine.handle().submit(vec![request]).unwrap().remove(0))
}

/// One sequence at a time, without an engine.
fn alone(request: &Request) -> Vec<Event> {
    let mut events = Vec::new();
    let mut tokens = request.prompt.clone();
    if let Some(top) = request.prompt_logprobs {
        let later = (1..tokens.len()).map(|i| Some(score(&logits(&tokens[..i]), tokens[i], top).unwrap()));
        events.push(Event::Prompt(std::iter::once(None).chain(later).collect()));
    }
    let mut sampler = Sampler::new(request.sampling);
    for _ in 0..request.max_tokens {
        let row = logits(&tokens);
        let id = sampler.sample(&row).unwrap();
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

fn any_request() -> impl Strategy<Value = Request> {
    let sampling = (prop::bool::ANY, 1usize..30, 0.5f64..1.0, any::<u64>(), 0u64..3).prop_map(
        |(is_greedy, top_k, top_p, seed, stream)| {
            let temperature = if is_greedy { 0.0 } else { 1.3 };
            Sampling { temperature, top_p, top_k, seed: Some(seed), stream }
        },
    );
    let top = prop::option::of(0usize..4);
    let prompt = prop::collection::vec(1..PANIC, 1..60);
    // Many stop tokens, so that many sequences stop.
    (prompt, 0usize..20, sampling, top.clone(), top).prop_map(
        |(prompt, max_tokens, sampling, logprobs, prompt_logprobs)| Request {
            prompt,
            max_tokens,
            sampling,
            stop_tokens: (0..20).collect(),
            logprobs,
            prompt_logprobs,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn each_request_gets_what_it_would_get_alone(
        requests in prop::collection::vec(any_request(), 1..12),
        slots in 1usize..5,
        budget in 1usize..50,
    ) {
        let engine = engine(slots, budget);
        let handle = engine.handle();
        let receivers: Vec<_> =
            requests.iter().flat_map(|request| handle.submit(vec![request.clone()]).unwrap()).collect();
        for (request, receiver) in requests.iter().zip(receivers) {
            prop_assert_eq!(collect(receiver), alone(request));
        }
    }
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
        assert!(matches!(&events[..], [Event::Failed(message)] if message.contains(word)), "{events:?}");
        let good = request(vec![1, 2], 5);
        assert_eq!(run(&engine, good.clone()), alone(&good));
    }
    // The last event is sent a moment before the slot is free.
    let start = Instant::now();
    while engine.handle().running() > 0 {
        assert!(start.elapsed() < Duration::from_secs(5));
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
        Engine::start(Box::new(model), Config { max_sequences: 1, max_batch_tokens: 8, max_queue: 10 })
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
        Engine::start(Box::new(model), Config { max_sequences: 1, max_batch_tokens: 8, max_queue: 10 })
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
