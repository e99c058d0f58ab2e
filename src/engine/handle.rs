use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::hints::Hints;
use super::queue::{Limits, Queue, Turn, Waiting};
use super::worker::Worker;
use super::{Counters, EngineError, Event, Forward, Request};

/// How the engine is run.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Sequences that run at a time, as far as there is memory for their keys and values.
    pub max_sequences: usize,
    /// Tokens that one step computes at most, prompts, drafts and decoding together (decoding alone may exceed it).
    pub max_batch_tokens: usize,
    /// Tokens of each prompt that a step reads at most while other sequences decode. None: as many as make it take twice
    /// as long as without, by what steps were measured to cost.
    pub prefill_chunk: Option<usize>,
    /// Requests that may wait for their turn.
    pub max_queue: usize,
    /// Tokens that the prompts of those who wait may have together.
    pub max_queue_tokens: usize,
    /// How long a request may wait for its turn before it fails; for ever if None. Requests that were handed in together
    /// have theirs when the first of them has.
    pub queue_timeout: Option<Duration>,
    /// Whether keys and values are kept for later requests that begin with the same tokens.
    pub prefix_cache: bool,
    /// The most drafts of a sequence in a step: tokens guessed from what it repeats, which are checked together. Output is
    /// the same with and without. 0 is none.
    pub speculate: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_sequences: 16,
            max_batch_tokens: 512,
            prefill_chunk: None,
            max_queue: 256,
            max_queue_tokens: usize::MAX,
            queue_timeout: None,
            prefix_cache: true,
            speculate: 0,
        }
    }
}

/// The running engine. Dropping it stops its thread and ends what runs and waits with an error.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

/// Where requests are handed in; cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    queue: Arc<Queue>,
    hints: Option<Hints>,
    vocab_size: usize,
    context: usize,
    /// Tokens for whose keys and values there is memory.
    room: usize,
    counters: Arc<Mutex<Counters>>,
    groups: Arc<AtomicU64>,
}

impl Engine {
    /// Starts the thread that owns `model`.
    ///
    /// # Errors
    /// If the model has no blocks, or the operating system gives no thread.
    pub fn start(model: Box<dyn Forward>, config: Config) -> std::io::Result<Self> {
        let room = model.blocks() * model.block_tokens();
        if room == 0 || config.max_sequences == 0 {
            return Err(std::io::Error::other("the model has no place for a sequence's keys and values"));
        }
        let queue = Arc::new(Queue::new(Limits {
            places: config.max_sequences,
            requests: config.max_queue,
            tokens: config.max_queue_tokens,
            time: config.queue_timeout,
        }));
        let counters = Arc::default();
        let handle = EngineHandle {
            queue: Arc::clone(&queue),
            hints: model.prefetch().map(Hints::start).transpose()?,
            vocab_size: model.vocab_size(),
            context: model.context(),
            room,
            counters: Arc::clone(&counters),
            groups: Arc::default(),
        };
        let worker = Worker::new(model, config, queue, counters);
        let thread = thread::Builder::new().name("engine".into()).spawn(move || worker.run())?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// A handle to submit requests with.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.handle.queue.close();
        if let Some(thread) = self.thread.take() {
            // The worker catches panics of the model; what it does not catch has already been printed.
            let _ = thread.join();
        }
    }
}

impl EngineHandle {
    /// Hands in requests, all or none, and returns a receiver of each one's events. Dropping a receiver abandons its
    /// request. The channels are unbounded so that a slow reader holds up nobody; `max_tokens` bounds what they hold.
    /// Neighbours with the same prompt, samples of it, have it computed once.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn submit(&self, requests: Vec<Request>) -> Result<Vec<UnboundedReceiver<Event>>, EngineError> {
        requests.iter().try_for_each(|request| self.check(request))?;
        let prompts = self.hints.as_ref().map(|_| Hints::prompts(&requests));
        let groups = self.groups(&requests);
        let turn = Turn::new();
        let (waiting, receivers) = requests
            .into_iter()
            .zip(groups)
            .map(|(request, group)| {
                let (events, receiver) = unbounded_channel();
                (Waiting { request, group, turn: turn.clone(), events }, receiver)
            })
            .unzip();
        self.queue.push(waiting)?;
        if let (Some(hints), Some(prompts)) = (&self.hints, prompts) {
            hints.give(prompts);
        }
        Ok(receivers)
    }

    /// A number for each run of requests with the same prompt, none for one alone.
    fn groups(&self, requests: &[Request]) -> Vec<Option<u64>> {
        let runs = requests.chunk_by(|a, b| a.prompt == b.prompt);
        runs.flat_map(|run| {
            let group = (run.len() > 1).then(|| self.groups.fetch_add(1, Ordering::Relaxed));
            run.iter().map(move |_| group)
        })
        .collect()
    }

    fn check(&self, Request { prompt, max_tokens, .. }: &Request) -> Result<(), EngineError> {
        let (context, vocab_size) = (self.context, self.vocab_size);
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(&token) = prompt.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(EngineError::UnknownToken { token, vocab_size });
        }
        if prompt.len().saturating_add(*max_tokens) > context {
            return Err(EngineError::TooLong { prompt: prompt.len(), max_tokens: *max_tokens, context });
        }
        // The last token is not read.
        let needed = prompt.len() + max_tokens.saturating_sub(1);
        if needed > self.room {
            return Err(EngineError::TooLarge { needed, room: self.room });
        }
        Ok(())
    }

    /// The most tokens of a sequence, prompt and output together: the model's context, or what the cache of keys and values
    /// has room for if that is less.
    pub fn context(&self) -> usize {
        self.context.min(self.room.saturating_add(1))
    }

    /// Token ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether requests are still taken: false once the engine was stopped or its thread has died.
    pub fn is_alive(&self) -> bool {
        !self.queue.is_closed()
    }

    /// An error if not even the smallest request would be taken now: what would be prepared for one is in vain.
    ///
    /// # Errors
    /// As of [`Self::submit`].
    pub fn check_queue(&self) -> Result<(), EngineError> {
        self.queue.check_room()
    }

    /// Sequences that have a place in the cache.
    pub fn running(&self) -> usize {
        self.queue.running()
    }

    /// Sequences that wait for one.
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// What was done up to the last step.
    pub fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle")
            .field("running", &self.running())
            .field("waiting", &self.waiting())
            .finish()
    }
}
