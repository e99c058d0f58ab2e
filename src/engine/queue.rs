use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::{EngineError, Event, Failure, Request};

/// A request that has no turn yet.
pub(super) struct Waiting {
    pub(super) request: Request,
    /// The same for requests that were handed in together with the same prompt.
    pub(super) group: Option<u64>,
    pub(super) turn: Turn,
    pub(super) events: UnboundedSender<Event>,
}

/// Since when requests that were handed in together wait for a turn, and whether one of them has had it.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    since: Instant,
    has_come: Arc<AtomicBool>,
}

impl Turn {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), has_come: Arc::default() }
    }

    /// One of the requests has its turn, so the others may wait as long as they must.
    pub(super) fn come(&self) {
        self.has_come.store(true, Ordering::Relaxed);
    }

    /// Whether all of the requests have waited for longer than that.
    pub(super) fn is_overdue(&self, timeout: Duration) -> bool {
        !self.has_come.load(Ordering::Relaxed) && self.since.elapsed() > timeout
    }
}

/// What may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Sequences that run at a time: who comes while there is a place does not wait, though it may be a step until it runs.
    pub(super) places: usize,
    /// Requests.
    pub(super) requests: usize,
    /// Tokens of their prompts.
    pub(super) tokens: usize,
    /// How long a request may wait for its turn.
    pub(super) time: Option<Duration>,
}

/// The bounded queue between those who submit and the engine's thread.
///
/// A mutex rather than a channel, because the line must be looked through: requests that were abandoned while they
/// waited must not keep the living out.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limits: Limits,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    running: usize,
    parked: usize,
    is_closed: bool,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limits }
    }

    /// Adds requests, all or none. To an empty queue any number is let in, so no request is refused for ever.
    pub(super) fn push(&self, requests: Vec<Waiting>) -> Result<(), EngineError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(EngineError::Stopped);
        }
        self.tidy(&mut state);
        self.check(&state, requests.len(), tokens(&requests))?;
        state.waiting.extend(requests);
        self.changed.notify_one();
        Ok(())
    }

    /// An error if not even the smallest request would be taken now.
    pub(super) fn check_room(&self) -> Result<(), EngineError> {
        let mut state = self.lock();
        self.tidy(&mut state);
        self.check(&state, 1, 1)
    }

    fn check(&self, state: &State, more: usize, more_tokens: usize) -> Result<(), EngineError> {
        let Limits { places, requests: limit, .. } = self.limits;
        let free = places.saturating_sub(state.running + state.parked);
        let waiting = state.waiting.len();
        if waiting == 0 || waiting + more <= free {
            return Ok(());
        }
        if waiting + more > free.saturating_add(limit) {
            return Err(EngineError::QueueFull { waiting: waiting.saturating_sub(free), limit });
        }
        let (waiting, limit) = (tokens(state.waiting.iter().skip(free)), self.limits.tokens);
        if waiting > 0 && waiting.saturating_add(more_tokens) > limit {
            return Err(EngineError::TooManyTokens { waiting, limit });
        }
        Ok(())
    }

    /// Lets go who has gone away or waited for too long.
    fn tidy(&self, state: &mut State) {
        let time = self.limits.time;
        state.waiting.retain(|one| {
            let overdue = time.filter(|time| one.turn.is_overdue(*time));
            if let Some(time) = overdue {
                let _ = one.events.send(Event::Failed(Failure::Expired(time)));
            }
            overdue.is_none() && !one.events.is_closed()
        });
    }

    /// Up to `free` requests from the head of the queue. Blocks while there is nothing to do: none runs and none waits.
    /// None once the queue is closed. `parked` sequences had their turn but have no place in the cache.
    pub(super) fn take(&self, free: usize, running: usize, parked: usize) -> Option<Vec<Waiting>> {
        let mut state = self.lock();
        (state.running, state.parked) = (running, parked);
        loop {
            if state.is_closed {
                return None;
            }
            self.tidy(&mut state);
            if running + parked > 0 || !state.waiting.is_empty() {
                let count = free.min(state.waiting.len());
                state.running += count;
                return Some(state.waiting.drain(..count).collect());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets no more requests in and ends those that wait.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        for one in state.waiting.drain(..) {
            let _ = one.events.send(Event::Failed(Failure::Stopped));
        }
        self.changed.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    pub(super) fn waiting(&self) -> usize {
        let state = self.lock();
        state.waiting.len() + state.parked
    }

    pub(super) fn running(&self) -> usize {
        self.lock().running
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete before the lock is released, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens of the prompts of `requests`.
fn tokens<'a>(requests: impl IntoIterator<Item = &'a Waiting>) -> usize {
    requests.into_iter().map(|one| one.request.prompt.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Sampling;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn waiting() -> (Waiting, UnboundedReceiver<Event>) {
        let (events, receiver) = unbounded_channel();
        let request = Request {
            prompt: vec![0],
            max_tokens: 1,
            min_tokens: 0,
            sampling: Sampling::GREEDY,
            stop_tokens: vec![],
            logprobs: None,
            prompt_logprobs: None,
        };
        (Waiting { request, group: None, turn: Turn::new(), events }, receiver)
    }

    fn push(queue: &Queue, count: usize) -> Result<Vec<UnboundedReceiver<Event>>, EngineError> {
        let (requests, receivers) = (0..count).map(|_| waiting()).unzip::<_, _, Vec<_>, Vec<_>>();
        queue.push(requests).map(|()| receivers)
    }

    fn queue(requests: usize, tokens: usize, time: Option<Duration>) -> Queue {
        Queue::new(Limits { places: 0, requests, tokens, time })
    }

    #[test]
    fn bounded_all_or_none_and_the_abandoned_make_room() {
        let queue = queue(3, usize::MAX, None);
        let first = push(&queue, 2).unwrap();
        assert_eq!(push(&queue, 2).unwrap_err(), EngineError::QueueFull { waiting: 2, limit: 3 });
        let second = push(&queue, 1).unwrap();
        assert_eq!(queue.waiting(), 3);
        drop(first);
        let third = push(&queue, 2).unwrap();
        assert_eq!(queue.waiting(), 3);
        drop((second, third));
        let _alone = push(&queue, 50).unwrap();
        assert_eq!(queue.waiting(), 50);
        assert_eq!(queue.check_room(), Err(EngineError::QueueFull { waiting: 50, limit: 3 }));
    }

    #[test]
    fn who_has_a_place_does_not_wait() {
        let queue = Queue::new(Limits { places: 4, requests: 1, tokens: usize::MAX, time: None });
        let five: Vec<_> = (0..5).map(|_| push(&queue, 1).unwrap()).collect();
        assert_eq!(push(&queue, 1).unwrap_err(), EngineError::QueueFull { waiting: 1, limit: 1 });
        assert_eq!(queue.take(4, 0, 0).unwrap().len(), 4);
        assert_eq!(push(&queue, 1).unwrap_err(), EngineError::QueueFull { waiting: 1, limit: 1 });
        drop(five);
        push(&queue, 1).unwrap();
    }

    #[test]
    fn bounded_in_tokens_too() {
        let queue = queue(100, 3, None);
        let all = push(&queue, 3).unwrap();
        assert_eq!(queue.check_room(), Err(EngineError::TooManyTokens { waiting: 3, limit: 3 }));
        drop(all);
        queue.check_room().unwrap();
        let _alone = push(&queue, 7).unwrap();
    }

    #[test]
    fn who_waited_too_long_is_told_unless_a_neighbour_had_its_turn() {
        let queue = queue(3, usize::MAX, Some(Duration::ZERO));
        let mut late = push(&queue, 1).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        queue.check_room().unwrap();
        assert_eq!(late[0].try_recv().unwrap(), Event::Failed(Failure::Expired(Duration::ZERO)));
        let (one, mut receiver) = waiting();
        one.turn.come();
        queue.push(vec![one]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        queue.check_room().unwrap();
        assert!(receiver.try_recv().is_err());
        assert_eq!(queue.waiting(), 1);
    }

    #[test]
    fn closing_ends_those_who_wait() {
        let queue = queue(3, usize::MAX, None);
        let mut receivers = push(&queue, 1).unwrap();
        queue.close();
        assert!(matches!(receivers[0].try_recv(), Ok(Event::Failed(_))));
        assert_eq!(push(&queue, 1).unwrap_err(), EngineError::Stopped);
        assert!(queue.take(1, 0, 0).is_none());
    }
}
