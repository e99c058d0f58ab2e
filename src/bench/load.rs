use std::fmt;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::{Client, Prompts, Record, Sampling};

/// How requests are put to a server.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Load {
    /// Closed loop: always this many at a time, the next as soon as one is answered.
    Closed {
        /// How many.
        concurrency: usize,
    },
    /// Open loop: a Poisson process, which does not wait for answers.
    Open {
        /// Mean arrivals a second.
        rate: f64,
    },
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency } => write!(f, "closed loop, {concurrency} at a time"),
            Self::Open { rate } => write!(f, "open loop, {rate} requests/s"),
        }
    }
}

/// One request of a pass, as it is logged.
#[derive(Clone, Debug, Serialize)]
pub struct Sent {
    /// The number of its prompt.
    pub prompt: usize,
    /// When it was sent, in seconds since the pass began.
    pub start_s: f64,
    /// What was measured.
    #[serde(flatten)]
    pub record: Record,
}

/// All requests of one repetition at one target, and how long they took together.
#[derive(Clone, Debug)]
pub struct Pass {
    /// In the order in which they were done.
    pub requests: Vec<Sent>,
    /// From the first request's start to the last one's end.
    pub elapsed: Duration,
}

/// The seconds after the start at which `count` requests of a Poisson process arrive, the same for the same seed.
pub fn arrivals(rate: f64, count: usize, seed: u64) -> Vec<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut now = 0.0;
    let gap = || -(1.0 - random.random::<f64>()).ln() / rate;
    std::iter::repeat_with(gap)
        .map(|gap| {
            now += gap;
            now
        })
        .take(count)
        .collect()
}

/// Sends `count` prompts from number `first` on and waits for all of them; `done` is called after each.
pub(super) async fn pass(
    client: &Client,
    load: Load,
    prompts: &Prompts,
    (first, count): (usize, usize),
    sampling: &Sampling,
    seed: u64,
    done: impl Fn(&Record),
) -> Pass {
    let began = Instant::now();
    let send = move |prompt: usize, due: Option<Instant>| async move {
        if let Some(due) = due {
            sleep_until(due).await;
        }
        let start = Instant::now();
        let (text, tokens) = (prompts.get(prompt), sampling.output_tokens_of(prompt));
        let record = client.complete(text, tokens, sampling, due.unwrap_or(start)).await;
        Sent { prompt, start_s: (start - began).as_secs_f64(), record }
    };
    let numbers = stream::iter(first..first + count);
    let requests = match load {
        Load::Closed { concurrency } => {
            collect(numbers.map(|prompt| send(prompt, None)).buffer_unordered(concurrency), done).await
        }
        Load::Open { rate } => {
            let due = arrivals(rate, count, seed).into_iter().map(|s| began + Duration::from_secs_f64(s));
            let due = numbers.zip(stream::iter(due));
            // All at once, but a buffer for none would wait for ever where there is nothing to send.
            let all = count.max(1);
            collect(due.map(|(prompt, due)| send(prompt, Some(due))).buffer_unordered(all), done).await
        }
    };
    Pass { requests, elapsed: began.elapsed() }
}

async fn collect(requests: impl Stream<Item = Sent>, done: impl Fn(&Record)) -> Vec<Sent> {
    requests.inspect(|sent| done(&sent.record)).collect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_a_poisson_process_that_repeats() {
        let times = arrivals(50.0, 20_000, 3);
        assert_eq!(times, arrivals(50.0, 20_000, 3));
        assert_ne!(times[..5], arrivals(50.0, 5, 4)[..]);
        assert!(times.is_sorted());
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // An exponential distribution's deviation is its mean.
        assert!(
            (mean * 50.0 - 1.0).abs() < 0.03 && (deviation / mean - 1.0).abs() < 0.05,
            "{mean} {deviation}"
        );
    }
}
