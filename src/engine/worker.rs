use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rayon::prelude::*;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::hints::Hints;
use super::queue::{Queue, Waiting};
use super::schedule::schedule;
use super::sequence::Sequence;
use super::{EngineError, Event, Forward, ForwardError, Request};

/// How the engine is run.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Sequences that run at a time.
    pub max_sequences: usize,
    /// Tokens that one step computes at most, prompts and decoding together (decoding alone may exceed it).
    pub max_batch_tokens: usize,
    /// Sequences that may wait for a place.
    pub max_queue: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_sequences: 16, max_batch_tokens: 512, max_queue: 256 }
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
}

impl Engine {
    /// Starts the thread that owns `model`.
    ///
    /// # Errors
    /// If the model has no slots, or the operating system gives no thread.
    pub fn start(model: Box<dyn Forward>, config: Config) -> std::io::Result<Self> {
        let blocks_each = model.context().div_ceil(model.block_tokens());
        let slots = config.max_sequences.min(model.blocks() / blocks_each);
        if slots == 0 {
            return Err(std::io::Error::other("the model has no place for a sequence's keys and values"));
        }
        let queue = Arc::new(Queue::new(config.max_queue));
        let handle = EngineHandle {
            queue: Arc::clone(&queue),
            hints: model.prefetch().map(Hints::start).transpose()?,
            vocab_size: model.vocab_size(),
            context: model.context(),
        };
        let worker = Worker {
            free: (0..slots).rev().collect(),
            blocks_each,
            logits: Vec::new(),
            budget: config.max_batch_tokens,
            vocab_size: model.vocab_size(),
            running: Vec::new(),
            model,
            queue,
        };
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
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn submit(&self, requests: Vec<Request>) -> Result<Vec<UnboundedReceiver<Event>>, EngineError> {
        requests.iter().try_for_each(|request| self.check(request))?;
        let prompts = self.hints.as_ref().map(|_| Hints::prompts(&requests));
        let (waiting, receivers) = requests
            .into_iter()
            .map(|request| {
                let (events, receiver) = unbounded_channel();
                (Waiting { request, events }, receiver)
            })
            .unzip();
        self.queue.push(waiting)?;
        if let (Some(hints), Some(prompts)) = (&self.hints, prompts) {
            hints.give(prompts);
        }
        Ok(receivers)
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
        Ok(())
    }

    /// The most tokens of a sequence, prompt and output together.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Token ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether requests are still taken: false once the engine was stopped or its thread has died.
    pub fn is_alive(&self) -> bool {
        !self.queue.is_closed()
    }

    /// Sequences that have a slot.
    pub fn running(&self) -> usize {
        self.queue.running()
    }

    /// Sequences that wait for one.
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
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

/// What the engine's thread owns.
struct Worker {
    model: Box<dyn Forward>,
    vocab_size: usize,
    budget: usize,
    queue: Arc<Queue>,
    /// In the order in which they came.
    running: Vec<Sequence>,
    free: Vec<usize>,
    blocks_each: usize,
    logits: Vec<f32>,
}

impl Worker {
    fn run(mut self) {
        loop {
            self.release(|sequence| sequence.is_abandoned());
            let Some(admitted) = self.queue.take(self.free.len(), self.running.len()) else { break };
            let slots = self.free.split_off(self.free.len() - admitted.len());
            self.running.extend(slots.into_iter().rev().zip(admitted).map(|(slot, one)| {
                let blocks = slot * self.blocks_each..(slot + 1) * self.blocks_each;
                Sequence::new(slot, blocks.map(|block| block as u32).collect(), one)
            }));
            self.step();
            self.release(|sequence| sequence.is_finished);
        }
        for sequence in &mut self.running {
            sequence.fail(EngineError::Stopped.to_string());
        }
    }

    /// Removes sequences and gives their slots back.
    fn release(&mut self, is_over: impl Fn(&Sequence) -> bool) {
        self.free
            .extend(self.running.extract_if(.., |sequence| is_over(sequence)).map(|sequence| sequence.slot));
    }

    /// One forward pass and what follows from it. If it fails, the sequences in it fail, and the engine goes on.
    fn step(&mut self) {
        let counts = schedule(self.running.iter().map(Sequence::left), self.budget);
        let result = catch_unwind(AssertUnwindSafe(|| self.compute(&counts)));
        let message = match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("the model failed: {error}"),
            Err(panic) => format!("the model panicked: {}", panic_message(&*panic)),
        };
        tracing::error!("{message}");
        for (sequence, count) in self.running.iter_mut().zip(counts) {
            if count > 0 && !sequence.is_finished {
                sequence.fail(message.clone());
            }
        }
    }

    fn compute(&mut self, counts: &[usize]) -> Result<(), ForwardError> {
        let chosen = || counts.iter().copied().enumerate().filter(|&(_, count)| count > 0);
        let batch: Vec<_> = chosen().map(|(i, count)| self.running[i].piece(count)).collect();
        let rows: Vec<usize> = batch.iter().map(|piece| piece.wanted).collect();
        let logits = &mut self.logits;
        self.model.forward(&batch, logits)?;
        let expected = rows.iter().sum::<usize>() * self.vocab_size;
        if logits.len() != expected {
            return Err(format!("it gave {} logits where {expected} were wanted", logits.len()).into());
        }
        let mut rest = logits.as_slice();
        let mut work = Vec::with_capacity(rows.len());
        let in_batch = self.running.iter_mut().zip(counts).filter(|(_, count)| **count > 0);
        for ((sequence, &count), rows) in in_batch.zip(rows) {
            let (own, others) = rest.split_at(rows * self.vocab_size);
            rest = others;
            work.push((sequence, count, own));
        }
        let vocab_size = self.vocab_size;
        work.into_par_iter()
            .for_each(|(sequence, count, logits)| sequence.advance(count, logits, vocab_size));
        Ok(())
    }
}

impl Drop for Worker {
    /// However the thread ends, nobody waits for it afterwards.
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    match panic.downcast_ref::<&str>() {
        Some(message) => message,
        None => panic.downcast_ref::<String>().map_or("no message", String::as_str),
    }
}
