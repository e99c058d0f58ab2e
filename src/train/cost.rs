//! What a model costs: to serve a token, to hold, and to train.
//!
//! Operations are those of matrix products and attention, a multiplication and an addition each counted as one, as the
//! field counts them (Chowdhery et al., arXiv 2204.02311, appendix B; norms, rotations and softmax are left out), but of
//! attention only what a causal model computes. The paper (arXiv 2502.01637, figure 1) compares models by the forward
//! pass of what runs on the accelerator: [`inference_flops`]. A look-up in the table costs no operations.

use serde::{Deserialize, Serialize};

use super::{Batch, Batches, Freeze, RunConfig, TrainError, unique_grams};
use crate::fgram::FgramSet;
use crate::model::{Config, FgramConfig};

/// The products of a forward pass, and for each of them two in the backward pass: by its weights and by its input.
const PRODUCTS: f64 = 3.0;

/// Training tokens whose f-grams are counted; a longer run's are taken from batches spread evenly over it.
const SAMPLED_TOKENS: usize = 1 << 22;

/// The costs of a model and of its run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Operations to serve one token that attends to `context` positions, itself included: the main model and its
    /// head. The same with a table and without.
    pub inference_flops: f64,
    /// Positions that this token attends to: the model's whole context.
    pub context: usize,
    /// Bytes of the main model's weights as they are stored: what an accelerator holds, `T` included.
    pub accelerator_bytes: u64,
    /// Bytes of the keys and values of one sequence of `context` positions, in the precision of the weights.
    pub kv_bytes: u64,
    /// Bytes of the table, rows and index: in the host's memory or on its disk. 0 for a baseline.
    pub table_bytes: u64,
    /// Operations of the whole run, forward and backward.
    pub training_flops: f64,
    /// Those among them that the f-gram model took.
    pub fgram_training_flops: f64,
    /// F-grams that the f-gram model embedded for each token trained on: every f-gram of a batch once.
    pub fgrams_per_token: f64,
}

/// How what is served is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBytes {
    /// Bytes of one of the main model's weights.
    pub weight: usize,
    /// Bytes of the table, rows and index; 0 for a baseline.
    pub table: u64,
}

/// What a run's batches hold, for each token trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Positions that a token attends to, itself included.
    pub attended: f64,
    /// Of a SCONE model.
    pub fgrams: FgramWork,
}

/// What the f-gram model reads in training, for each token trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FgramWork {
    /// F-grams, those of a batch each once.
    pub fgrams: f64,
    /// Their tokens.
    pub tokens: f64,
    /// Positions that these attend to, themselves included.
    pub attended: f64,
}

impl Costs {
    /// Of a run of `config` over `tokens` tokens.
    pub fn of_run(
        config: &RunConfig,
        vocab_size: usize,
        max_n: usize,
        tokens: u64,
        stored: StoredBytes,
        work: Work,
    ) -> Self {
        let (main, context) = (config.model_config(vocab_size), config.model.context);
        let trained = tokens as f64;
        // A frozen main model passes gradients on to its input, and has none of its weights.
        let products = if config.train.freeze == Some(Freeze::Main) { PRODUCTS - 1.0 } else { PRODUCTS };
        let main_flops = products
            * trained
            * (decoder_flops(&main, 1.0, work.attended) + product_flops(&main, vocab_size));
        let fgram = config.fgram_config(vocab_size, max_n);
        let fgram_flops = fgram.map_or(0.0, |fgram| PRODUCTS * trained * fgram_flops(&fgram, work.fgrams));
        Self {
            inference_flops: inference_flops(&main, context),
            context,
            accelerator_bytes: (stored.weight * main.parameters()) as u64,
            kv_bytes: (stored.weight * 2 * main.num_hidden_layers * main.kv_heads() * main.head() * context)
                as u64,
            table_bytes: stored.table,
            training_flops: main_flops + fgram_flops,
            fgram_training_flops: fgram_flops,
            fgrams_per_token: work.fgrams.fgrams,
        }
    }
}

impl Work {
    /// Counts what a run met in `passes` forward passes, in the batches that it trained on: in all of them, or in a run of
    /// more than four million tokens in some, spread evenly over it. `set` is `None` for a baseline.
    ///
    /// # Errors
    /// Where a shard is damaged.
    pub fn count(
        config: &RunConfig,
        batches: &Batches<'_>,
        set: Option<&FgramSet>,
        passes: u64,
    ) -> Result<Self, TrainError> {
        let size = config.train.batch;
        let most = (SAMPLED_TOKENS / (size * config.model.context)).max(1) as u64;
        let sampled = passes.min(most);
        let (mut fgrams, mut attended, mut trained) = (FgramWork::default(), 0.0, 0.0);
        for i in 0..sampled {
            let number = (u128::from(i) * u128::from(passes) / u128::from(sampled)) as u64;
            let mut batch = batches.shuffled(number, size)?;
            // From the set, not the dataset's tags, which may be another set's by now.
            batch.matches = set.map_or_else(Vec::new, |set| matches(&batch, set));
            if let Some(fgram) = config.fgram.as_ref().filter(|fgram| fgram.fallback > 0.0) {
                batch.fall_back(fgram.fallback, config.seed ^ number);
            }
            if set.is_some() {
                fgrams.add(&batch);
            }
            attended += batch.lengths.iter().map(|&n| triangle(n)).sum::<f64>();
            trained += batch.inputs.len() as f64;
        }
        Ok(Self { attended: attended / trained.max(1.0), fgrams: fgrams.a_token(trained) })
    }
}

/// Positions that all tokens of a sequence attend to together.
fn triangle(length: usize) -> f64 {
    (length * (length + 1)) as f64 / 2.0
}

impl FgramWork {
    fn a_token(self, trained: f64) -> Self {
        let share = |sum: f64| sum / trained.max(1.0);
        Self { fgrams: share(self.fgrams), tokens: share(self.tokens), attended: share(self.attended) }
    }

    fn add(&mut self, batch: &Batch) {
        let unique = unique_grams(batch, 0).grams;
        self.fgrams += unique.len() as f64;
        for i in 0..unique.len() {
            let n = unique.get(i).len();
            self.tokens += n as f64;
            self.attended += triangle(n);
        }
    }
}

/// The length of the longest match at each input, 1 where there is none, sequence by sequence.
fn matches(batch: &Batch, set: &FgramSet) -> Vec<u8> {
    let sequences = batch.sequences().map(|(inputs, _)| (inputs, 0));
    set.index().matches_of(sequences).into_iter().map(|found| found.map_or(1, |found| found.n)).collect()
}

/// Operations to serve one token that attends to `context` positions, itself included: the blocks and the head.
pub fn inference_flops(main: &Config, context: usize) -> f64 {
    decoder_flops(main, 1.0, context as f64) + product_flops(main, main.vocab_size)
}

/// Operations of a decoder's blocks over so many tokens, which attend to so many positions in all.
fn decoder_flops(config: &Config, tokens: f64, attended: f64) -> f64 {
    let (d, ffn) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.num_attention_heads * config.head(), config.kv_heads() * config.head());
    let weights = 2 * d * q + 2 * d * kv + 3 * d * ffn;
    // A score and its share of the mixed values take a head's features each.
    let attention = 2 * q;
    2.0 * config.num_hidden_layers as f64 * (weights as f64 * tokens + attention as f64 * attended)
}

/// Operations of one token's product from a decoder's width to so many outputs.
fn product_flops(config: &Config, outputs: usize) -> f64 {
    2.0 * config.hidden_size as f64 * outputs as f64
}

/// Operations of the f-gram model's forward pass for each token trained on.
fn fgram_flops(fgram: &FgramConfig, work: FgramWork) -> f64 {
    let projection = fgram.output_size.map_or(0.0, |d| product_flops(&fgram.decoder, d));
    // The last block is computed for each f-gram's last token; for the others only its keys and values.
    let config = &fgram.decoder;
    let others = Config { num_hidden_layers: config.num_hidden_layers - 1, ..config.clone() };
    let last = Config { num_hidden_layers: 1, ..config.clone() };
    let keys_and_values = 2.0 * product_flops(config, config.kv_heads() * config.head());
    decoder_flops(&others, work.tokens, work.attended)
        + decoder_flops(&last, work.fgrams, work.tokens)
        + (work.tokens - work.fgrams) * keys_and_values
        + work.fgrams * projection
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use super::super::{JointModel, Parameters};
    use super::*;

    const VOCABULARY: usize = 40;

    fn config(fgrams: &str) -> RunConfig {
        let mut config = RunConfig::example();
        config.model.hidden_size = 16;
        config.model.intermediate_size = 24;
        config.model.layers = 3;
        config.model.heads = 4;
        config.model.kv_heads = 2;
        config.model.context = 12;
        config.fgram.as_mut().unwrap().layers = 2;
        match (&mut config.fgram, fgrams) {
            (fgram, "none") => *fgram = None,
            (Some(fgram), "wider") => {
                (fgram.own_embedding, fgram.hidden_size) = (true, Some(32));
                (fgram.heads, fgram.intermediate_size) = (Some(8), Some(20));
            }
            (Some(fgram), kind) => {
                (fgram.own_embedding, fgram.hidden_size) = (kind == "own", (kind == "own").then_some(16));
            }
            (None, _) => unreachable!(),
        }
        config
    }

    fn parameters(config: &RunConfig) -> Parameters {
        let mut parameters = Parameters::new(1, 0.02, &candle_core::Device::Cpu);
        JointModel::create(config, VOCABULARY, 4, &mut parameters).unwrap();
        parameters
    }

    /// The operations of a part's real weights, matrix by matrix and position by position; each of `sequences` is so
    /// many tokens long.
    fn twin(parameters: &Parameters, part: &str, heads: (usize, usize), sequences: &[usize]) -> f64 {
        let (layers, features) = heads;
        let mut sum = 0.0;
        for (name, var) in parameters.iter() {
            let Some(name) = name.strip_prefix(part) else { continue };
            let &[outputs, inputs] = var.dims() else { continue };
            let times = match name {
                // The tied head; A_f has none.
                "/model.embed_tokens.weight" if part == "main" => sequences.iter().sum(),
                "/model.embed_tokens.weight" => 0,
                "/output_proj.weight" => sequences.len(),
                // A_f's last block: what is not of keys or values is of each f-gram's last token only.
                name if part == "fgram"
                    && name.starts_with(&format!("/model.layers.{}.", layers - 1))
                    && !name.contains("k_proj")
                    && !name.contains("v_proj") =>
                {
                    sequences.len()
                }
                _ => sequences.iter().sum::<usize>(),
            };
            sum += (2 * outputs * inputs * times) as f64;
        }
        for &length in sequences {
            for position in 0..length {
                let unread = part == "fgram" && position + 1 < length;
                for _before in 0..=position {
                    // Of all heads together: a score and a share of the values.
                    sum += ((layers - usize::from(unread)) * (2 * features + 2 * features)) as f64;
                }
            }
        }
        sum
    }

    #[test]
    fn operations_are_those_of_the_real_weights() {
        let inputs: Vec<u32> = (0..36).map(|i| i * i % 5).collect();
        let matches: Vec<u8> = (0..36).map(|i| 1 + (i % 12).min(i * 7 % 4) as u8).collect();
        let distinct: HashSet<&[u32]> = (0..36)
            .filter(|&i| matches[i] >= 2)
            .map(|i| &inputs[i + 1 - usize::from(matches[i])..=i])
            .collect();
        let lengths: Vec<usize> = distinct.iter().map(|gram| gram.len()).collect();
        assert!(lengths.len() < matches.iter().filter(|&&n| n >= 2).count(), "none occurs twice");
        let targets = Arc::new(inputs.clone());
        let batch = Batch { targets, inputs, matches, lengths: Arc::new(vec![12; 3]) };
        let mut work = FgramWork::default();
        work.add(&batch);
        let work = work.a_token(36.0);

        for kind in ["none", "shared", "own", "wider"] {
            let config = config(kind);
            let parameters = parameters(&config);
            let stored = StoredBytes { weight: 2, table: 0 };
            // Of windows of 12 tokens.
            let fgrams = if config.fgram.is_some() { work } else { FgramWork::default() };
            let work = Work { attended: 78.0 / 12.0, fgrams };
            let costs = Costs::of_run(&config, VOCABULARY, 4, 360, stored, work);
            let main = 30.0 * twin(&parameters, "main", (3, 16), &[12; 3]);
            let width = if kind == "wider" { 32 } else { 16 };
            let lengths = if kind == "none" { &[][..] } else { &lengths };
            let fgram = 30.0 * twin(&parameters, "fgram", (2, width), lengths);
            let close = |ours: f64, twin: f64| (ours - twin).abs() <= 1e-9 * twin;
            assert!(close(costs.fgram_training_flops, fgram), "{kind}: {costs:?}, not {fgram}");
            assert!(close(costs.training_flops, main + fgram), "{kind}: {costs:?}, not {main} + {fgram}");
            let mut frozen = config.clone();
            frozen.train.freeze = Some(Freeze::Main);
            let frozen = Costs::of_run(&frozen, VOCABULARY, 4, 360, stored, work);
            assert!(close(frozen.training_flops, main * 2.0 / 3.0 + fgram), "{kind}: {frozen:?}");
            // All of a window less all but its last token: the last token.
            let last = twin(&parameters, "main", (3, 16), &[12]) - twin(&parameters, "main", (3, 16), &[11]);
            assert!(close(costs.inference_flops, last), "{kind}: {costs:?}, not {last}");
            assert_eq!(costs.accelerator_bytes, 2 * parameters.count("main") as u64);
            assert_eq!(costs.kv_bytes, 3 * 12 * 2 * (8 + 8));
            let counted = config.fgram_config(VOCABULARY, 4).map_or(0, |fgram| fgram.parameters());
            assert_eq!(counted, parameters.count("fgram"), "{kind}");
        }
    }
}
