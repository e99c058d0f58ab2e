//! Sequences of real text in a model's cache of keys and values, for the benchmarks that time forward passes.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use scone::engine::Forward;
use scone::kernels::Pool;
use scone::model::{Model, ModelDirectory, Piece, Runtime};
use scone::table::Placement;

/// Tokens of a pass that fills the cache.
const CHUNK: usize = 512;

/// Opens a model as a server would, with its own table, if it has one, placed there, and room for so many sequences of a context of at
/// most 4096, and the tokens of a text.
pub(crate) fn open(model: &Path, placement: Placement, sequences: usize) -> (Model, Vec<u32>) {
    let directory = ModelDirectory::open(model).expect("a model");
    let text = std::fs::read_to_string("examples/sotu/held-out.txt").expect("a text");
    let tokens = directory.tokenizer().encode(&text).expect("its tokens");
    let pool = Pool::new(rayon::current_num_threads()).expect("threads");
    let positions = sequences * directory.config().max_position_embeddings.min(4096);
    let mut runtime = Runtime::new(Arc::new(pool), positions);
    runtime.kv_type = directory.kv_type(None);
    let table = directory.live_table(None, placement, &mut |_, _| ()).expect("a table");
    (directory.load_with(table, &runtime).expect("a model"), tokens)
}

/// All rows in memory.
#[allow(dead_code, reason = "not every benchmark leaves it at that")]
pub(crate) const RAM: Placement = Placement::Ram { lock: false, huge_pages: false };

/// Sequences of one length, each a part of the text and the owner of its blocks.
pub(crate) struct Sequences {
    tokens: Vec<Vec<u32>>,
    blocks: Vec<Vec<u32>>,
    logits: Vec<f32>,
}

impl Sequences {
    /// `count` sequences of up to `len` tokens. Those of another `round` are other parts of the text.
    pub(crate) fn new(model: &impl Forward, text: &[u32], count: usize, len: usize, round: usize) -> Self {
        assert!(len <= model.context(), "{len} tokens are more than the model's context");
        let each = len.div_ceil(model.block_tokens());
        assert!(
            count * each <= model.blocks(),
            "the cache is too small for {count} sequences of {len} tokens"
        );
        let start = |i: usize| (round * count + i) * 61 % text.len();
        let tokens = (0..count).map(|i| text.iter().cycle().skip(start(i)).take(len).copied().collect());
        // As if all had grown at the same time: no sequence's blocks lie side by side.
        let blocks = (0..count).map(|i| (0..each).map(|block| (block * count + i) as u32).collect());
        Self { tokens: tokens.collect(), blocks: blocks.collect(), logits: Vec::new() }
    }

    /// Computes the tokens from `past` to `len` of each sequence, and the logits of the last, in one pass. Returns the
    /// seconds that it took.
    pub(crate) fn pass(&mut self, model: &mut impl Forward, past: usize, len: usize) -> f64 {
        let pieces = self.tokens.iter().zip(&self.blocks);
        let pieces: Vec<_> = pieces
            .map(|(tokens, blocks)| Piece { tokens: &tokens[..len], past, blocks, wanted: 1 })
            .collect();
        let start = Instant::now();
        Forward::forward(model, &pieces, &mut self.logits).expect("a pass");
        start.elapsed().as_secs_f64()
    }

    /// Computes the first `len` tokens of each sequence, a few at a time.
    pub(crate) fn fill(&mut self, model: &mut impl Forward, len: usize) {
        let step = (CHUNK / self.tokens.len()).max(1);
        for past in (0..len).step_by(step) {
            self.pass(model, past, len.min(past + step));
        }
    }
}
