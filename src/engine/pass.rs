use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::sequence::Sequence;
use super::{Failure, Forward, Piece, Score, score};
use crate::model::{Draw, Pass};

/// What a pass gives: logits, or of pieces that have draws the tokens; kept for its memory.
#[derive(Default)]
pub(super) struct Output {
    pub(super) logits: Vec<f32>,
    pub(super) chosen: Vec<u32>,
}

/// Runs one forward pass, with draws, or None, for each piece. If it fails, each piece is run alone, so that only those fail
/// that do so by themselves. Returns for each piece what it failed with; `output` is that of the others. Of pieces that have
/// draws it has tokens alone.
pub(super) fn run(model: &mut dyn Forward, pass: &Pass<'_>, output: &mut Output) -> Vec<Result<(), String>> {
    let Pass { pieces, draws, .. } = *pass;
    let Err(message) = try_run(model, pass, output) else { return vec![Ok(()); pieces.len()] };
    tracing::error!("{message}");
    output.logits.clear();
    output.chosen.clear();
    if pieces.len() == 1 {
        return vec![Err(message)];
    }
    let mut own = Output::default();
    let mut alone = |(piece, draws): (&Piece<'_>, &Option<Vec<Draw>>)| {
        let draws = std::slice::from_ref(draws);
        try_run(model, &Pass { draws, ..Pass::of(std::slice::from_ref(piece)) }, &mut own)?;
        output.logits.extend_from_slice(&own.logits);
        output.chosen.extend_from_slice(&own.chosen);
        Ok(())
    };
    pieces.iter().zip(draws).map(&mut alone).collect()
}

fn try_run(model: &mut dyn Forward, pass: &Pass<'_>, output: &mut Output) -> Result<(), String> {
    let Output { logits, chosen } = output;
    let chooses = model.chooses();
    let forward = || match chooses {
        true => model.forward_choosing(pass, logits, chosen),
        false => model.forward(pass.pieces, logits),
    };
    catch_unwind(AssertUnwindSafe(forward))
        .map_err(|panic| format!("the model panicked: {}", panic_message(&*panic)))?
        .map_err(|error| format!("the model failed: {error}"))?;
    if !chooses {
        chosen.clear();
    }
    let wanted = |kind: bool| {
        let of_kind = pass.pieces.iter().zip(pass.draws).filter(|(_, draws)| draws.is_some() == kind);
        of_kind.map(|(piece, _)| piece.wanted).sum::<usize>()
    };
    let (rows, tokens) = (wanted(false) * model.vocab_size(), wanted(true));
    if logits.len() == rows && chosen.len() == tokens {
        return Ok(());
    }
    let given = format!("{} logits and {} tokens", logits.len(), chosen.len());
    Err(format!("the model failed: it gave {given} where {rows} and {tokens} were wanted"))
}

/// A sequence of a pass that went well.
pub(super) struct Computed<'a> {
    pub(super) sequence: &'a mut Sequence,
    /// How many of its tokens were computed, without drafts.
    pub(super) count: usize,
    pub(super) logits: &'a mut [f32],
    /// In place of logits, the token of each position.
    pub(super) chosen: Option<&'a [u32]>,
    /// How many drafts were behind them.
    pub(super) drafted: usize,
    /// How many of the drafts were right, once that is known; None if the sequence failed.
    pub(super) right: Option<usize>,
}

/// Samples, and tells the receivers. What goes wrong in a sequence ends that sequence.
pub(super) fn sample<'a>(model: &dyn Forward, computed: Vec<Computed<'a>>) -> Vec<Computed<'a>> {
    let vocab_size = model.vocab_size();
    let mut scores = score_prompts(model, &computed, vocab_size).into_iter();
    let tasks: Vec<_> = computed
        .into_iter()
        .map(|one| {
            let count = one.sequence.to_score(one.count).map_or(0, |(tokens, _)| tokens.len());
            // All of them before the first error ends the collecting.
            let own: Vec<_> = scores.by_ref().take(count).collect();
            Mutex::new((one, Some(own.into_iter().collect::<Result<Vec<_>, String>>())))
        })
        .collect();
    model.parallel(tasks.len(), &|i| {
        let mut task = tasks[i].lock().unwrap_or_else(PoisonError::into_inner);
        let (one, scores) = &mut *task;
        let Some(scores) = scores.take() else { return };
        let result = contain(|| {
            one.sequence
                .advance(one.count, scores?, one.logits, one.chosen, vocab_size)
                .map_err(|error| error.to_string())
        });
        match result {
            Ok(right) => one.right = Some(right),
            Err(message) => one.sequence.fail(Failure::Model(message)),
        }
    });
    tasks.into_iter().map(|task| task.into_inner().unwrap_or_else(PoisonError::into_inner).0).collect()
}

/// The log-probabilities that are asked for of prompts, in order: a task each, for a chunk may have many and all belong to
/// one sequence.
fn score_prompts(
    model: &dyn Forward,
    computed: &[Computed<'_>],
    vocab_size: usize,
) -> Vec<Result<Option<Score>, String>> {
    let rows: Vec<(u32, usize, &[f32])> = computed
        .iter()
        .filter_map(|one| Some((one, one.sequence.to_score(one.count)?)))
        .flat_map(|(one, (tokens, top))| {
            let rows = one.logits.chunks_exact(vocab_size);
            tokens.iter().zip(rows).map(move |(&token, row)| (token, top, row))
        })
        .collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let scores: Vec<OnceLock<_>> = rows.iter().map(|_| OnceLock::new()).collect();
    model.parallel(rows.len(), &|i| {
        let (token, top, row) = rows[i];
        let _ = scores[i].set(contain(|| score(row, token, top).map_err(|error| error.to_string())));
    });
    let missing = || Err("the log-probabilities were not computed".to_owned());
    scores.into_iter().map(|score| score.into_inner().unwrap_or_else(missing).map(Some)).collect()
}

/// Turns a panic into an error.
fn contain<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = format!("sampling panicked: {}", panic_message(&*panic));
        tracing::error!("{message}");
        Err(message)
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    match panic.downcast_ref::<&str>() {
        Some(message) => message,
        None => panic.downcast_ref::<String>().map_or("no message", String::as_str),
    }
}
