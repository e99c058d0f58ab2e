use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

use super::{EngineError, Event, Request};

/// A request that has no turn yet.
pub(super) struct Waiting {
    pub(super) request: Request,
    /// The same for requests that were handed in together with the same prompt.
    pub(super) group: Option<u64>,
    pub(super) events: UnboundedSender<Event>,
}

/// The bounded queue between those who submit and the engine's thread.
///
/// A mutex rather than a channel, because the line must be looked through: requests that were abandoned while they
/// waited must not keep the living out.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    running: usize,
    parked: usize,
    is_closed: bool,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limit }
    }

    /// Adds requests, all or none. To an empty queue any number is let in, so no request is refused for ever.
    pub(super) fn push(&self, requests: Vec<Waiting>) -> Result<(), EngineError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(EngineError::Stopped);
        }
        state.waiting.retain(|one| !one.events.is_closed());
        if !state.waiting.is_empty() && state.waiting.len() + requests.len() > self.limit {
            return Err(EngineError::QueueFull { waiting: state.waiting.len(), limit: self.limit });
        }
        state.waiting.extend(requests);
        self.changed.notify_one();
        Ok(())
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
            state.waiting.retain(|one| !one.events.is_closed());
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
            let _ = one.events.send(Event::Failed(EngineError::Stopped.to_string()));
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
        (Waiting { request, group: None, events }, receiver)
    }

    fn push(queue: &Queue, count: usize) -> Result<Vec<UnboundedReceiver<Event>>, EngineError> {
        let (requests, receivers) = (0..count).map(|_| waiting()).unzip::<_, _, Vec<_>, Vec<_>>();
        queue.push(requests).map(|()| receivers)
    }

    #[test]
    fn bounded_all_or_none_and_the_abandoned_make_room() {
        let queue = Queue::new(3);
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
    }

    #[test]
    fn closing_ends_those_who_wait() {
        let queue = Queue::new(3);
        let mut receivers = push(&queue, 1).unwrap();
        queue.close();
        assert!(matches!(receivers[0].try_recv(), Ok(Event::Failed(_))));
        assert_eq!(push(&queue, 1).unwrap_err(), EngineError::Stopped);
        assert!(queue.take(1, 0, 0).is_none());
    }
}
