//! The executor for GPUs, run by the emulator or on a real GPU, against the one for CPUs: logits of ragged batches of prompts and decoding
//! sequences, of several shapes and encodings, recorded and not, and of the shipped model with its table.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};

use crate::gpu::{Gpu, Type, ops, testing};
use crate::kernels::{Encoding, Pool};
use crate::model::ops::gpu::on_gpu;
use crate::model::{
    Checkpoint, Config, Draw, Fgrams, Model, ModelDirectory, NO_TOKEN, Pass, Piece, Runtime, WeightType,
    write_weights,
};
use crate::table::{Contents, RowFormat, RowType, Table, TableWriter};

const VOCABULARY: usize = 96;

/// A config.json of this type, with these fields besides the usual ones.
fn config(model_type: &str, extra: &str) -> Config {
    let text = format!(
        r#"{{"model_type": "{model_type}", "vocab_size": {VOCABULARY}, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 640, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0 {extra}}}"#
    );
    Config::parse(&text).unwrap()
}

/// Random weights of a shape, written as `weights`.
fn checkpoint(config: &Config, weights: WeightType, directory: &Path) -> Checkpoint {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
    let (d, ffn, head) = (config.hidden_size, config.intermediate_size, config.head());
    let (q, kv) = (config.num_attention_heads * head, config.kv_heads() * head);
    let mut all = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let (around, spread) = if name.ends_with("norm.weight") { (1.0, 0.2) } else { (0.0, 0.3) };
        let numbers: Vec<f32> =
            (0..shape.iter().product()).map(|_| around + spread * (rng.random::<f32>() - 0.5)).collect();
        all.insert(name, Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap());
    };
    add("model.embed_tokens.weight".into(), &[VOCABULARY, d]);
    add("model.norm.weight".into(), &[d]);
    if !config.tie_word_embeddings {
        add("lm_head.weight".into(), &[VOCABULARY, d]);
    }
    for i in 0..config.num_hidden_layers {
        let mut add = |part: &str, shape: &[usize]| add(format!("model.layers.{i}.{part}"), shape);
        for (part, shape) in [
            ("self_attn.q_proj.weight", [q, d]),
            ("self_attn.k_proj.weight", [kv, d]),
            ("self_attn.v_proj.weight", [kv, d]),
            ("self_attn.o_proj.weight", [d, q]),
            ("mlp.gate_proj.weight", [ffn, d]),
            ("mlp.up_proj.weight", [ffn, d]),
            ("mlp.down_proj.weight", [d, ffn]),
        ] {
            add(part, &shape);
        }
        add("input_layernorm.weight", &[d]);
        add("post_attention_layernorm.weight", &[d]);
        if config.qkv_bias() {
            for (part, len) in [("q", q), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{part}_proj.bias"), &[len]);
            }
        }
        if config.output_bias() {
            add("self_attn.o_proj.bias", &[d]);
        }
        if config.qk_norm() {
            add("self_attn.q_norm.weight", &[head]);
            add("self_attn.k_norm.weight", &[head]);
        }
    }
    let path = directory.join("model.safetensors");
    write_weights(&path, &all, weights).unwrap();
    Checkpoint::open(directory).unwrap()
}

pub(super) fn runtime(positions: usize, dtype: Option<Encoding>, device: &Device) -> Runtime {
    Runtime { dtype, device: device.clone(), ..Runtime::new(Arc::new(Pool::new(1).unwrap()), positions) }
}

/// Steps of three sequences, some of which read while others decode; then all decode, alone and together.
fn steps() -> Vec<Vec<(usize, usize)>> {
    // Sequence and how many tokens of it.
    let mut steps = vec![vec![(0, 20)], vec![(1, 3), (0, 1), (2, 37)], vec![(2, 70), (1, 9)]];
    steps.extend((0..3).map(|_| vec![(0, 1), (1, 1), (2, 1)]));
    steps.extend((0..3).map(|_| vec![(1, 1)]));
    // Past a chunk of positions.
    steps.push(vec![(2, 160)]);
    steps.extend((0..3).map(|_| vec![(0, 1), (2, 1)]));
    // Drafts: few rows of a sequence, all of whose logits are wanted.
    steps.push(vec![(0, 3), (1, 2)]);
    steps
}

/// Three sequences of chance.
fn sequences() -> Vec<Vec<u32>> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    (0..3).map(|_| (0..300).map(|_| rng.random_range(1..VOCABULARY as u32)).collect()).collect()
}

/// The logits of all steps.
pub(super) fn run(model: &mut Model, tokens: &[Vec<u32>], steps: &[Vec<(usize, usize)>]) -> Vec<f32> {
    // The sequences' blocks lie between each other's.
    let blocks: Vec<Vec<u32>> = (0..3).map(|i| (0..19).map(|n| 3 * n + i).collect()).collect();
    let (mut past, mut all, mut logits) = ([0; 3], Vec::new(), Vec::new());
    for step in steps {
        let pieces: Vec<Piece<'_>> = step
            .iter()
            .map(|&(i, new)| {
                let wanted = if new < 4 { new } else { usize::from(i != 2) };
                let (from, end) = (past[i], past[i] + new);
                past[i] = end;
                Piece { tokens: &tokens[i][..end], past: from, blocks: &blocks[i], wanted }
            })
            .collect();
        model.forward(&pieces, &mut logits).unwrap();
        all.extend_from_slice(&logits);
    }
    all
}

/// That of some sequences only the likeliest tokens are given, and of the others logits.
fn choose(model: &mut Model) {
    let (tokens, vocabulary) = (sequences(), model.config().vocab_size);
    let blocks: Vec<Vec<u32>> = (0..3).map(|i| vec![2 * i, 2 * i + 1]).collect();
    let piece = |i: usize, wanted| Piece { tokens: &tokens[i][..20], past: 0, blocks: &blocks[i], wanted };
    let (pieces, mut all) = ([piece(0, 2), piece(1, 1), piece(2, 3)], Vec::new());
    model.forward(&pieces, &mut all).unwrap();
    let rows: Vec<&[f32]> = all.chunks_exact(vocabulary).collect();
    let (mut logits, mut chosen) = (Vec::new(), Vec::new());
    let likeliest_of = |count| Some(vec![Draw::LIKELIEST; count]);
    let draws = [likeliest_of(2), None, likeliest_of(3)];
    let pass = Pass { draws: &draws, ..Pass::of(&pieces) };
    model.forward_choosing(&pass, &mut logits, &mut chosen).unwrap();
    assert_eq!(logits, rows[2]);
    let likeliest =
        |row: &&[f32]| (0..vocabulary).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
    let expected: Vec<u32> = [0, 1, 3, 4, 5].map(|row| likeliest(&rows[row])).to_vec();
    assert_eq!(chosen, expected);
}

/// Steps of one row a sequence, which are recorded, draw as the definition has it, each time otherwise.
fn draw(model: &mut Model) {
    let (tokens, vocabulary) = (sequences(), model.config().vocab_size);
    let blocks: Vec<Vec<u32>> = (0..3).map(|i| vec![2 * i, 2 * i + 1]).collect();
    let pieces = |end: usize, past| {
        let piece = |i: usize| Piece { tokens: &tokens[i][..end], past, blocks: &blocks[i], wanted: 1 };
        [piece(0), piece(1), piece(2)]
    };
    let (mut logits, mut chosen) = (Vec::new(), Vec::new());
    model.forward(&pieces(20, 0), &mut logits).unwrap();
    let cuts = [(1.0, 0, 0.0), (0.7, 0, 0.0), (1.0, 5, 0.0), (1.0, 0, 0.3), (0.9, 20, 0.01)];
    for past in 20..28 {
        model.forward(&pieces(past + 1, past), &mut logits).unwrap();
        let drawn = |i: usize| {
            let (top_p, top_k, min_p) = cuts[(past + i) % cuts.len()];
            let uniform = ((past * 7 + i * 3) % 11) as f64 / 11.0;
            Draw { temperature: 0.2 + 0.4 * i as f64, top_p, top_k, min_p, uniform }
        };
        let draws = [0, 1, 2].map(|i| Some(vec![drawn(i)]));
        // Again: the same positions are written with what is there.
        let (pieces, draws) = (pieces(past + 1, past), draws.as_slice());
        let pass = Pass { draws, ..Pass::of(&pieces) };
        model.forward_choosing(&pass, &mut Vec::new(), &mut chosen).unwrap();
        for (i, row) in logits.chunks_exact(vocabulary).enumerate() {
            let Draw { temperature, top_p, top_k, min_p, uniform } = drawn(i);
            let draw = ops::Draw {
                scale: (1.0 / temperature) as f32,
                min_p: min_p as f32,
                top_p: top_p as f32,
                uniform: uniform as f32,
                top_k: top_k as u32,
            };
            is_where_the_definition_has_it(chosen[i], row, draw);
        }
    }
}

/// The largest difference, as a share of the largest logit.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|x| x.is_finite()));
    let largest = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    found.iter().zip(expected).fold(0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

#[test]
fn logits_are_those_of_the_cpu() {
    let tied = r#", "tie_word_embeddings": true"#;
    for (model_type, extra, weights, dtype, tolerance) in [
        ("llama", "", WeightType::F32, None, 1e-4),
        ("llama", tied, WeightType::Bf16, None, 1e-2),
        ("llama", "", WeightType::F16, None, 2e-3),
        ("qwen2", tied, WeightType::F32, None, 1e-4),
        ("qwen3", r#", "head_dim": 24"#, WeightType::F32, None, 1e-4),
        ("llama", r#", "attention_bias": true"#, WeightType::F32, None, 1e-4),
        ("llama", tied, WeightType::F32, Some(Encoding::Q8_0), 2e-2),
        ("llama", "", WeightType::F32, Some(Encoding::Q4_0), 2e-2),
    ] {
        let (config, directory) = (config(model_type, extra), tempfile::tempdir().unwrap());
        let checkpoint = checkpoint(&config, weights, directory.path());
        let open = |device: &Device| {
            Model::new(config.clone(), &checkpoint, Fgrams::None, &runtime(57 * 16, dtype, device)).unwrap()
        };
        let expected = run(&mut open(&Device::Cpu), &sequences(), &steps());
        let mut on_gpu = on_gpu(open);
        let found = run(&mut on_gpu, &sequences(), &steps());
        let apart = difference(&found, &expected);
        assert!(apart < tolerance, "{model_type} {extra} {weights:?} {dtype:?}: logits differ by {apart}");
        assert!(on_gpu.recorded_steps() >= 1, "no step was recorded");
        choose(&mut on_gpu);
        draw(&mut on_gpu);
    }
}

#[test]
fn the_shipped_model_reads_its_table_there_too() {
    let directory = ModelDirectory::open(Path::new("model_cards/default")).unwrap();
    let steps = [
        vec![(0, 60)],
        vec![(1, 12), (0, 1)],
        vec![(0, 1), (1, 1)],
        vec![(0, 1), (1, 1)],
        vec![(0, 1), (1, 1)],
    ];
    let open =
        |device: &Device| directory.load(None, &runtime(57 * 16, Some(Encoding::F32), device)).unwrap();
    let text = "It was the best of times, and I was not sure that he had been there at all; but as soon as the door was \
                shut, the old man said that he would not go back to the house, for it was one of those nights in which \
                there is nothing to be seen. At the end of the day they went out of the room, and she looked at him.";
    let tokens = directory.tokenizer().encode(text).unwrap();
    let tokens = [tokens.clone(), tokens[9..].to_vec(), Vec::new()];
    let expected = run(&mut open(&Device::Cpu), &tokens, &steps);
    let mut on_gpu = on_gpu(open);
    let found = run(&mut on_gpu, &tokens, &steps);
    let hits = on_gpu.embedding().table().unwrap().metrics().snapshot();
    assert!(difference(&found, &expected) < 1e-4, "{}", difference(&found, &expected));
    assert!(hits.hit_rate > 0.3, "{hits:?}");
}

/// The first f-gram that decoding meets moves what the host gives a step: those that were recorded before are of no use then.
#[test]
fn what_was_recorded_is_forgotten_where_memory_moves() {
    let directory = ModelDirectory::open(Path::new("model_cards/default")).unwrap();
    let open =
        |device: &Device| directory.load(None, &runtime(57 * 16, Some(Encoding::F32), device)).unwrap();
    let tokens = directory.tokenizer().encode(" of the house of the man").unwrap();
    let tokens = [tokens.clone(), tokens[1..].to_vec(), tokens[2..].to_vec()];
    // No f-gram ends at a text's first token.
    let steps: Vec<_> = [0, 1, 2].into_iter().chain([0, 0, 0]).map(|i| vec![(i, 1)]).collect();
    let expected = run(&mut open(&Device::Cpu), &tokens, &steps);
    let mut on_gpu = on_gpu(open);
    let found = run(&mut on_gpu, &tokens, &steps);
    assert!(difference(&found, &expected) < 1e-4, "{}", difference(&found, &expected));
    assert!(
        on_gpu.recorded_steps() == 1
            && on_gpu.embedding().table().unwrap().metrics().snapshot().hit_rate > 0.0
    );
}

/// The shipped table with other rows.
fn other_rows(table: &Table, path: &Path) {
    let format = RowFormat::packed(RowType::Int8, table.dim());
    let mut writer = TableWriter::open(path, format, Contents::of_table(table), table.identity()).unwrap();
    let mut rows = vec![0.0; 50_000 * table.dim()];
    for from in (0..table.len()).step_by(50_000) {
        let ranks: Vec<u32> = (from..table.len().min(from + 50_000)).map(|rank| rank as u32).collect();
        let some = &mut rows[..ranks.len() * table.dim()];
        table.gather(&ranks, some).unwrap();
        some.iter_mut().for_each(|x| *x *= -0.5);
        writer.push(some).unwrap();
    }
    writer.finish().unwrap();
}

/// Prompts read in pieces, with more and less of what comes next brought ahead: the same logits to the bit, whatever was brought,
/// also where the table is exchanged for one with other rows in between.
#[test]
fn rows_that_were_brought_ahead_are_those_of_the_table() {
    type Expects = fn(usize) -> &'static [usize];
    let directory = ModelDirectory::open(Path::new("model_cards/default")).unwrap();
    let text = "At the end of the day he said that there was a man at the door of the house, and that it was one of the \
                most of all those who had been in the room for the first time in the middle of the night.";
    let tokens = directory.tokenizer().encode(text).unwrap();
    let (here, there) = tokens.split_at(tokens.len() / 2);
    let all_blocks: [Vec<u32>; 2] = [(0..8).collect(), (8..16).collect()];
    let parts = here.len().min(there.len()) / 5;
    let past = |i: usize, part: usize| ([4, 5][i] * part).min([here, there][i].len() - 1);
    let piece = |i: usize, part: usize| Piece {
        tokens: &[here, there][i][..past(i, part + 1)],
        past: past(i, part),
        blocks: &all_blocks[i],
        // Of the last part alone: the host goes on while the GPU still computes the others.
        wanted: usize::from(part + 1 == parts),
    };
    let mut model =
        on_gpu(|device| directory.load(None, &runtime(256, Some(Encoding::F32), device))).unwrap();
    let live = Arc::clone(model.embedding().live_table().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let (first, second) = (live.get().path().to_owned(), scratch.path().join("table"));
    other_rows(&live.get(), &second);
    let mut read = |expects: Expects, exchanged_after: usize| {
        live.reload(Some(&first)).unwrap();
        let mut logits = Vec::new();
        let counts = |model: &Model| {
            (live.get().metrics().snapshot().positions.iter().sum::<u64>(), model.rows_taken())
        };
        let (positions, taken) = counts(&model);
        for part in 0..parts {
            let ahead: Vec<Piece<'_>> = expects(part).iter().map(|&i| piece(i, part + 1)).collect();
            let pieces = [piece(0, part), piece(1, part)];
            let pass = Pass { ahead: &ahead, ..Pass::of(&pieces) };
            model.forward_choosing(&pass, &mut logits, &mut Vec::new()).unwrap();
            if part == exchanged_after {
                live.reload(Some(&second)).unwrap();
            }
        }
        let now = counts(&model);
        (logits, now.0 - positions, now.1 - taken)
    };
    let never = usize::MAX;
    let [(expected, positions, none), (exchanged, ..)] = [never, 1].map(|after| read(|_| &[], after));
    assert!(parts > 3 && none == 0 && positions > 0, "{parts} {none} {positions}");
    assert!(expected != exchanged, "the exchange changes nothing");
    let all: [(&str, Expects); 3] =
        [("both", |_| &[0, 1]), ("one", |_| &[1]), ("in turns", |part| [&[][..], &[1], &[0]][part % 3])];
    for (what, expects) in all {
        let (found, again, taken) = read(expects, never);
        assert!(found == expected, "{what}: other logits");
        assert!(taken > 0, "{what}: no row was brought that was needed");
        assert_eq!(again, positions, "{what}: what is expected does not count as looked up");
        let (found, ..) = read(expects, 1);
        assert!(found == exchanged, "{what}: other logits where the table is exchanged");
    }
}

#[test]
fn what_there_is_no_memory_for_is_named() {
    let (config, directory) = (config("llama", ""), tempfile::tempdir().unwrap());
    let checkpoint = checkpoint(&config, WeightType::F32, directory.path());
    let open = |device: &Device| {
        Model::new(config.clone(), &checkpoint, Fgrams::None, &runtime(1 << 34, None, device))
    };
    let model = on_gpu(open);
    let error = model.err().unwrap().to_string();
    assert!(error.contains("keys and values"), "{error}");
}

/// Every packed encoding: products of few rows, and its numbers one by one, against the decoder of the CPU.
#[test]
fn packed_weights_are_read_as_on_the_cpu() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    let gpu = &*testing::gpus()[0];
    let (inputs, outputs, rows) = (512, 11, 5);
    for (encoding, packing) in [
        (Encoding::Q8_0, ops::Packing::Q8_0),
        (Encoding::Q4_0, ops::Packing::Q4_0),
        (Encoding::Q4_1, ops::Packing::Q4_1),
        (Encoding::Q4K, ops::Packing::Q4K),
        (Encoding::Q6K, ops::Packing::Q6K),
    ] {
        // Any bytes are a weight, but for scales that are no numbers.
        let mut bytes: Vec<u8> =
            (0..encoding.bytes(inputs * outputs).unwrap()).map(|_| rng.random()).collect();
        for block in bytes.chunks_exact_mut(encoding.block_bytes()) {
            let scales = if encoding == Encoding::Q6K { [208, 208] } else { [0, 2] };
            let mut set = |at: usize| {
                let scale = half::f16::from_f32(rng.random::<f32>() * 0.02 - 0.01);
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            };
            set(scales[0]);
            if matches!(encoding, Encoding::Q4_1 | Encoding::Q4K) {
                set(scales[1]);
            }
        }
        let mut numbers = vec![0.0; inputs * outputs];
        encoding.decode(&bytes, &mut numbers);
        let (weight, unpacked) = (gpu.alloc(bytes.len()).unwrap(), gpu.alloc(2 * numbers.len()).unwrap());
        gpu.upload(&bytes, weight.of(Type::U8)).unwrap();
        let packed = (weight.of(Type::U8), packing);
        ops::unpack(gpu, packed, unpacked.of(Type::Bf16), inputs).unwrap();
        let rounded: Vec<f32> = numbers.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        assert_eq!(testing::read(gpu, unpacked.of(Type::Bf16)), rounded, "{encoding:?}");

        let x: Vec<f32> =
            (0..rows * inputs).map(|_| half::bf16::from_f32(rng.random::<f32>() - 0.5).to_f32()).collect();
        // Rows further apart than they are wide.
        let (xs, y, stride) = (testing::numbers(gpu, &x, Type::Bf16), gpu.alloc(4 * rows * 20).unwrap(), 20);
        gpu.zero(y.of(Type::F32)).unwrap();
        let sizes = [rows, inputs, outputs];
        let to = (y.of(Type::F32), stride);
        ops::few_rows(gpu, xs.of(Type::Bf16), (packed.0, Some(packing)), to, sizes).unwrap();
        let found = testing::read(gpu, y.of(Type::F32));
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            for (output, w) in numbers.chunks_exact(inputs).enumerate() {
                let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x * w)).sum();
                let apart = (f64::from(found[row * stride + output]) - expected).abs();
                assert!(apart < 1e-3, "{encoding:?}: {} instead of {expected}", found[row * stride + output]);
            }
            assert!(found[row * stride + outputs..][..stride - outputs].iter().all(|x| *x == 0.0));
        }
    }
}

/// The tokens that the kernel chooses from rows of n logits.
fn chosen(gpu: &dyn Gpu, x: &[f32], draws: &[ops::Draw], n: usize) -> Vec<u32> {
    let numbers: Vec<u32> = draws.iter().flat_map(|draw| draw.numbers()).collect();
    let (x, draws) = (testing::numbers(gpu, x, Type::F32), testing::indices(gpu, &numbers));
    let places = testing::indices(gpu, &vec![9; draws.of(Type::U32).len() / ops::Draw::NUMBERS]);
    ops::choose(gpu, x.of(Type::F32), draws.of(Type::U32), places.of(Type::U32), n).unwrap();
    let mut found = vec![0u32; places.of(Type::U32).len()];
    gpu.download(places.of(Type::U32), bytemuck::cast_slice_mut(&mut found)).unwrap();
    found
}

#[test]
fn the_largest_of_a_row_is_its_first() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    let (rows, n) = (7, 1000);
    let mut x: Vec<f32> = (0..rows * n).map(|_| rng.random()).collect();
    for (row, place) in [(0, 999), (1, 0), (2, 300), (2, 301), (2, 17)] {
        x[row * n + place] = 2.0;
    }
    x[4 * n + 5] = f32::NAN;
    x[5 * n..6 * n].fill(f32::NEG_INFINITY);
    x[6 * n + 3] = f32::INFINITY;
    let last = (0..n).max_by(|&a, &b| x[3 * n + a].total_cmp(&x[3 * n + b])).unwrap() as u32;
    for gpu in testing::gpus() {
        let found = chosen(&*gpu, &x, &[ops::Draw::default(); 7], n);
        assert_eq!(found, [999, 0, 17, last, NO_TOKEN, NO_TOKEN, NO_TOKEN]);
        // What is no distribution is none to draw from either.
        let drawn = ops::Draw { scale: 1.0, top_p: 1.0, uniform: 0.5, ..ops::Draw::default() };
        assert_eq!(chosen(&*gpu, &x, &[drawn; 7], n)[4..], [NO_TOKEN; 3]);
    }
}

/// What a draw takes, from the definition: everything sorted, in f64. For each token that is left, by id, its share of the weight.
fn shares(logits: &[f32], draw: ops::Draw) -> Vec<(usize, f64)> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let weight = |x: f32| (f64::from(x - max) * f64::from(draw.scale)).exp();
    let mut left: Vec<(usize, f64)> = logits.iter().map(|&x| weight(x)).enumerate().collect();
    left.retain(|(_, weight)| *weight >= f64::from(draw.min_p));
    left.sort_by(|a, b| b.1.total_cmp(&a.1));
    if draw.top_k > 0 {
        left.truncate(draw.top_k as usize);
    }
    let all: f64 = left.iter().map(|(_, weight)| weight).sum();
    let mut sum = 0.0;
    let enough = left.iter().position(|(_, weight)| {
        sum += weight;
        sum >= f64::from(draw.top_p) * all
    });
    left.truncate(enough.map_or(left.len(), |last| last + 1));
    let all: f64 = left.iter().map(|(_, weight)| weight).sum();
    left.sort_by_key(|(id, _)| *id);
    left.into_iter().map(|(id, weight)| (id, weight / all)).collect()
}

/// That a token is where a draw falls; how many tokens there are, are before it, and are left.
fn is_where_the_definition_has_it(found: u32, row: &[f32], draw: ops::Draw) -> (usize, usize, usize) {
    let shares = shares(row, draw);
    let at = shares.iter().position(|(id, _)| *id == found as usize);
    let at = at.unwrap_or_else(|| panic!("{found} of {} is not left: {draw:?}", row.len()));
    let before: f64 = shares[..at].iter().map(|(_, share)| share).sum();
    let (uniform, end) = (f64::from(draw.uniform), before + shares[at].1);
    assert!(before - 1e-5 <= uniform && uniform <= end + 1e-5, "{draw:?}: {found} is from {before} to {end}");
    (row.len(), at, shares.len())
}

#[test]
fn a_drawn_token_is_where_the_definition_has_it() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    let gpus = testing::gpus();
    let mut seen = std::collections::BTreeSet::new();
    for n in [1, 31, 257, 1003] {
        // No two are equal, so that it is clear which are left.
        let mut order: Vec<usize> = (0..n).collect();
        let mut x = Vec::new();
        let draws: Vec<ops::Draw> = (0..30)
            .map(|i| {
                order.sort_by_cached_key(|_| rng.random::<u32>());
                x.extend(order.iter().map(|&rank| 9.0 * (rank as f32 / n as f32).powi(3) - 3.0));
                ops::Draw {
                    scale: [0.3, 1.0, 2.5][i % 3],
                    min_p: if i % 4 == 1 { 0.05 } else { 0.0 },
                    top_p: if i % 5 < 2 { 0.8 } else { 1.0 },
                    top_k: if i % 7 < 3 { 1 + 5 * (i as u32 % 7) } else { 0 },
                    uniform: rng.random::<f32>().min(0.999),
                }
            })
            .collect();
        // What has no weight is never drawn.
        if n > 100 {
            x[n - 1] = f32::NEG_INFINITY;
        }
        for gpu in &gpus {
            for ((found, draw), row) in chosen(&**gpu, &x, &draws, n).into_iter().zip(&draws).zip(x.chunks(n))
            {
                seen.insert(is_where_the_definition_has_it(found, row, *draw));
            }
        }
    }
    assert!(seen.len() > 50, "the draws are all alike: {}", seen.len());
}
