use half::f16;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};

use super::*;

/// A sequence with keys and values, and its blocks.
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    blocks: Vec<u32>,
    len: usize,
}

struct Setting {
    heads: usize,
    shape: KvShape,
    sequences: Vec<Sequence>,
}

fn setting(kv_heads: usize, group: usize, head: usize, lengths: &[usize], seed: u64) -> Setting {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut random = |len: usize| (0..len).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect::<Vec<_>>();
    let (mut sequences, mut next) = (Vec::new(), 0);
    for &len in lengths {
        let [k, v] = [0, 1].map(|_| random(len * kv_heads * head));
        let q = random(len * kv_heads * group * head);
        let blocks = (next..next + len.div_ceil(BLOCK) as u32).collect();
        next += len.div_ceil(BLOCK) as u32;
        sequences.push(Sequence { q, k, v, blocks, len });
    }
    // Blocks of different sequences lie between each other, and not in order.
    for sequence in &mut sequences {
        sequence.blocks.iter_mut().for_each(|block| *block = (*block * 7 + 3) % (7 * next));
    }
    Setting { heads: kv_heads * group, shape: KvShape { layers: 2, heads: kv_heads, head }, sequences }
}

impl Setting {
    fn cache(&self, kv: KvType) -> KvCache {
        let most = self.sequences.iter().flat_map(|s| &s.blocks).max().map_or(1, |&block| block as usize + 1);
        KvCache::new(self.shape, kv, most).unwrap()
    }

    /// The results of all sequences, computed in pieces of the given sizes beside each other.
    fn attend(&self, kv: KvType, pool: &Pool, cuts: &[usize]) -> Vec<Vec<f32>> {
        let mut cache = self.cache(kv);
        let mut plan = AttentionPlan::default();
        let (q_width, kv_width) = (self.heads * self.shape.head, self.shape.heads * self.shape.head);
        let mut done = vec![0; self.sequences.len()];
        let mut results = vec![Vec::new(); self.sequences.len()];
        for cut in cuts.iter().cycle() {
            let left = (0..done.len()).filter(|&i| done[i] < self.sequences[i].len).collect::<Vec<_>>();
            if left.is_empty() {
                break;
            }
            let (mut spans, mut q) = (Vec::new(), Vec::new());
            for &i in &left {
                let sequence = &self.sequences[i];
                let (past, new) = (done[i], (*cut + i).min(sequence.len - done[i]));
                spans.push(Span { blocks: &sequence.blocks, past, new });
                q.extend_from_slice(&sequence.q[past * q_width..(past + new) * q_width]);
                let writer = cache.writer(1);
                for at in past..past + new {
                    let row = at * kv_width..(at + 1) * kv_width;
                    let block = sequence.blocks[at / BLOCK];
                    // SAFETY: one thread.
                    unsafe { writer.write(block, at, &sequence.k[row.clone()], &sequence.v[row]) };
                }
            }
            plan.set(&spans, self.heads, self.shape, pool.threads());
            let mut out = vec![f32::NAN; q.len()];
            let queries = Queries { rows: &q, stride: q_width, heads: self.heads };
            cache.attend(pool, 1, &mut plan, &spans, &queries, &mut out);
            let mut rest = &out[..];
            for (&i, span) in left.iter().zip(&spans) {
                let (own, others) = rest.split_at(span.new * q_width);
                results[i].extend_from_slice(own);
                rest = others;
                done[i] += span.new;
            }
        }
        results
    }

    /// By the definition, in f64.
    fn naive(&self, round: impl Fn(f32) -> f64) -> Vec<Vec<f64>> {
        let (head, group) = (self.shape.head, self.heads / self.shape.heads);
        let kv_width = self.shape.heads * head;
        let one = |s: &Sequence, i: usize, h: usize| {
            let q = &s.q[(i * self.heads + h) * head..][..head];
            let at = |x: &[f32], j: usize, f: usize| round(x[j * kv_width + h / group * head + f]);
            let score =
                |j| (0..head).map(|f| f64::from(q[f]) * at(&s.k, j, f)).sum::<f64>() / (head as f64).sqrt();
            let weights: Vec<f64> = (0..=i).map(|j| score(j).exp()).collect();
            let sum: f64 = weights.iter().sum();
            (0..head)
                .map(|f| (0..=i).map(|j| weights[j] * at(&s.v, j, f)).sum::<f64>() / sum)
                .collect::<Vec<_>>()
        };
        self.sequences
            .iter()
            .map(|s| (0..s.len).flat_map(|i| (0..self.heads).flat_map(move |h| one(s, i, h))).collect())
            .collect()
    }
}

fn assert_close(found: &[Vec<f32>], expected: &[Vec<f64>]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        for (&x, &y) in found.iter().zip(expected) {
            assert!((f64::from(x) - y).abs() < 1e-5, "{x} is not {y}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn paged_attention_is_attention_and_depends_on_nothing_beside_it(
        kv_heads in 1usize..3,
        group in 1usize..9,
        head in prop::sample::select(vec![2, 8, 16, 20, 64, 80]),
        lengths in prop::collection::vec(1usize..60, 1..4),
        long in prop::option::of(250usize..600),
        cuts in prop::collection::vec(1usize..40, 1..4),
        seed: u64,
    ) {
        let mut lengths = lengths;
        // Several chunks, where it does not take too long.
        lengths.extend(long.filter(|_| head * group < 100));
        let setting = setting(kv_heads, group, head, &lengths, seed);
        let alone = Pool::new(1).unwrap();
        let whole = setting.attend(KvType::F32, &alone, &[1000]);
        assert_close(&whole, &setting.naive(f64::from));
        let rounded = setting.attend(KvType::F16, &alone, &[1000]);
        assert_close(&rounded, &setting.naive(|x| f16::from_f32(x).to_f64()));
        let three = Pool::new(3).unwrap();
        prop_assert!(whole == setting.attend(KvType::F32, &three, &cuts));
        prop_assert!(rounded == setting.attend(KvType::F16, &three, &cuts));
    }
}

/// One token after many, alone: its chunks are tasks of their own.
#[test]
fn chunks_apart_give_the_same_bits() {
    let setting = setting(1, 3, 16, &[1100], 5);
    let whole = setting.attend(KvType::F16, &Pool::new(1).unwrap(), &[1100]);
    let decoded = setting.attend(KvType::F16, &Pool::new(4).unwrap(), &[1000, 1, 1, 1]);
    assert!(whole == decoded);
}
