//! Every op against candle's composed ops, forward and backward, and against finite differences.

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor, Var};
use rand::{Rng, RngExt, SeedableRng};

use super::linear::linear;
use super::*;

fn random(rng: &mut impl Rng, shape: (usize, usize)) -> Tensor {
    let data: Vec<f32> = (0..shape.0 * shape.1).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn rng() -> rand_chacha::ChaCha8Rng {
    rand_chacha::ChaCha8Rng::seed_from_u64(7)
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a.flatten_all().unwrap() - b.flatten_all().unwrap()).unwrap().abs().unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

/// Both functions give the same value and the same gradient of every input.
fn assert_same(
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let run = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        let weights = random(&mut rng(), (1, y.elem_count())).reshape(y.shape()).unwrap();
        let grads = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let grads: Vec<Tensor> =
            vars.iter().map(|v| grads.get(v).expect("an input without gradient").clone()).collect();
        (y, grads)
    };
    let (y, grads) = run(&fused);
    let (expected, expected_grads) = run(&composed);
    assert!(max_difference(&y, &expected) < 2e-5, "values differ by {}", max_difference(&y, &expected));
    for (i, (g, e)) in grads.iter().zip(&expected_grads).enumerate() {
        assert!(max_difference(g, e) < 2e-4, "gradients of input {i} differ by {}", max_difference(g, e));
    }
}

#[test]
fn exp_is_close_to_the_library_s() {
    for i in -8700..8800 {
        let x = i as f32 / 100.0;
        let (ours, exact) = (crate::kernels::exp(x), f64::from(x).exp());
        assert!(((f64::from(ours) - exact) / exact).abs() < 3e-7, "exp({x}) = {ours}, not {exact}");
    }
}

#[test]
fn rms_norm_equals_the_composed_one() {
    let mut rng = rng();
    let inputs = [random(&mut rng, (150, 40)), random(&mut rng, (1, 40)).flatten_all().unwrap()];
    assert_same(
        &inputs,
        |t| rms_norm(&t[0], &t[1], 1e-5),
        |t| {
            let mean = t[0].sqr()?.mean_keepdim(D::Minus1)?;
            t[0].broadcast_div(&(mean + 1e-5)?.sqrt()?)?.broadcast_mul(&t[1])
        },
    );
}

#[test]
fn swiglu_equals_the_composed_one() {
    let mut rng = rng();
    let inputs = [random(&mut rng, (600, 33)), random(&mut rng, (600, 33))];
    assert_same(&inputs, |t| swiglu(&t[0], &t[1]), |t| t[0].silu()? * &t[1]);
}

#[test]
fn linear_equals_matmul_trained_and_fixed() {
    let mut rng = rng();
    for (tokens, k, features) in [(1, 5, 3), (7, 64, 19), (70, 128, 1000), (1, 256, 2048)] {
        let inputs = [random(&mut rng, (tokens, k)), random(&mut rng, (features, k))];
        assert_same(&inputs, |t| linear(&t[0], &t[1]), |t| t[0].matmul(&t[1].t()?));
        let fixed = linear(&inputs[0], &inputs[1]).unwrap();
        let expected = inputs[0].matmul(&inputs[1].t().unwrap()).unwrap();
        assert!(max_difference(&fixed, &expected) < 2e-5);
    }
}

#[test]
fn fixed_linear_does_not_depend_on_the_batch() {
    let mut rng = rng();
    for (k, features) in [(100, 77), (128, 4096)] {
        let (x, w) = (random(&mut rng, (23, k)), random(&mut rng, (features, k)));
        let whole = linear(&x, &w).unwrap().to_vec2::<f32>().unwrap();
        for (from, len) in [(0, 1), (3, 4), (5, 9), (22, 1)] {
            let part = linear(&x.narrow(0, from, len).unwrap().contiguous().unwrap(), &w).unwrap();
            assert_eq!(part.to_vec2::<f32>().unwrap(), whole[from..from + len]);
        }
    }
}

#[test]
fn take_rows_equals_index_select() {
    let mut rng = rng();
    let rows = Arc::new(vec![3u32, 0, 3, 9, 1, 3]);
    let index = Tensor::new(rows.as_slice(), &Device::Cpu).unwrap();
    assert_same(&[random(&mut rng, (10, 6))], |t| take_rows(&t[0], &rows), |t| t[0].index_select(&index, 0));
}

#[test]
fn rope_equals_candle_s() {
    let mut rng = rng();
    let (tokens, heads, head) = (90, 3, 8);
    let angles = Rope::new(200, head, 10_000.0);
    let positions = Arc::new((0..tokens as u32).map(|p| p * 2 + 7).collect::<Vec<_>>());
    let theta: Vec<f32> = (0..head / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head as f32)).collect();
    let angle: Vec<f32> = positions.iter().flat_map(|&p| theta.iter().map(move |t| p as f32 * t)).collect();
    let angle = Tensor::from_vec(angle, (tokens, head / 2), &Device::Cpu).unwrap();
    let (cos, sin) = (angle.cos().unwrap(), angle.sin().unwrap());
    assert_same(
        &[random(&mut rng, (tokens, heads * head))],
        |t| rope(&t[0], &angles, &positions),
        |t| {
            let x = t[0].reshape((1, tokens, heads, head))?.transpose(1, 2)?.contiguous()?;
            candle_nn::rotary_emb::rope_slow(&x, &cos, &sin)?.transpose(1, 2)?.reshape((tokens, heads * head))
        },
    );
}

/// Attention by explicit masks, sequence by sequence and head by head.
fn composed_attention(t: &[Tensor], lengths: &[usize], head: usize) -> Result<Tensor> {
    let (heads, kv_heads) = (t[0].dim(1)? / head, t[1].dim(1)? / head);
    let mut rows = Vec::new();
    let mut at = 0;
    for &n in lengths {
        let mut columns = Vec::new();
        let mask: Vec<f32> =
            (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (n, n), &Device::Cpu)?;
        for h in 0..heads {
            let part = |x: &Tensor, h: usize| x.narrow(0, at, n)?.narrow(1, h * head, head)?.contiguous();
            let kv = h / (heads / kv_heads);
            let scores = (part(&t[0], h)?.matmul(&part(&t[1], kv)?.t()?)? / (head as f64).sqrt())?;
            let weights = candle_nn::ops::softmax(&(scores + &mask)?, D::Minus1)?;
            columns.push(weights.matmul(&part(&t[2], kv)?)?);
        }
        rows.push(Tensor::cat(&columns, 1)?);
        at += n;
    }
    Tensor::cat(&rows, 0)
}

#[test]
fn attention_equals_the_composed_one() {
    let mut rng = rng();
    for lengths in [vec![1, 2, 3, 5, 16, 17], vec![130], vec![64, 65, 2]] {
        let tokens = lengths.iter().sum();
        let inputs =
            [random(&mut rng, (tokens, 32)), random(&mut rng, (tokens, 16)), random(&mut rng, (tokens, 16))];
        let shared = Arc::new(lengths.clone());
        assert_same(
            &inputs,
            |t| attention(&t[0], &t[1], &t[2], &shared, 8),
            |t| composed_attention(t, &lengths, 8),
        );
    }
}

#[test]
fn add_equals_candle_s() {
    let mut rng = rng();
    let inputs = [random(&mut rng, (600, 33)), random(&mut rng, (600, 33))];
    assert_same(&inputs, |t| add(&t[0], &t[1]), |t| &t[0] + &t[1]);
}

#[test]
fn last_attention_equals_the_last_rows_of_attention() {
    let mut rng = rng();
    for lengths in [vec![1], vec![2, 1, 3, 16, 5], vec![3; 100]] {
        let tokens: usize = lengths.iter().sum();
        let queries = random(&mut rng, (lengths.len(), 32));
        let (k, v) = (random(&mut rng, (tokens, 16)), random(&mut rng, (tokens, 16)));
        let ends: Vec<u32> = lengths
            .iter()
            .scan(0, |end, &n| {
                *end += n as u32;
                Some(*end - 1)
            })
            .collect();
        // The other rows' queries are another input's.
        let mut places = vec![0; tokens];
        ends.iter().enumerate().for_each(|(i, &end)| places[end as usize] = i as u32);
        let (lengths, ends, places) = (Arc::new(lengths), Arc::new(ends), Arc::new(places));
        assert_same(
            &[queries, k, v],
            |t| last_attention(&t[0], &t[1], &t[2], &lengths, 8),
            |t| take_rows(&attention(&take_rows(&t[0], &places)?, &t[1], &t[2], &lengths, 8)?, &ends),
        );
    }
    let long = random(&mut rng, (17, 16));
    assert!(last_attention(&random(&mut rng, (1, 32)), &long, &long, &Arc::new(vec![17]), 8).is_err());
}

#[test]
fn tree_attention_equals_attention_of_each_path() {
    let mut rng = rng();
    // Three beginnings; row 3 has two followers, row 4 one.
    let parents = [0u32, 1, 2, 0, 3, 3, 4, 2];
    let paths: [&[u32]; 4] = [&[0, 3, 4, 6], &[0, 3, 5], &[2, 7], &[1]];
    let [q, k, v] = [(8, 32), (8, 16), (8, 16)].map(|shape| random(&mut rng, shape));
    let tree = tree_attention(&q, &k, &v, &parents, 8).unwrap().to_vec2::<f32>().unwrap();
    for path in paths {
        let rows = Arc::new(path.to_vec());
        let [q, k, v] = [&q, &k, &v].map(|x| take_rows(x, &rows).unwrap());
        let alone = attention(&q, &k, &v, &Arc::new(vec![path.len()]), 8).unwrap().to_vec2::<f32>().unwrap();
        for (&row, alone) in path.iter().zip(&alone) {
            assert_eq!(&tree[row as usize], alone, "row {row}");
        }
    }
    assert!(tree_attention(&q, &k, &v, &[0, 2, 2, 0, 3, 3, 4, 2], 8).is_err(), "a parent that comes later");
}

#[test]
fn a_fixed_weight_refuses_what_it_cannot_do() {
    let mut rng = rng();
    let (x, w) = (random(&mut rng, (3, 8)), random(&mut rng, (5, 8)));
    let fixed = Linear::new(w.clone()).fixed().unwrap();
    let same = linear(&x, &w).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(fixed.forward(&x).unwrap().to_vec2::<f32>().unwrap(), same);
    let tracked = Var::from_tensor(&x).unwrap();
    assert!(fixed.forward(tracked.as_tensor()).is_err(), "no gradient is cut without a word");
    assert!(fixed.forward(&random(&mut rng, (3, 9))).is_err());
    let trained = Var::from_tensor(&w).unwrap();
    assert!(Linear::new(trained.as_tensor().clone()).fixed().is_err());
}

#[test]
fn cross_entropy_does_not_depend_on_how_many_threads_share_the_tokens() {
    let mut rng = rng();
    let (h, head) = (random(&mut rng, (1000, 8)), random(&mut rng, (50, 8)));
    let targets: Arc<Vec<u32>> = Arc::new((0..1000).map(|i| i * 7 % 50).collect());
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (h, head) = (Var::from_tensor(&h).unwrap(), Var::from_tensor(&head).unwrap());
            let loss = cross_entropy(&h, &head, &targets).unwrap();
            let gradients = loss.backward().unwrap();
            let [dh, dhead] = [&h, &head].map(|x| gradients.get(x).unwrap().clone());
            (loss, dh, dhead)
        })
    };
    let one = on(1);
    for threads in [2, 3, 7] {
        let (loss, dh, dhead) = on(threads);
        assert!(max_difference(&loss, &one.0) < 1e-6);
        assert!(max_difference(&dh, &one.1) < 1e-8 && max_difference(&dhead, &one.2) < 1e-6);
    }
    assert!(max_difference(&one.1, &one.1.zeros_like().unwrap()) > 1e-5, "no gradient to compare");
}

#[test]
fn cross_entropy_equals_the_composed_one() {
    let mut rng = rng();
    let targets = Arc::new((0..200u32).map(|i| i * 7 % 50).collect::<Vec<_>>());
    let target = Tensor::new(targets.as_slice(), &Device::Cpu).unwrap();
    assert_same(
        &[random(&mut rng, (200, 12)), random(&mut rng, (50, 12))],
        |t| cross_entropy(&t[0], &t[1], &targets),
        |t| candle_nn::loss::cross_entropy(&t[0].matmul(&t[1].t()?)?, &target),
    );
    let (h, head) = (random(&mut rng, (200, 12)), random(&mut rng, (50, 12)));
    let untrained = cross_entropy(&h, &head, &targets).unwrap();
    let expected = candle_nn::loss::cross_entropy(&h.matmul(&head.t().unwrap()).unwrap(), &target).unwrap();
    assert!(max_difference(&untrained, &expected) < 2e-5);
}
