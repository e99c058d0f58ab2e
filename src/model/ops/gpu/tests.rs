//! Every kernel for GPUs against the op of the CPU: values and gradients, in f32 and in bf16; run by the emulator with the
//! threads of a block in either order, or on a real GPU.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use rand::{Rng, RngExt, SeedableRng};

use super::super::linear::linear;
use super::super::*;
use crate::gpu::{Buffer, Gpu, Slice, Type, ops, testing};

const KINDS: [(Type, f32); 2] = [(Type::F32, 2e-5), (Type::Bf16, 2e-2)];

fn rng() -> rand_chacha::ChaCha8Rng {
    rand_chacha::ChaCha8Rng::seed_from_u64(11)
}

/// Numbers that bf16 holds exactly, so that both sides start from the same.
fn random(rng: &mut impl Rng, shape: (usize, usize)) -> Tensor {
    let data = (0..shape.0 * shape.1).map(|_| half::bf16::from_f32(rng.random::<f32>() * 2.0 - 1.0).to_f32());
    Tensor::from_vec(data.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

fn vector(rng: &mut impl Rng, len: usize) -> Tensor {
    random(rng, (1, len)).flatten_all().unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// What the op of the CPU gives for `inputs`, and the inputs' gradients where the result's is `dy`.
fn on_cpu(
    inputs: &[&Tensor],
    dy: &Tensor,
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = op(&tensors).unwrap();
    let gradients = (&y * dy.reshape(y.shape()).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
    let gradients = vars.iter().map(|v| numbers(gradients.get(v).unwrap())).collect();
    (numbers(&y), gradients)
}

/// A GPU and tensors on it.
struct Machine {
    gpu: Arc<dyn Gpu>,
    kind: Type,
    tolerance: f32,
}

impl Machine {
    /// In both types, on all that there is to test on.
    fn all() -> impl Iterator<Item = Self> {
        KINDS.into_iter().flat_map(|(kind, tolerance)| {
            testing::gpus().into_iter().map(move |gpu| Self { gpu, kind, tolerance })
        })
    }

    fn put(&self, tensor: &Tensor) -> Buffer {
        testing::numbers(&*self.gpu, &numbers(tensor), self.kind)
    }

    fn weights(&self, tensor: &Tensor) -> Buffer {
        testing::numbers(&*self.gpu, &numbers(tensor), Type::F32)
    }

    fn room(&self, len: usize, kind: Type) -> Buffer {
        self.gpu.alloc(len * kind.bytes()).unwrap()
    }

    fn check(&self, what: &str, found: Slice<'_>, expected: &[f32]) {
        let found = testing::read(&*self.gpu, found);
        assert_eq!(found.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(1e-3, |max: f32, x| max.max(x.abs()));
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            // A NaN is no small difference.
            let close = (found - expected).abs() <= self.tolerance * largest;
            assert!(close, "{what} [{i}] in {:?}: {found}, not {expected}", self.kind);
        }
        assert!(expected.iter().any(|x| *x != 0.0), "{what}: nothing to compare");
    }
}

#[test]
fn norms() {
    let mut rng = rng();
    for (rows, d) in [(1, 40), (300, 48), (3, 700)] {
        let (x, w, dy) = (random(&mut rng, (rows, d)), vector(&mut rng, d), random(&mut rng, (rows, d)));
        let (y, gradients) = on_cpu(&[&x, &w], &dy, |t| rms_norm(&t[0], &t[1], 1e-5));
        for m in Machine::all() {
            let [xs, dys] = [&x, &dy].map(|t| m.put(t));
            let [ys, dx] = [(); 2].map(|()| m.room(rows * d, m.kind));
            let (ws, dw) = (m.weights(&w), m.room(d, Type::F32));
            let [xs, dys, ys, dx] = [&xs, &dys, &ys, &dx].map(|b| b.of(m.kind));
            let [ws, dw] = [&ws, &dw].map(|b| b.of(Type::F32));
            ops::rms_norm(&*m.gpu, xs, ws, ys, 1e-5).unwrap();
            m.check("norm", ys, &y);
            ops::rms_norm_backward(&*m.gpu, xs, ws, dys, dx, dw, 1e-5).unwrap();
            m.check("dx", dx, &gradients[0]);
            m.check("dw", dw, &gradients[1]);
        }
    }
}

#[test]
fn sums_and_swiglu() {
    let mut rng = rng();
    let shape = (70, 33);
    let [gate, up, dy] = [(); 3].map(|()| random(&mut rng, shape));
    let (y, gradients) = on_cpu(&[&gate, &up], &dy, |t| swiglu(&t[0], &t[1]));
    let sum = numbers(&add(&gate, &up).unwrap());
    for m in Machine::all() {
        let [g, u, d] = [&gate, &up, &dy].map(|t| m.put(t));
        let room = [(); 4].map(|()| m.room(70 * 33, m.kind));
        let [g, u, d] = [&g, &u, &d].map(|b| b.of(m.kind));
        let [ys, dg, du, s] = room.each_ref().map(|b| b.of(m.kind));
        ops::swiglu(&*m.gpu, g, u, ys).unwrap();
        m.check("swiglu", ys, &y);
        ops::swiglu_backward(&*m.gpu, g, u, d, dg, du).unwrap();
        m.check("dgate", dg, &gradients[0]);
        m.check("dup", du, &gradients[1]);
        ops::add(&*m.gpu, g, u, s).unwrap();
        m.check("sum", s, &sum);
        ops::scale(&*m.gpu, s, 0.5).unwrap();
        m.check("half", s, &sum.iter().map(|x| x / 2.0).collect::<Vec<_>>());
    }
}

#[test]
fn conversions() {
    let x: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.37).collect();
    let gpu = &*testing::gpus()[0];
    let [from, back] = [testing::numbers(gpu, &x, Type::F32), testing::numbers(gpu, &x, Type::F32)];
    let narrow = gpu.alloc(2000).unwrap();
    ops::convert(gpu, from.of(Type::F32), narrow.of(Type::Bf16)).unwrap();
    let rounded: Vec<f32> = x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
    assert_eq!(testing::read(gpu, narrow.of(Type::Bf16)), rounded);
    ops::convert(gpu, narrow.of(Type::Bf16), back.of(Type::F32)).unwrap();
    assert_eq!(testing::read(gpu, back.of(Type::F32)), rounded);
}

#[test]
fn rotary_positions() {
    let mut rng = rng();
    let (heads, head) = (3, 10);
    let positions: Arc<Vec<u32>> = Arc::new((0..37).map(|p| p * 2 + 7).collect());
    let shape = (positions.len(), heads * head);
    let (x, dy) = (random(&mut rng, shape), random(&mut rng, shape));
    let angles = Rope::new(100, head, 10_000.0);
    let (y, gradients) = on_cpu(&[&x], &dy, |t| rope(&t[0], &angles, &positions));
    for m in Machine::all() {
        let [xs, dys] = [&x, &dy].map(|t| m.put(t));
        let [ys, dx] = [(); 2].map(|()| m.room(shape.0 * shape.1, m.kind));
        let places = testing::indices(&*m.gpu, &positions);
        let angles = Rope::new(100, head, 10_000.0);
        let [cos, sin] = angles.on_gpu(&*m.gpu).unwrap();
        let tables = (cos.of(Type::F32), sin.of(Type::F32));
        let turn = |x: &Buffer, y: &Buffer, back| {
            ops::rope(&*m.gpu, x.of(m.kind), y.of(m.kind), places.of(Type::U32), tables, head / 2, back)
                .unwrap();
        };
        turn(&xs, &ys, false);
        m.check("rope", ys.of(m.kind), &y);
        turn(&dys, &dx, true);
        m.check("dx", dx.of(m.kind), &gradients[0]);
    }
}

#[test]
fn rows_and_their_gradients() {
    let mut rng = rng();
    let (n, other, d) = (10, 7, 40);
    let rows = Arc::new(vec![3u32, 12, 3, 9, 16, 3, 0, 12, 10]);
    let (a, b) = (random(&mut rng, (n, d)), random(&mut rng, (other, d)));
    let dy = random(&mut rng, (rows.len(), d));
    let (y, gradients) = on_cpu(&[&a, &b], &dy, |t| take_rows_of_two(&t[0], &t[1], &rows));
    let scatter = ops::Scatter::of(&rows);
    for m in Machine::all() {
        let [x, z, dys] = [&a, &b, &dy].map(|t| m.put(t));
        let (ys, da, db) = (m.room(rows.len() * d, m.kind), m.room(n * d, m.kind), m.room(other * d, m.kind));
        let [x, z, dys, ys, da, db] = [&x, &z, &dys, &ys, &da, &db].map(|b| b.of(m.kind));
        let places = testing::indices(&*m.gpu, &rows);
        ops::take_rows(&*m.gpu, (x, z), places.of(Type::U32), ys, d).unwrap();
        m.check("rows", ys, &y);
        let lists =
            [&scatter.targets, &scatter.starts, &scatter.order].map(|list| testing::indices(&*m.gpu, list));
        let lists = lists.each_ref().map(|list| list.of(Type::U32));
        m.gpu.zero(da).unwrap();
        m.gpu.zero(db).unwrap();
        ops::add_rows(&*m.gpu, dys, lists, (da, db), n, d).unwrap();
        m.check("da", da, &gradients[0]);
        m.check("db", db, &gradients[1]);
        // One that is not wanted is left alone.
        m.gpu.zero(db).unwrap();
        ops::add_rows(&*m.gpu, dys, lists, (Slice::none(m.kind), db), n, d).unwrap();
        m.check("db alone", db, &gradients[1]);
    }
}

#[test]
fn products() {
    let mut rng = rng();
    let (tokens, inputs, outputs) = (19, 24, 13);
    let sizes = [tokens, inputs, outputs];
    let (x, w) = (random(&mut rng, (tokens, inputs)), random(&mut rng, (outputs, inputs)));
    let dy = random(&mut rng, (tokens, outputs));
    let (y, gradients) = on_cpu(&[&x, &w], &dy, |t| linear(&t[0], &t[1]));
    for m in Machine::all() {
        let [xs, ws, dys] = [&x, &w, &dy].map(|t| m.put(t));
        let (ys, dx) = (m.room(tokens * outputs, m.kind), m.room(tokens * inputs, m.kind));
        let [xs, ws, dys, ys, dx] = [&xs, &ws, &dys, &ys, &dx].map(|b| b.of(m.kind));
        let dw = m.room(outputs * inputs, Type::F32);
        ops::linear(&*m.gpu, xs, ws, ys, sizes).unwrap();
        m.check("product", ys, &y);
        ops::linear_backward_input(&*m.gpu, dys, ws, dx, sizes).unwrap();
        m.check("dx", dx, &gradients[0]);
        ops::linear_backward_weight(&*m.gpu, dys, xs, dw.of(Type::F32), sizes, false).unwrap();
        m.check("dw", dw.of(Type::F32), &gradients[1]);
        ops::linear_backward_weight(&*m.gpu, dys, xs, dw.of(Type::F32), sizes, true).unwrap();
        m.check("dw twice", dw.of(Type::F32), &gradients[1].iter().map(|x| 2.0 * x).collect::<Vec<_>>());
    }
}

#[test]
fn losses() {
    let mut rng = rng();
    let (tokens, d, vocabulary) = (45, 16, 300);
    let targets: Arc<Vec<u32>> = Arc::new((0..tokens as u32).map(|i| i * 17 % 300).collect());
    let (h, head) = (random(&mut rng, (tokens, d)), random(&mut rng, (vocabulary, d)));
    let one = Tensor::new(&[1f32], &Device::Cpu).unwrap();
    let (loss, gradients) = on_cpu(&[&h, &head], &one, |t| cross_entropy(&t[0], &t[1], &targets));
    for m in Machine::all() {
        let [hs, heads] = [&h, &head].map(|t| m.put(t));
        let (dh, dhead) = (m.room(tokens * d, m.kind), m.room(vocabulary * d, Type::F32));
        let (places, losses) = (testing::indices(&*m.gpu, &targets), m.room(tokens, Type::F32));
        let operands = ops::CrossEntropy {
            h: hs.of(m.kind),
            head: heads.of(m.kind),
            targets: places.of(Type::U32),
            dh: dh.of(m.kind),
            dhead: dhead.of(Type::F32),
            losses: losses.of(Type::F32),
        };
        let mean = || [testing::read(&*m.gpu, losses.of(Type::F32)).iter().sum::<f32>() / tokens as f32];
        ops::cross_entropy(&*m.gpu, operands, d).unwrap();
        assert!((mean()[0] - loss[0]).abs() < 1e-4 * loss[0]);
        m.check("dh", dh.of(m.kind), &gradients[0]);
        m.check("dhead", dhead.of(Type::F32), &gradients[1]);
        let (dh, dhead) = (Slice::none(m.kind), Slice::none(Type::F32));
        ops::cross_entropy(&*m.gpu, ops::CrossEntropy { dh, dhead, ..operands }, d).unwrap();
        assert!((mean()[0] - loss[0]).abs() < 1e-4 * loss[0], "without gradients");
    }
}

/// Queries, keys, values and a result's gradient.
fn attention_inputs(rng: &mut impl Rng, queries: usize, tokens: usize, [q, kv]: [usize; 2]) -> [Tensor; 4] {
    [
        random(rng, (queries, q)),
        random(rng, (tokens, kv)),
        random(rng, (tokens, kv)),
        random(rng, (queries, q)),
    ]
}

#[test]
fn attention_in_tiles() {
    let mut rng = rng();
    // Sequences of part of a tile, exactly one, several; heads narrower than a product of the tensor cores, and wide ones.
    for (lengths, heads, kv_heads, head) in
        [(vec![1, 70, 3], 4, 2, 8), (vec![64, 129], 2, 1, 16), (vec![20, 33], 2, 2, 72)]
    {
        let tokens: usize = lengths.iter().sum();
        let widths = [heads * head, kv_heads * head];
        let [q, k, v, dout] = attention_inputs(&mut rng, tokens, tokens, widths);
        let shared = Arc::new(lengths.clone());
        let (out, gradients) =
            on_cpu(&[&q, &k, &v], &dout, |t| attention(&t[0], &t[1], &t[2], &shared, head));
        for m in Machine::all() {
            let inputs = [&q, &k, &v, &dout].map(|t| m.put(t));
            let room =
                [widths[0], widths[0], widths[1], widths[1]].map(|width| m.room(tokens * width, m.kind));
            let lse = m.room(heads * tokens, Type::F32);
            let sizes = ops::Attention::new(&*m.gpu, m.kind, tokens, [heads, kv_heads, head]).unwrap();
            let tiles = testing::indices(&*m.gpu, &ops::tiles(&lengths, sizes.rows));
            let [qs, ks, vs, douts] = inputs.each_ref().map(|b| b.of(m.kind));
            let [outs, dq, dk, dv] = room.each_ref().map(|b| b.of(m.kind));
            let (lse, tiles) = (lse.of(Type::F32), tiles.of(Type::U32));
            ops::attention(&*m.gpu, sizes, qs, [ks, vs], (outs, lse), tiles).unwrap();
            m.check("attention", outs, &out);
            let states = (outs, lse, douts);
            ops::attention_backward(&*m.gpu, sizes, qs, [ks, vs], states, [dq, dk, dv], tiles).unwrap();
            for (what, found, expected) in
                [("dq", dq, &gradients[0]), ("dk", dk, &gradients[1]), ("dv", dv, &gradients[2])]
            {
                m.check(what, found, expected);
            }
        }
    }
}

#[test]
fn attention_of_short_sequences() {
    let mut rng = rng();
    let (heads, kv_heads, head) = (4, 2, 40);
    let widths = [heads * head, kv_heads * head];
    for (lengths, last) in [(vec![1, 2, 16, 5, 3], false), (vec![1, 2, 16, 5, 3], true), (vec![4; 9], true)] {
        let tokens: usize = lengths.iter().sum();
        let queries = if last { lengths.len() } else { tokens };
        let [q, k, v, dout] = attention_inputs(&mut rng, queries, tokens, widths);
        let shared = Arc::new(lengths.clone());
        let (out, gradients) = on_cpu(&[&q, &k, &v], &dout, |t| match last {
            true => last_attention(&t[0], &t[1], &t[2], &shared, head),
            false => attention(&t[0], &t[1], &t[2], &shared, head),
        });
        let short = ops::ShortSequences::of(&lengths, last).unwrap();
        for m in Machine::all() {
            let inputs = [&q, &k, &v, &dout].map(|t| m.put(t));
            let room = [(queries, widths[0]), (queries, widths[0]), (tokens, widths[1]), (tokens, widths[1])]
                .map(|(rows, width)| m.room(rows * width, m.kind));
            let [places, sequences] =
                [&short.places, &short.sequences].map(|list| testing::indices(&*m.gpu, list));
            let [qs, ks, vs, douts] = inputs.each_ref().map(|b| b.of(m.kind));
            let [outs, dq, dk, dv] = room.each_ref().map(|b| b.of(m.kind));
            let sizes = [heads, kv_heads, head];
            ops::short_attention(&*m.gpu, qs, [ks, vs], outs, places.of(Type::U32), sizes).unwrap();
            m.check("attention", outs, &out);
            let (gradient, sequences) = ([dq, dk, dv], sequences.of(Type::U32));
            ops::short_attention_backward(&*m.gpu, qs, [ks, vs], douts, gradient, sequences, sizes).unwrap();
            for (what, found, expected) in
                [("dq", dq, &gradients[0]), ("dk", dk, &gradients[1]), ("dv", dv, &gradients[2])]
            {
                m.check(what, found, expected);
            }
        }
    }
    assert!(
        ops::ShortSequences::of(&[3, 17], true).is_err() && ops::ShortSequences::of(&[0], false).is_err()
    );
}

#[test]
fn attention_in_a_tree() {
    let mut rng = rng();
    let (heads, kv_heads, head) = (4, 2, 40);
    let parents = [0u32, 1, 2, 0, 3, 3, 4, 2];
    let [q, k, v, _] = attention_inputs(&mut rng, 8, 8, [heads * head, kv_heads * head]);
    let expected = numbers(&tree_attention(&q, &k, &v, &parents, head).unwrap());
    for m in Machine::all() {
        let [qs, ks, vs] = [&q, &k, &v].map(|t| m.put(t));
        let (out, places) = (m.room(8 * heads * head, m.kind), testing::indices(&*m.gpu, &parents));
        let [qs, ks, vs, out] = [&qs, &ks, &vs, &out].map(|b| b.of(m.kind));
        let sizes = [heads, kv_heads, head];
        ops::tree_attention(&*m.gpu, qs, [ks, vs], out, places.of(Type::U32), sizes).unwrap();
        m.check("attention", out, &expected);
    }
}

#[test]
fn updates() {
    let mut rng = rng();
    let n = 1000;
    let [p, g, m, v] = [(); 4].map(|()| numbers(&vector(&mut rng, n)));
    let v: Vec<f32> = v.iter().map(|x| x.abs()).collect();
    let update = ops::AdamW { beta1: 0.9, beta2: 0.95, rate: 0.01, epsilon: 1e-8, keep: 0.99, scale: 0.5 };
    let gpu = &*testing::gpus()[0];
    let [ps, gs, ms, vs] = [&p, &g, &m, &v].map(|x| testing::numbers(gpu, x, Type::F32));
    let [ps, gs, ms, vs] = [&ps, &gs, &ms, &vs].map(|b| b.of(Type::F32));
    for (found, numbers) in ops::square_sums(gpu, &[gs, ms]).unwrap().iter().zip([&g, &m]) {
        assert!((found - numbers.iter().map(|x| f64::from(x * x)).sum::<f64>()).abs() < 1e-3);
    }
    ops::adamw(gpu, ps, gs, (ms, vs), update).unwrap();
    let (found_p, found_m, found_v) =
        (testing::read(gpu, ps), testing::read(gpu, ms), testing::read(gpu, vs));
    for i in 0..n {
        let gradient = g[i] * 0.5;
        let (m, v) = (0.9 * m[i] + 0.1 * gradient, 0.95 * v[i] + 0.05 * gradient * gradient);
        let p = p[i] * 0.99 - 0.01 * m / (v.sqrt() + 1e-8);
        assert!(
            (found_p[i] - p).abs() < 1e-6 && (found_m[i] - m).abs() < 1e-6 && (found_v[i] - v).abs() < 1e-6
        );
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let gpu = &*testing::gpus()[0];
    let [x, y] = [testing::numbers(gpu, &[1.0; 12], Type::F32), testing::numbers(gpu, &[1.0; 11], Type::F32)];
    let [x, y] = [&x, &y].map(|b| b.of(Type::F32));
    assert!(ops::add(gpu, x, y, x).is_err() && ops::swiglu(gpu, x, x, y).is_err());
    assert!(ops::rms_norm(gpu, y, x.part(0, 2).unwrap(), y, 1e-5).is_err());
    assert!(ops::linear(gpu, x, y, x, [3, 4, 3]).is_err());
    assert!(ops::convert(gpu, x, x).is_err() && x.part(5, 8).is_err());
}
