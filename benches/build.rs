//! How fast rows are made: f-grams a second through an f-gram model, and the share of the machine's matmul rate.
//!
//! `cargo bench --bench build`. The rate is the gemm crate's (candle's `matmul`) for 1024 x 1024 x 1024 on the same
//! threads, measured in turn with the rows; the FLOPs of a row are 2 a parameter of the blocks and token of its f-gram,
//! without attention. Beginnings that f-grams share are computed once, so a second share counts only the tokens that
//! are different as beginnings within the batch. Weights are random, f-grams those of a text with Zipf's distribution.

use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Tensor};
use scone::fgram::{FgramSet, Policy, rank_order};
use scone::model::embedding::rows_of;
use scone::model::{Config, FgramConfig, FgramModel};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 7;
const VOCABULARY: u32 = 8192;

fn text(len: usize) -> Vec<u32> {
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1_u64 << 24) as f64
    };
    (0..len).map(|_| f64::from(VOCABULARY - 1).powf(random() * random()) as u32).collect()
}

fn set() -> FgramSet {
    let text = text(400_000);
    let mut counts = HashMap::<&[u32], u64>::new();
    for n in 2..=5 {
        for ngram in text.windows(n) {
            *counts.entry(ngram).or_default() += 1;
        }
    }
    let mut ranked: Vec<_> = counts.into_iter().collect();
    ranked.sort_by(|a, b| rank_order((a.0, a.1), (b.0, b.1)));
    ranked.truncate(50_000);
    let policy = Policy { max_n: 5, special_tokens: vec![VOCABULARY - 1], tokenizer_sha256: "0".repeat(64) };
    FgramSet::from_ranked(policy, ranked).expect("n-grams of one text, ranked, are a set")
}

fn model(d: usize, ffn: usize, layers: usize, kv: usize, head: usize) -> (FgramModel, usize) {
    let decoder = Config {
        model_type: "llama".into(),
        hidden_size: d,
        intermediate_size: ffn,
        num_hidden_layers: layers,
        num_attention_heads: d / head,
        num_key_value_heads: Some(kv),
        head_dim: Some(head),
        vocab_size: VOCABULARY as usize,
        max_position_embeddings: 5,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        attention_bias: false,
        rope_scaling: None,
    };
    let mut matrices = 0;
    let config = FgramConfig { decoder, residual_output: true, own_embedding: false, output_size: None };
    let model = FgramModel::new(&config, &mut |_, shape| {
        matrices += if shape.len() == 2 { shape[0] * shape[1] } else { 0 };
        Ok(Tensor::randn(0f32, 0.02, shape, &Device::Cpu)?)
    });
    (model.and_then(|model| Ok(model.fixed()?)).expect("a model"), matrices)
}

fn time(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

fn main() {
    let set = set();
    let square = Tensor::randn(0f32, 1.0, (1024, 1024), &Device::Cpu).expect("a matrix");
    println!(
        "| d | layers | f-grams | tokens | of them different | f-grams/s | GFLOP/s | matmul | share | share of the different |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (d, ffn, layers, kv, head, len) in
        [(128, 384, 2, 2, 32, 8192), (512, 1408, 4, 8, 64, 8192), (1024, 2816, 4, 16, 64, 4096)]
    {
        let (model, matrices) = model(d, ffn, layers, kv, head);
        let tokens = Tensor::randn(0f32, 1.0, (VOCABULARY as usize, d), &Device::Cpu).expect("embeddings");
        let ranks: Vec<u32> = (0..len).map(|i| i * set.len() as u32 / len).collect();
        let grams: Vec<Vec<u32>> =
            ranks.iter().filter_map(|&rank| set.index().tokens(rank)).map(|gram| gram.to_vec()).collect();
        let total: usize = grams.iter().map(Vec::len).sum();
        let different: HashSet<&[u32]> =
            grams.iter().flat_map(|gram| (1..=gram.len()).map(|n| &gram[..n])).collect();
        let flops = (2 * matrices * total) as f64;
        let (mut rows, mut rate, mut share) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            const PRODUCTS: usize = 20;
            let matmul = time(|| {
                for _ in 0..PRODUCTS {
                    black_box(square.matmul(&square).expect("a product"));
                }
            });
            rate.push(PRODUCTS as f64 * 2.0 * 1024f64.powi(3) / matmul);
            rows.push(time(|| {
                black_box(rows_of(set.index(), &model, &tokens, &ranks).expect("rows"));
            }));
            share.push(flops / rows[rows.len() - 1] / rate[rate.len() - 1]);
        }
        let (rows, rate, share) = (median(rows), median(rate) / 1e9, median(share));
        let kept = different.len() as f64 / total as f64;
        println!(
            "| {d} | {layers} | {len} | {total} | {:.0} % | {:.0} | {:.0} | {rate:.0} | {share:.2} | {:.2} |",
            100.0 * kept,
            f64::from(len) / rows,
            flops / rows / 1e9,
            share * kept
        );
    }
}
