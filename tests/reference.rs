//! The transformer against candle-transformers' Llama on the same weights, and against itself cut into pieces.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tiny.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
mod tiny;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama;
use scone::model::{Model, ModelDirectory, Piece};
use scone::table::RowType;

struct Reference {
    model: llama::Llama,
    config: llama::Config,
}

impl Reference {
    fn load(directory: &ModelDirectory) -> Self {
        let c = directory.config();
        let config = llama::LlamaConfig {
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            vocab_size: c.vocab_size,
            num_hidden_layers: c.num_hidden_layers,
            num_attention_heads: c.num_attention_heads,
            num_key_value_heads: c.num_key_value_heads,
            rms_norm_eps: c.rms_norm_eps,
            rope_theta: c.rope_theta as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: c.max_position_embeddings,
            tie_word_embeddings: Some(true),
        }
        .into_config(false);
        let bytes = std::fs::read(directory.path().join("model.safetensors")).unwrap();
        let vb = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap();
        Self { model: llama::Llama::load(vb, &config).unwrap(), config }
    }

    /// The logits after every prefix of the embedded tokens `[n, d]`, one token at a time.
    fn logits(&self, x: &Tensor) -> Vec<Vec<f32>> {
        let mut cache = llama::Cache::new(true, DType::F32, &self.config, &Device::Cpu).unwrap();
        (0..x.dim(0).unwrap())
            .map(|i| {
                let row = x.i(i..=i).unwrap().unsqueeze(0).unwrap();
                let logits = self.model.forward_input_embed(&row, i, &mut cache).unwrap();
                logits.flatten_all().unwrap().to_vec1().unwrap()
            })
            .collect()
    }
}

fn piece(slot: usize, tokens: &[u32], past: usize) -> Piece<'_> {
    const SLOTS: [u32; 3] = [0, 1, 2];
    Piece { tokens, past, blocks: &SLOTS[slot..=slot], wanted: tokens.len() - past }
}

fn logits(model: &mut Model, pieces: &[Piece<'_>]) -> Vec<Vec<f32>> {
    model.forward(pieces).unwrap().to_vec2().unwrap()
}

fn assert_close(a: &[Vec<f32>], b: &[Vec<f32>], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference <= tolerance, "position {i}: logits differ by {difference}");
    }
}

/// Three texts of different lengths.
fn prompts(directory: &ModelDirectory) -> Vec<Vec<u32>> {
    let tokens = directory.tokenizer().encode(&tiny::text()).unwrap();
    vec![tokens[..50].to_vec(), tokens[70..77].to_vec(), tokens[100..131].to_vec()]
}

#[test]
fn baseline_logits_are_candle_transformers_alone_and_batched_prefill_and_decode() {
    let temporary = tempfile::tempdir().unwrap();
    tiny::write(temporary.path(), 1, RowType::F32);
    std::fs::remove_file(temporary.path().join("scone.json")).unwrap();
    let directory = ModelDirectory::open(temporary.path()).unwrap();
    let reference = Reference::load(&directory);
    let mut model = directory.load(None, 3, &Device::Cpu).unwrap();
    let table = directory.token_embedding(&Device::Cpu).unwrap();
    let prompts = prompts(&directory);
    let expected: Vec<_> = prompts
        .iter()
        .map(|tokens| {
            let ids = Tensor::new(tokens.as_slice(), &Device::Cpu).unwrap();
            reference.logits(&table.index_select(&ids, 0).unwrap())
        })
        .collect();
    for (tokens, expected) in prompts.iter().zip(&expected) {
        assert_close(&logits(&mut model, &[piece(1, tokens, 0)]), expected, 1e-4);
        assert_close(&model.score(&[tokens]).unwrap().to_vec2().unwrap(), expected, 1e-4);
        let decoded: Vec<_> =
            (0..tokens.len()).flat_map(|i| logits(&mut model, &[piece(2, &tokens[..=i], i)])).collect();
        assert_close(&decoded, expected, 1e-4);
    }
    let together: Vec<_> = prompts.iter().enumerate().map(|(slot, tokens)| piece(slot, tokens, 0)).collect();
    assert_close(&logits(&mut model, &together), &expected.concat(), 1e-4);
}

/// The rule, naively: the row of the longest f-gram that ends at each token, else the token's own.
fn embed_naively(directory: &ModelDirectory, tokens: &[u32]) -> Tensor {
    let set = tiny::fgrams(directory.tokenizer());
    let table = scone::table::Table::open(directory.table_path().unwrap()).unwrap();
    let embedding = directory.token_embedding(&Device::Cpu).unwrap();
    let rows: Vec<Tensor> = (0..tokens.len())
        .map(|i| {
            let longest = (2..=4.min(i + 1)).rev().find_map(|n| {
                let gram = &tokens[i + 1 - n..=i];
                (0..set.len() as u32).find(|&rank| set.tokens(rank).unwrap() == gram)
            });
            match longest {
                Some(rank) => Tensor::new(table.row(rank).unwrap(), &Device::Cpu).unwrap(),
                None => embedding.i(tokens[i] as usize).unwrap(),
            }
        })
        .collect();
    Tensor::stack(&rows, 0).unwrap()
}

#[test]
fn scone_logits_are_candle_transformers_on_replaced_embeddings() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = tiny::write(temporary.path(), 2, RowType::F32);
    let reference = Reference::load(&directory);
    let mut model = directory.load(None, 1, &Device::Cpu).unwrap();
    for tokens in prompts(&directory) {
        let expected = reference.logits(&embed_naively(&directory, &tokens));
        assert_close(&logits(&mut model, &[piece(0, &tokens, 0)]), &expected, 1e-4);
        let plain = directory.token_embedding(&Device::Cpu).unwrap();
        let ids = Tensor::new(tokens.as_slice(), &Device::Cpu).unwrap();
        let baseline = reference.logits(&plain.index_select(&ids, 0).unwrap());
        let last = tokens.len() - 1;
        let change =
            baseline[last].iter().zip(&expected[last]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(change > 0.01, "the f-grams change nothing: the test would pass without them");
    }
}

#[test]
fn scone_logits_do_not_depend_on_batch_or_chunks_bit_for_bit() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = tiny::write(temporary.path(), 3, RowType::Int8);
    let mut model = directory.load(None, 3, &Device::Cpu).unwrap();
    let prompts = prompts(&directory);
    let alone: Vec<_> = prompts.iter().map(|tokens| logits(&mut model, &[piece(0, tokens, 0)])).collect();
    for chunk in [1, 2, 3, 7] {
        let mut pieces_done: Vec<Vec<Vec<f32>>> = vec![Vec::new(); prompts.len()];
        let mut past = 0;
        while prompts.iter().any(|tokens| past < tokens.len()) {
            let live: Vec<usize> = (0..prompts.len()).filter(|&i| past < prompts[i].len()).collect();
            let pieces: Vec<_> = live
                .iter()
                .map(|&i| piece(i, &prompts[i][..(past + chunk).min(prompts[i].len())], past))
                .collect();
            let mut rows = logits(&mut model, &pieces).into_iter();
            for (&i, piece) in live.iter().zip(&pieces) {
                pieces_done[i].extend(rows.by_ref().take(piece.tokens.len() - past));
            }
            past += chunk;
        }
        assert_eq!(pieces_done, alone, "chunks of {chunk}");
    }
}
