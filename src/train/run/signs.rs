use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Progress;
use crate::train::OptimizerConfig;

/// Updates that a new one is held against.
const WINDOW: usize = 100;
/// Updates before the first judgement of a loss.
const ENOUGH: usize = 50;
/// Deviations above the median that make a spike. Odd batches of well-behaved runs reach 10.
const SPIKE: f64 = 12.0;
/// The least rise above the median that is a spike, as a share of it: a loss may hardly vary at all.
const LEAST: f64 = 0.02;
/// Growth of the gradient's norm that is a sign. In runs that end well it stays below 1.5.
const GROWTH: f64 = 3.0;
/// The share of clipped updates that is a sign: the clip, not the learning rate, then sets the pace.
const CLIPPED: f64 = 0.5;

/// What may be wrong with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The loss of an update is far above those before it.
    LossSpike,
    /// Gradients have become much larger than they were.
    GradientGrowth,
    /// Most updates are clipped.
    Clipping,
    /// Far more f-grams never match in the validation split than their counts predict.
    DeadFgrams,
}

/// One line of `signs.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sign {
    /// After how many updates.
    pub(super) step: u64,
    /// What it is.
    pub(super) sign: Kind,
    /// What was measured.
    pub(super) value: f64,
    /// What it should have stayed below.
    pub(super) limit: f64,
    /// The same in words.
    pub(super) message: String,
}

/// Looks for signs of trouble in the updates as they come. Spikes are said once a window, the rest once a run.
pub(super) struct Watch {
    warmup: u64,
    clip: f64,
    losses: VecDeque<f64>,
    /// Norms after the warm-up, for in it they fall from large ones.
    norms: VecDeque<f64>,
    /// The lowest median of a window of norms so far.
    lowest: f64,
    spiked: Option<u64>,
    grown: bool,
    clipped: bool,
}

impl Watch {
    pub(super) fn new(config: &OptimizerConfig) -> Self {
        Self {
            warmup: config.warmup_steps,
            clip: config.clip,
            losses: VecDeque::new(),
            norms: VecDeque::new(),
            lowest: f64::INFINITY,
            spiked: None,
            grown: false,
            clipped: false,
        }
    }

    /// The signs that an update gives.
    pub(super) fn see(&mut self, progress: &Progress) -> Vec<Sign> {
        let mut signs = Vec::new();
        if let Some(loss) = progress.loss {
            signs.extend(self.see_loss(progress.step, loss));
            push(&mut self.losses, loss);
        }
        if progress.step > self.warmup {
            push(&mut self.norms, progress.gradient_norm);
            if self.norms.len() == WINDOW {
                signs.extend(self.see_growth(progress.step));
                signs.extend(self.see_clipping(progress.step));
            }
        }
        signs
    }

    fn see_loss(&mut self, step: u64, loss: f64) -> Option<Sign> {
        if self.losses.len() < ENOUGH || self.spiked.is_some_and(|before| step < before + WINDOW as u64) {
            return None;
        }
        let middle = median(self.losses.iter().copied());
        // 1.4826 times the median deviation is the standard deviation, where the noise is normal.
        let deviation = 1.4826 * median(self.losses.iter().map(|loss| (loss - middle).abs()));
        let limit = middle + (SPIKE * deviation).max(LEAST * middle);
        (loss > limit).then(|| {
            self.spiked = Some(step);
            let message = format!(
                "the loss jumped to {loss:.4}; the median of the {} updates before is {middle:.4}. If it does not come \
                 back, go back to an earlier checkpoint with a lower learning_rate",
                self.losses.len()
            );
            Sign { step, sign: Kind::LossSpike, value: loss, limit, message }
        })
    }

    fn see_growth(&mut self, step: u64) -> Option<Sign> {
        let now = median(self.norms.iter().copied());
        self.lowest = self.lowest.min(now);
        let limit = GROWTH * self.lowest;
        (now > limit && !self.grown).then(|| {
            self.grown = true;
            let message = format!(
                "gradients have grown: the median norm of the last {WINDOW} updates is {now:.3}, it was {:.3} before. A \
                 lower learning_rate or more weight_decay may be needed",
                self.lowest
            );
            Sign { step, sign: Kind::GradientGrowth, value: now, limit, message }
        })
    }

    fn see_clipping(&mut self, step: u64) -> Option<Sign> {
        let share = self.norms.iter().filter(|norm| **norm > self.clip).count() as f64 / WINDOW as f64;
        (share > CLIPPED && !self.clipped).then(|| {
            self.clipped = true;
            let message = format!(
                "{:.0} % of the last {WINDOW} updates were clipped to a norm of {}: the clip sets the pace now, not \
                 learning_rate",
                100.0 * share,
                self.clip
            );
            Sign { step, sign: Kind::Clipping, value: share, limit: CLIPPED, message }
        })
    }
}

fn push(window: &mut VecDeque<f64>, value: f64) {
    if window.len() == WINDOW {
        window.pop_front();
    }
    window.push_back(value);
}

/// The middle of numbers, of which there is at least one.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u64 = 600;

    fn config() -> OptimizerConfig {
        OptimizerConfig { warmup_steps: 50, clip: 1.0, ..OptimizerConfig::default() }
    }

    /// A run that goes well: the loss falls with some noise, norms fall from large ones to one half.
    fn calm(step: u64) -> Progress {
        let noise = ((step * 7919) % 101) as f64 / 101.0 - 0.5;
        Progress {
            step,
            tokens: step,
            loss: Some(4.0 + 4.0 * (-(step as f64) / 80.0).exp() + 0.1 * noise),
            validation_loss: None,
            learning_rate: 0.0,
            gradient_norm: 0.5 + 3.0 * (-(step as f64) / 20.0).exp() + 0.2 * noise,
            tokens_per_second: 0.0,
            corpora: Default::default(),
        }
    }

    fn signs(change: impl Fn(&mut Progress)) -> Vec<Sign> {
        let mut watch = Watch::new(&config());
        (1..=STEPS)
            .flat_map(|step| {
                let mut progress = calm(step);
                change(&mut progress);
                watch.see(&progress)
            })
            .collect()
    }

    fn found(signs: &[Sign]) -> Vec<(Kind, u64)> {
        signs.iter().map(|sign| (sign.sign, sign.step)).collect()
    }

    #[test]
    fn a_calm_run_gives_none() {
        assert_eq!(signs(|_| {}), []);
    }

    #[test]
    fn a_jump_of_the_loss_is_a_spike_once_however_long_it_lasts() {
        let jump = |progress: &mut Progress| {
            if (300..330).contains(&progress.step) || progress.step == 500 {
                progress.loss = progress.loss.map(|loss| loss + 2.0);
            }
        };
        let signs = signs(jump);
        assert_eq!(found(&signs), [(Kind::LossSpike, 300), (Kind::LossSpike, 500)]);
        assert!(signs.iter().all(|sign| sign.value > sign.limit && sign.message.contains("jumped")));
    }

    #[test]
    fn a_loss_that_hardly_varies_may_vary_a_little() {
        let flat = |by: f64| signs(move |p| p.loss = Some(if p.step == 200 { 2.0 + by } else { 2.0 }));
        assert_eq!(flat(0.03), []);
        assert_eq!(found(&flat(0.05)), [(Kind::LossSpike, 200)]);
    }

    #[test]
    fn norms_that_grow_are_said_once() {
        let grown = |by: f64| {
            signs(move |progress| {
                if progress.step > 300 {
                    progress.gradient_norm *= by;
                }
            })
        };
        assert_eq!(grown(1.5), []);
        // The medians are those of windows of which half has grown; the clip notices an update later.
        assert_eq!(found(&grown(5.0)), [(Kind::GradientGrowth, 350), (Kind::Clipping, 351)]);
    }

    #[test]
    fn clipping_of_most_updates_is_said_once_and_not_in_the_warm_up() {
        let clipped = |progress: &mut Progress, every: u64| {
            if progress.step <= 50 || progress.step.is_multiple_of(every) {
                progress.gradient_norm = 1.5;
            }
        };
        assert_eq!(signs(|progress| clipped(progress, 2)), [], "half of them are not most");
        let signs = signs(|progress| clipped(progress, 1));
        assert_eq!(found(&signs), [(Kind::Clipping, 150)]);
        assert!((signs[0].value - 1.0).abs() < 1e-12);
    }
}
