//! Gradients of the whole joint model: that every parameter has one, and that it is right.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};

use super::*;
use crate::fgram::{FgramSet, Policy, rank_order};

const VOCABULARY: usize = 40;

fn config(fgrams: bool) -> RunConfig {
    let mut config = RunConfig::example();
    config.model = ModelSection {
        hidden_size: 16,
        intermediate_size: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        context: 24,
        init_std: 0.3,
        ..ModelSection::default()
    };
    match &mut config.fgram {
        Some(fgram) if fgrams => (fgram.own_embedding, fgram.layers) = (false, 2),
        _ => config.fgram = None,
    }
    config
}

/// A baseline, and f-gram models of each form.
fn kinds() -> [RunConfig; 4] {
    let own = |residual| {
        let mut config = config(true);
        if let Some(fgram) = &mut config.fgram {
            (fgram.own_embedding, fgram.hidden_size, fgram.residual_output) = (true, Some(8), residual);
        }
        config
    };
    [config(false), config(true), own(true), own(false)]
}

/// A batch whose matches are as long as a window allows, up to 4, so that f-grams of every length occur, some twice.
fn batch() -> Batch {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let context = 24;
    let inputs: Vec<u32> = (0..3 * context).map(|_| rng.random_range(1..8)).collect();
    let targets = (0..3 * context).map(|_| rng.random_range(0..VOCABULARY as u32)).collect();
    let matches = (0..3 * context).map(|i| rng.random_range(1..=4).min(i % context + 1) as u8).collect();
    Batch { inputs, targets: Arc::new(targets), matches, lengths: Arc::new(vec![context; 3]) }
}

fn model(config: &RunConfig) -> (JointModel, Parameters) {
    model_on(config, &Device::Cpu)
}

fn model_on(config: &RunConfig, device: &Device) -> (JointModel, Parameters) {
    let mut parameters = Parameters::new(5, config.model.init_std, device);
    let model = JointModel::create(config, VOCABULARY, 4, &mut parameters).unwrap();
    // At its initial value of 0 what is added to the token embedding would hide the f-gram model.
    for name in ["fgram/output_gain", "fgram/output_proj.weight"] {
        let Some(var) = parameters.get(name) else { continue };
        let values: Vec<f32> = (0..var.elem_count()).map(|i| 0.3 + 0.05 * (i % 19) as f32).collect();
        var.set(&Tensor::from_vec(values, var.shape(), device).unwrap()).unwrap();
    }
    (model, parameters)
}

/// The gradient of every parameter that is trained, with its zeros.
fn gradients(model: &JointModel, parameters: &Parameters) -> BTreeMap<String, Tensor> {
    let (_, gradients) = model.gradients(&batch(), parameters, 1.0).unwrap();
    gradients.iter().map(|(name, gradient)| (name.clone(), gradient.whole().unwrap())).collect()
}

fn loss(model: &JointModel, batch: &Batch) -> f64 {
    f64::from(model.loss(batch).unwrap().to_scalar::<f32>().unwrap())
}

/// The residual forms begin as the baseline, the other with rows that are not nothing.
#[test]
fn rows_begin_at_their_last_tokens_embedding_or_at_chance() {
    let first = |config: &RunConfig| {
        let mut parameters = Parameters::new(5, config.model.init_std, &Device::Cpu);
        loss(&JointModel::create(config, VOCABULARY, 4, &mut parameters).unwrap(), &batch())
    };
    let [baseline, shared, own, normed] = kinds().map(|config| first(&config));
    assert_eq!([shared, own], [baseline; 2]);
    let mut parameters = Parameters::new(5, 0.3, &Device::Cpu);
    JointModel::create(&kinds()[3], VOCABULARY, 4, &mut parameters).unwrap();
    let projection = parameters.get("fgram/output_proj.weight").unwrap().sqr().unwrap();
    assert!(normed != baseline && projection.sum_all().unwrap().to_scalar::<f32>().unwrap() > 1.0);
}

/// Along its own gradient g a loss grows by |g| a unit: a central difference in that direction must give the norm.
#[test]
fn every_parameter_receives_its_gradient() {
    for config in kinds() {
        let (model, parameters) = model(&config);
        let batch = batch();
        let gradients = gradients(&model, &parameters);
        let fgrams = parameters.iter().any(|(name, _)| name.starts_with("fgram/"));
        assert_eq!(fgrams, config.fgram.is_some());
        for (name, var) in parameters.iter() {
            let gradient = &gradients[name];
            let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(norm > 1e-4, "the gradient of {name} is {norm}");
            let before = var.as_tensor().copy().unwrap();
            let step = 0.005;
            let at = |sign: f64| {
                let moved = (&before + (gradient * (sign * step / f64::from(norm))).unwrap()).unwrap();
                var.set(&moved).unwrap();
                loss(&model, &batch)
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
            var.set(&before).unwrap();
            let error = (slope - f64::from(norm)).abs();
            assert!(
                error < 0.02 * f64::from(norm) + 2e-4,
                "{name}: the loss grows by {slope}, its gradient has norm {norm}"
            );
        }
    }
}

/// What a batch reads of a table instead of the table gives the same loss and, but for the order of sums, the same gradients;
/// and those of tables that are read only are of few rows.
#[test]
fn gradients_of_the_rows_that_are_read_are_those_of_the_whole_tables() {
    for (tied, mut config) in [true, false].into_iter().flat_map(|tied| kinds().map(|kind| (tied, kind))) {
        config.model.tied = tied;
        let (model, parameters) = model(&config);
        let expected = model.loss(&batch()).unwrap();
        let store = expected.backward().unwrap();
        let (loss, gradients) = model.gradients(&batch(), &parameters, 0.5).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), expected.to_scalar::<f32>().unwrap());
        for (name, var) in parameters.iter() {
            let ours = values(&gradients[name].whole().unwrap());
            let expected = values(&(store.get(var).unwrap() * 0.5).unwrap());
            let apart = difference(&ours, &expected);
            assert!(apart < 1e-5, "the gradient of {name} is off by {apart}");
            // The main model's table is its head as well where they are tied.
            let read_only = name == "fgram/model.embed_tokens.weight"
                || (!tied && name == "main/model.embed_tokens.weight");
            let sparse = matches!(&gradients[name], Gradient::Rows(rows) if rows.iter().count() <= 8);
            assert_eq!(sparse, read_only, "{name}");
        }
    }
}

#[test]
fn recomputing_blocks_changes_no_bit_of_a_gradient() {
    for mut config in kinds() {
        let [direct, again] = [false, true].map(|recompute| {
            config.train.recompute = recompute;
            let (model, parameters) = model(&config);
            let nodes = model.loss(&batch()).unwrap().sorted_nodes().len();
            let bits = |gradient: &Tensor| values(gradient).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let gradients = gradients(&model, &parameters);
            (nodes, gradients.iter().map(|(name, own)| (name.to_owned(), bits(own))).collect::<Vec<_>>())
        });
        assert!(again.0 < direct.0, "the graph has {} nodes instead of {}", again.0, direct.0);
        assert!(direct.1.iter().all(|(_, bits)| bits.iter().any(|&bits| bits != 0)));
        for ((name, direct), (_, again)) in direct.1.iter().zip(&again.1) {
            assert!(direct == again, "the gradient of {name} differs");
        }
    }
}

#[test]
fn sequences_of_a_window_cost_what_each_costs_alone() {
    let lengths = [24, 10, 14, 1, 23];
    for fgrams in [false, true] {
        let (model, _) = model(&config(fgrams));
        let together = batch();
        let mut apart = batch();
        apart.lengths = Arc::new(lengths.to_vec());
        let (mut alone, mut from) = (0.0, 0);
        for length in lengths {
            let of = from..from + length;
            for (i, n) in apart.matches[of.clone()].iter_mut().enumerate() {
                *n = (*n).min(i as u8 + 1);
            }
            let sequence = Batch {
                inputs: apart.inputs[of.clone()].to_vec(),
                targets: Arc::new(apart.targets[of.clone()].to_vec()),
                matches: apart.matches[of].to_vec(),
                lengths: Arc::new(vec![length]),
            };
            alone += length as f64 * loss(&model, &sequence) / apart.inputs.len() as f64;
            from += length;
        }
        let difference = (loss(&model, &apart) - alone).abs();
        assert!(difference < 1e-5, "off by {difference}");
        let seen = (loss(&model, &together) - alone).abs();
        assert!(seen > 1e-3, "what lies before a document changes nothing ({seen}): the test shows nothing");
    }
}

#[test]
fn a_frozen_main_model_gets_no_gradient_and_changes_no_other() {
    for mut config in kinds().into_iter().skip(1) {
        let (trained, parameters) = model(&config);
        config.train.freeze = Some(Freeze::Main);
        let mut fixed = Parameters::new(5, config.model.init_std, &Device::Cpu);
        let frozen = JointModel::create(&config, VOCABULARY, 4, &mut fixed).unwrap();
        for (name, var) in fixed.iter() {
            var.set(parameters.get(name).unwrap().as_tensor()).unwrap();
        }
        assert!((loss(&trained, &batch()) - loss(&frozen, &batch())).abs() < 1e-5);
        let expected = gradients(&trained, &parameters);
        let found = gradients(&frozen, &fixed);
        let fgram = |name: &&String| name.starts_with("fgram/");
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().filter(fgram).collect::<Vec<_>>());
        for (name, ours) in &found {
            let off = difference(&values(ours), &values(&expected[name]));
            assert!(off < 1e-4, "the gradient of {name} is off by {off}");
        }
        let store = frozen.loss(&batch()).unwrap().backward().unwrap();
        let has_gradient = fixed.iter().filter(|(_, var)| store.get(var).is_some()).map(|(name, _)| name);
        assert!(has_gradient.eq(found.keys()), "the graph goes through the frozen model");
    }
}

/// A batch in which no f-gram occurs says nothing about the f-gram model, and that is no error.
#[test]
fn a_batch_without_f_grams_has_gradients_of_zeros() {
    for (frozen, mut config) in
        [false, true].into_iter().flat_map(|f| kinds().map(|kind| (f, kind)).into_iter().skip(1))
    {
        config.train.freeze = frozen.then_some(Freeze::Main);
        let (model, parameters) = model(&config);
        let mut batch = batch();
        batch.matches.fill(1);
        let result = model.gradients(&batch, &parameters, 1.0);
        let (_, gradients) = result.unwrap();
        assert_eq!(gradients.len(), parameters.trained().count());
        for (name, gradient) in &gradients {
            let is_zero = values(&gradient.whole().unwrap()).iter().all(|&x| x == 0.0);
            assert_eq!(is_zero, name.starts_with("fgram/"), "{name}");
        }
    }
}

#[test]
fn unique_grams_cover_every_position_once() {
    let batch = batch();
    let unique = unique_grams(&batch, VOCABULARY);
    let mut seen = std::collections::HashSet::new();
    for (i, &row) in unique.rows.iter().enumerate() {
        let n = usize::from(batch.matches[i]);
        if n < 2 {
            assert_eq!(row, batch.inputs[i]);
        } else {
            let gram = unique.grams.get(row as usize - VOCABULARY);
            assert_eq!(gram, &batch.inputs[i + 1 - n..=i]);
            seen.insert(gram.to_vec());
        }
    }
    assert_eq!(seen.len(), unique.grams.len(), "an f-gram is computed twice");
    assert!(seen.len() < unique.hits, "no f-gram occurs twice: the test shows nothing");
    let lengths: Vec<usize> = (0..unique.grams.len()).map(|i| unique.grams.get(i).len()).collect();
    assert!(lengths.is_sorted(), "grouped by length");
}

/// The loss of a window is the mean over its prefixes of what [`JointModel::next_logits`] gives the token that follows.
#[test]
fn next_logits_are_those_that_the_loss_is_made_of() {
    let text = batch();
    let context = text.lengths[0];
    let pairs: Vec<Vec<u32>> = (1..8u32).flat_map(|a| (1..8).map(move |b| vec![a, b])).collect();
    let triples = pairs.iter().filter(|pair| pair[0] < 4).map(|pair| [&pair[..], &[2]].concat());
    let mut grams: Vec<Vec<u32>> = pairs.iter().cloned().chain(triples).collect();
    grams.sort_by(|a, b| rank_order((a, 5), (b, 5)));
    let policy = Policy { max_n: 4, special_tokens: Vec::new(), tokenizer_sha256: String::new() };
    let set = FgramSet::from_ranked(policy, grams.iter().map(|gram| (&gram[..], 5))).unwrap();
    for fgrams in [false, true] {
        let (model, _) = model(&config(fgrams));
        let mut whole = text.clone();
        whole.matches = (0..whole.inputs.len())
            .map(|i| set.longest_match(&whole.inputs[i / context * context..=i]).map_or(1, |found| found.n))
            .collect();
        assert!(whole.matches.contains(&2) && whole.matches.contains(&3));
        let expected = loss(&model, &whole);
        // All prefixes of a window side by side, one of them as long as it.
        let windows = whole.inputs.chunks(context).zip(whole.targets.chunks(context));
        let mut sum = 0.0;
        for (window, targets) in windows {
            let prefixes: Vec<&[u32]> = (1..=context).map(|end| &window[..end]).collect();
            let logits: Vec<Vec<f32>> =
                model.next_logits(&prefixes, fgrams.then_some(&set)).unwrap().to_vec2().unwrap();
            for (logits, &target) in logits.iter().zip(targets) {
                let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                sum += total.ln() - f64::from(logits[target as usize]);
            }
        }
        let mean = sum / whole.inputs.len() as f64;
        assert!((mean - expected).abs() < 1e-5 * expected, "{mean} is not {expected}, f-grams: {fgrams}");
    }
    assert!(model(&config(false)).0.next_logits(&[&[1], &[]], None).is_err());
}

#[test]
fn learning_rate_warms_up_and_falls_to_its_share() {
    let config = OptimizerConfig {
        steps: 100,
        warmup_steps: 10,
        learning_rate: 2.0,
        final_share: 0.25,
        ..OptimizerConfig::default()
    };
    let rates: Vec<f64> = (1..=100).map(|step| learning_rate(&config, step)).collect();
    assert!(
        (rates[0] - 0.2).abs() < 1e-12 && (rates[9] - 2.0).abs() < 1e-12 && (rates[99] - 0.5).abs() < 1e-12
    );
    assert!(rates[..10].is_sorted() && rates[9..].iter().rev().is_sorted());
    let without = OptimizerConfig { warmup_steps: 0, ..config };
    assert!(learning_rate(&without, 1).is_finite());
}

/// One update against the formulas of the paper, in f64.
#[test]
fn adamw_equals_the_textbook() {
    let config = OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::default() };
    let mut optimizer = AdamW::new(&config);
    let var = candle_core::Var::new(&[[0.5f32, -0.25], [1.0, 0.0]], &Device::Cpu).unwrap();
    let (mut p, mut m, mut v) = ([0.5f64, -0.25, 1.0, 0.0], [0.0; 4], [0.0; 4]);
    for step in 1..=20u64 {
        let g: Vec<f64> = (0..4).map(|i| ((step * 7 + i * 3) % 11) as f64 / 5.0 - 1.0).collect();
        let gradient = Tensor::new(g.iter().map(|&g| g as f32).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let gradient = Gradient::Whole(gradient.reshape((2, 2)).unwrap());
        optimizer.update("w", &var, &gradient, step, 0.01, 0.5).unwrap();
        for i in 0..4 {
            let g = 0.5 * g[i];
            m[i] = config.beta1 * m[i] + (1.0 - config.beta1) * g;
            v[i] = config.beta2 * v[i] + (1.0 - config.beta2) * g * g;
            let m = m[i] / (1.0 - config.beta1.powi(step as i32));
            let v = v[i] / (1.0 - config.beta2.powi(step as i32));
            p[i] -= 0.01 * (m / (v.sqrt() + config.epsilon) + 0.1 * p[i]);
        }
    }
    let ours: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
    for (ours, p) in ours.iter().zip(p) {
        assert!((f64::from(*ours) - p).abs() < 1e-5, "{ours} is not {p}");
    }
}

/// How far two lists of numbers are apart, as a share of the second's length as a vector.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let length = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
    let apart = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
    apart / length.max(1e-12)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A whole update by the kernels for GPUs, run by the emulator or on a real one, against one by the CPU's: the loss, every gradient, and the
/// weights afterwards. In bf16 they may differ by what its 8 bits round away.
#[test]
fn an_update_on_a_gpu_is_that_of_the_cpu() {
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.3)] {
        for (i, mut config) in kinds().into_iter().enumerate() {
            // Blocks that are computed again are so on a GPU, too.
            config.train.recompute = i % 2 == 1;
            let update = |config: &RunConfig, device: &Device| {
                let (model, parameters) = model_on(config, device);
                let (loss, gradients) = model.gradients(&batch(), &parameters, 0.5).unwrap();
                let squares = square_sums(gradients.values()).unwrap();
                let mut optimizer = AdamW::new(&config.train);
                for step in 1..=2 {
                    for ((name, var), gradient) in parameters.iter().zip(gradients.values()) {
                        optimizer.update(name, var, gradient, step, 0.01, 0.5).unwrap();
                    }
                }
                let weights: Vec<_> =
                    parameters.iter().map(|(name, var)| (name.to_owned(), values(var))).collect();
                let gradients: Vec<_> =
                    gradients.values().map(|gradient| values(&gradient.whole().unwrap())).collect();
                (loss.to_scalar::<f32>().unwrap(), gradients, squares, weights)
            };
            let on_cpu = update(&config, &Device::Cpu);
            config.train.precision = precision;
            let on_gpu = crate::model::ops::gpu::on_gpu(|device| update(&config, device));
            assert!((on_gpu.0 - on_cpu.0).abs() < 0.02 * tolerance * on_cpu.0, "{} {}", on_gpu.0, on_cpu.0);
            let mut sum = 0.0;
            for i in 0..on_cpu.1.len() {
                let name = &on_cpu.3[i].0;
                let apart = difference(&on_gpu.1[i], &on_cpu.1[i]);
                sum += apart;
                assert!(apart < tolerance, "{precision:?}: the gradient of {name} differs by {apart}");
                let (found, expected) = (on_gpu.2[i].sqrt(), on_cpu.2[i].sqrt());
                assert!(
                    (found - expected).abs() < f64::from(tolerance) * expected,
                    "{name}: {found}, not {expected}"
                );
                // AdamW's first steps go by the sign of a gradient, and one near nothing may have either.
                if precision == Precision::F32 {
                    let apart = difference(&on_gpu.3[i].1, &on_cpu.3[i].1);
                    assert!(apart < 5e-3, "{name} differs by {apart} after the update");
                }
            }
            // Single gradients are small differences of large numbers.
            assert!(
                sum < 0.25 * tolerance * on_cpu.1.len() as f32,
                "{precision:?}: the gradients differ by {sum} together"
            );
        }
    }
}
