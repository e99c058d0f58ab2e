use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::blocks::Blocks;
use super::cost::{Cost, Kind};
use super::pass::{self, Computed, Output};
use super::queue::Queue;
use super::schedule::schedule;
use super::sequence::Sequence;
use super::{Config, Counters, Failure, Forward};
use crate::model::Pass;

/// The most positions of prompts that get log-probabilities in one step.
const SCORED: usize = 64;

/// What the engine's thread owns.
pub(super) struct Worker {
    model: Box<dyn Forward>,
    config: Config,
    queue: Arc<Queue>,
    /// In the order in which they came, those without a place in the cache among them.
    running: Vec<Sequence>,
    blocks: Blocks,
    cost: Cost,
    /// That of the model when the blocks that are shared were filled.
    epoch: u64,
    output: Output,
    counters: Counters,
    published: Arc<Mutex<Counters>>,
}

impl Worker {
    pub(super) fn new(
        model: Box<dyn Forward>,
        config: Config,
        queue: Arc<Queue>,
        published: Arc<Mutex<Counters>>,
    ) -> Self {
        let blocks = Blocks::new(model.blocks(), model.block_tokens(), config.prefix_cache);
        let epoch = model.epoch();
        let mut worker = Self {
            model,
            config,
            queue,
            running: Vec::new(),
            blocks,
            cost: Cost::default(),
            epoch,
            output: Output::default(),
            counters: Counters::default(),
            published,
        };
        worker.publish();
        worker
    }

    pub(super) fn run(mut self) {
        loop {
            if let Some(timeout) = self.config.queue_timeout {
                self.running.iter_mut().for_each(|sequence| sequence.expire(timeout));
            }
            self.release(|sequence| sequence.is_finished || sequence.is_abandoned());
            self.publish();
            let placed = self.running.iter().filter(|sequence| sequence.has_place()).count();
            let parked = self.running.len() - placed;
            let free = self.config.max_sequences.saturating_sub(self.running.len());
            let Some(admitted) = self.queue.take(free, placed, parked) else { break };
            self.running.extend(admitted.into_iter().map(Sequence::new));
            if self.model.epoch() != self.epoch {
                self.epoch = self.model.epoch();
                self.blocks.forget();
            }
            self.make_room();
            self.admit();
            self.step();
            self.release(|sequence| sequence.is_finished);
        }
        for sequence in &mut self.running {
            sequence.fail(Failure::Stopped);
        }
    }

    /// Removes sequences and gives their blocks back.
    fn release(&mut self, is_over: impl Fn(&Sequence) -> bool) {
        for mut sequence in self.running.extract_if(.., |sequence| is_over(sequence)) {
            sequence.leave_place(&mut self.blocks);
        }
    }

    /// Sees to it that each sequence has blocks for all its tokens. Where there are none left, the youngest gives its
    /// place up, keeps its tokens, and waits until there are.
    fn make_room(&mut self) {
        self.running.iter_mut().for_each(|sequence| sequence.shrink(&mut self.blocks));
        for i in 0..self.running.len() {
            while self.running[i].has_place()
                && self.running[i].missing(&self.blocks, 0) > self.blocks.available()
            {
                let youngest = self.running.iter().rposition(Sequence::has_place).unwrap_or(i);
                self.running[youngest].leave_place(&mut self.blocks);
                self.counters.preemptions += 1;
            }
            if self.running[i].has_place() {
                self.running[i].grow(&mut self.blocks, 0);
            }
        }
    }

    /// Gives places to sequences that have none, in the order in which they came, as far as there is memory. Each that
    /// runs must be able to grow by a block, or the newcomer would soon have to leave again.
    fn admit(&mut self) {
        for i in 0..self.running.len() {
            let (older, rest) = self.running.split_at_mut(i);
            let Some(sequence) = rest.first_mut().filter(|sequence| !sequence.has_place()) else { continue };
            let is_ahead = |other: &Sequence| {
                sequence.group.is_some()
                    && other.group == sequence.group
                    && other.is_filling_shared(&self.blocks)
            };
            if older.iter().any(is_ahead) {
                continue;
            }
            let shares = self.config.prefix_cache || sequence.group.is_some();
            let placed = older.iter().chain(&rest[1..]).filter(|sequence| sequence.has_place()).count();
            let is_first = !rest[0].has_started();
            let Some(cached) = rest[0].take_place(&mut self.blocks, placed, shares, self.epoch) else {
                break;
            };
            if is_first {
                self.counters.prompt_tokens += rest[0].len() as u64;
                self.counters.cached_tokens += cached as u64;
            }
        }
    }

    /// Shares a step out among sequences that have so many tokens left.
    fn share(&self, left: &[usize]) -> Vec<usize> {
        let decoding = left.iter().filter(|&&left| left == 1).count();
        // A step with so many tokens of prompts takes twice as long as one without.
        let twice = self.cost.fixed() as usize + decoding;
        let chunk = self.config.prefill_chunk.unwrap_or(twice);
        let mut counts = schedule(left, self.config.max_batch_tokens, chunk);
        // Logits of positions of prompts take room: those that are asked for share it.
        let mut scored = SCORED;
        for (sequence, count) in self.running.iter().zip(&mut counts) {
            if sequence.scores_prompt() {
                *count = scored.min(*count);
                scored -= *count;
            }
        }
        counts
    }

    /// How many tokens of each sequence the next step computes. Puts drafts behind those that decode.
    fn plan(&mut self) -> Vec<usize> {
        let left: Vec<usize> = self.running.iter().map(Sequence::left).collect();
        let decoding = left.iter().filter(|&&left| left == 1).count();
        let budget = self.config.max_batch_tokens;
        let counts = self.share(&left);
        let mut rest = budget.saturating_sub(counts.iter().sum());
        let price = self.cost.draft(decoding);
        for sequence in self.running.iter_mut().filter(|sequence| sequence.left() == 1) {
            let most = self.config.speculate.min(rest);
            if most > 0 {
                let drafts = sequence.speculation.worth(most, price);
                rest -= sequence.draft(&mut self.blocks, drafts);
            }
        }
        counts
    }

    /// How many tokens of prompts the step after one with `counts` of each sequence will read, if nobody comes or goes.
    fn next_of_prompts(&self, counts: &[usize]) -> Vec<usize> {
        let left = self.running.iter().zip(counts).map(|(sequence, count)| sequence.known_left() - count);
        let left: Vec<usize> = left.collect();
        if left.iter().all(|&left| left == 0) {
            return left;
        }
        // Whoever has read all that is known then decodes.
        let with_decoding: Vec<usize> =
            left.iter().zip(counts).map(|(&left, &count)| left.max(count.min(1))).collect();
        let next = self.share(&with_decoding);
        next.into_iter().zip(left).map(|(next, left)| next.min(left)).collect()
    }

    /// One forward pass and what follows from it.
    fn step(&mut self) {
        let start = Instant::now();
        let reads_prompts = self.running.iter().any(|sequence| sequence.left() > 1);
        let counts = self.plan();
        let in_batch = || self.running.iter().zip(&counts).filter(|(_, count)| **count > 0);
        let batch: Vec<_> = in_batch().map(|(sequence, &count)| sequence.piece(count)).collect();
        if batch.is_empty() {
            return;
        }
        let wanted: Vec<usize> = batch.iter().map(|piece| piece.wanted).collect();
        let tokens: usize = batch.iter().map(|piece| piece.new_tokens()).sum();
        let has_drafts = self.running.iter().any(|sequence| sequence.drafted() > 0);
        let chooses = self.model.chooses();
        let draws: Vec<_> = in_batch()
            .zip(&wanted)
            .map(|((sequence, _), &wanted)| if chooses { sequence.draws(wanted) } else { None })
            .collect();
        // Models that do not choose do not look ahead either.
        let next = if chooses { self.next_of_prompts(&counts) } else { Vec::new() };
        let next = self.running.iter().zip(&counts).zip(next);
        let ahead: Vec<_> =
            next.filter_map(|((sequence, &count), next)| sequence.next_piece(count, next)).collect();
        let pass = Pass { pieces: &batch, draws: &draws, ahead: &ahead };
        let results = pass::run(&mut *self.model, &pass, &mut self.output);
        let is_fine = results.iter().all(Result::is_ok);

        let vocab_size = self.model.vocab_size();
        let (mut rest, mut tokens_left) = (self.output.logits.as_mut_slice(), self.output.chosen.as_slice());
        let mut computed = Vec::with_capacity(wanted.len());
        let in_batch = self.running.iter_mut().zip(&counts).filter(|(_, count)| **count > 0);
        for (((sequence, &count), (rows, draws)), result) in
            in_batch.zip(wanted.into_iter().zip(draws)).zip(results)
        {
            if let Err(message) = result {
                sequence.fail(Failure::Model(message));
                continue;
            }
            let (logits, others) = rest.split_at_mut(if draws.is_some() { 0 } else { rows * vocab_size });
            rest = others;
            let (chosen, others) = tokens_left.split_at(if draws.is_some() { rows } else { 0 });
            tokens_left = others;
            let chosen = draws.map(|_| chosen);
            let drafted = sequence.drafted();
            computed.push(Computed { sequence, count, logits, chosen, drafted, right: None });
        }
        let done = pass::sample(&*self.model, computed);

        // What was computed while the model changed is nobody else's.
        let is_shared = self.model.epoch() == self.epoch;
        for Computed { sequence, drafted, right, .. } in done {
            let Some(right) = right else { continue };
            sequence.speculation.note(drafted, right);
            self.counters.drafted += drafted as u64;
            self.counters.accepted += right as u64;
            if is_shared && (self.config.prefix_cache || sequence.group.is_some()) {
                sequence.share(&mut self.blocks, self.epoch);
            }
        }
        self.counters.steps += 1;
        self.counters.step_tokens += tokens as u64;
        self.counters.step_time += start.elapsed();
        if is_fine {
            self.counters.host_time += self.model.host_time();
            let kind = match (reads_prompts, has_drafts) {
                (true, _) => Kind::Reading,
                (_, true) => Kind::Drafting,
                _ => Kind::Decoding,
            };
            self.cost.note(tokens, kind, start.elapsed());
        }
    }

    fn publish(&mut self) {
        let [free, kept, held] = self.blocks.counts();
        (self.counters.free_blocks, self.counters.kept_blocks, self.counters.held_blocks) =
            (free, kept, held);
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = self.counters;
    }
}

impl Drop for Worker {
    /// However the thread ends, nobody waits for it afterwards.
    fn drop(&mut self) {
        self.queue.close();
    }
}
