use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::{Output, gpu_of, held, indices, node, said};
use crate::gpu::{Buffer, Gpu, Type, ops};

/// Sequences up to this length are done row by row.
const SHORT: usize = 16;

fn sizes(q: &Tensor, k: &Tensor, v: &Tensor, tokens: usize, head: usize) -> Result<[usize; 3]> {
    let (width, (keys, kv)) = (q.dim(1)?, k.dims2()?);
    if v.dims() != k.dims() || keys != tokens || kv == 0 || head == 0 || width % kv != 0 || kv % head != 0 {
        bail!(
            "attention: q {:?} and k {:?}, v {:?} over {tokens} tokens do not fit",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    Ok([width / head, kv / head, head])
}

/// Causal attention inside the sequences of a ragged batch.
pub(in crate::model::ops) fn attention(
    gpu: &dyn Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &Arc<Vec<usize>>,
    head: usize,
) -> Result<Tensor> {
    let tokens = lengths.iter().sum();
    let [heads, kv_heads, head] = sizes(q, k, v, tokens, head)?;
    if q.dim(0)? != tokens {
        bail!("attention: {} queries for {tokens} tokens", q.dim(0)?);
    }
    if lengths.iter().all(|length| (1..=SHORT).contains(length)) {
        return short(gpu, q, k, v, lengths, [heads, kv_heads, head], false);
    }
    let kind = held(q)?.slice()?.kind();
    let sizes = ops::Attention::new(gpu, kind, tokens, [heads, kv_heads, head]).map_err(said)?;
    let tiles = ops::tiles(lengths, sizes.rows);
    let out = Output::new(q.shape(), q.dtype(), q.device())?;
    let lse = gpu.alloc(heads * tokens * Type::F32.bytes()).map_err(said)?;
    let places = indices(gpu, &tiles)?;
    let result = (out.slice()?, lse.of(Type::F32));
    let operands = [held(q)?, held(k)?, held(v)?];
    let [q_at, k_at, v_at] = operands.each_ref().map(super::Held::slice);
    ops::attention(gpu, sizes, q_at?, [k_at?, v_at?], result, places.of(Type::U32)).map_err(said)?;
    let states = States { lse, places };
    node("attention", [q, k, v], out, move |operands, out, dout| states.backward(sizes, operands, out, dout))
}

/// What the backward pass needs of the forward pass.
struct States {
    lse: Buffer,
    places: Buffer,
}

impl States {
    fn backward(
        &self,
        sizes: ops::Attention,
        operands: [&Tensor; 3],
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let Some(gpu) = gpu_of(out.device())? else { return Ok([None, None, None]) };
        let [q, k, v] = operands;
        let gradients = gradients([q, k, v])?;
        let [dq, dk, dv] = gradients.each_ref().map(Output::slice);
        let [q, k, v, out, dout] = [held(q)?, held(k)?, held(v)?, held(out)?, held(dout)?];
        let states = (out.slice()?, self.lse.of(Type::F32), dout.slice()?);
        let places = self.places.of(Type::U32);
        let kv = [k.slice()?, v.slice()?];
        ops::attention_backward(&*gpu, sizes, q.slice()?, kv, states, [dq?, dk?, dv?], places)
            .map_err(said)?;
        Ok(gradients.map(|gradient| Some(gradient.into_tensor())))
    }
}

fn gradients([q, k, v]: [&Tensor; 3]) -> Result<[Output; 3]> {
    let room = |x: &Tensor| Output::new(x.shape(), x.dtype(), x.device());
    Ok([room(q)?, room(k)?, room(v)?])
}

/// Attention of the last token of each short sequence.
pub(in crate::model::ops) fn last_attention(
    gpu: &dyn Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &Arc<Vec<usize>>,
    head: usize,
) -> Result<Tensor> {
    let heads = sizes(q, k, v, lengths.iter().sum(), head)?;
    if q.dim(0)? != lengths.len() {
        bail!("attention: {} queries for {} sequences", q.dim(0)?, lengths.len());
    }
    short(gpu, q, k, v, lengths, heads, true)
}

fn short(
    gpu: &dyn Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &[usize],
    heads: [usize; 3],
    last: bool,
) -> Result<Tensor> {
    let sequences = ops::ShortSequences::of(lengths, last).map_err(said)?;
    let out = Output::new(q.shape(), q.dtype(), q.device())?;
    let places = indices(gpu, &sequences.places)?;
    let operands = [held(q)?, held(k)?, held(v)?];
    let [q_at, k_at, v_at] = operands.each_ref().map(super::Held::slice);
    let places = places.of(Type::U32);
    ops::short_attention(gpu, q_at?, [k_at?, v_at?], out.slice()?, places, heads).map_err(said)?;
    node("short-attention", [q, k, v], out, move |[q, k, v], _, dout| {
        let Some(gpu) = gpu_of(q.device())? else { return Ok([None, None, None]) };
        let gradients = gradients([q, k, v])?;
        let [dq, dk, dv] = gradients.each_ref().map(Output::slice);
        let places = indices(&*gpu, &sequences.sequences)?;
        let [q, k, v, dout] = [held(q)?, held(k)?, held(v)?, held(dout)?];
        let (kv, changes) = ([k.slice()?, v.slice()?], [dq?, dk?, dv?]);
        let places = places.of(Type::U32);
        ops::short_attention_backward(&*gpu, q.slice()?, kv, dout.slice()?, changes, places, heads)
            .map_err(said)?;
        Ok(gradients.map(|gradient| Some(gradient.into_tensor())))
    })
}

/// Attention in a tree, whose parents were checked.
pub(in crate::model::ops) fn tree_attention(
    gpu: &dyn Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    parents: &[u32],
    head: usize,
) -> Result<Tensor> {
    let heads = sizes(q, k, v, parents.len(), head)?;
    if parents.iter().enumerate().any(|(i, &parent)| parent as usize > i) {
        bail!("attention in a tree: a parent that comes later");
    }
    let out = Output::new(q.shape(), DType::clone(&q.dtype()), q.device())?;
    let places = indices(gpu, parents)?;
    let (q, k, v) = (held(q)?, held(k)?, held(v)?);
    let kv = [k.slice()?, v.slice()?];
    ops::tree_attention(gpu, q.slice()?, kv, out.slice()?, places.of(Type::U32), heads).map_err(said)?;
    Ok(out.into_tensor())
}
