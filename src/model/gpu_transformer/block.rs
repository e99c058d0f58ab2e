use super::weight::{Side, Weight};
use super::workspace::Parts;
use super::{Shape, Workspace};
use crate::gpu::{Buffer, Gpu, GpuError, Slice, Type, ops};

/// One layer's weights.
pub(super) struct Block {
    pub(super) attention_norm: Buffer,
    pub(super) qkv: Side,
    /// Of queries, keys and values, side by side (Qwen2).
    pub(super) bias: Option<Buffer>,
    /// The norms of queries and keys, by head (Qwen3).
    pub(super) head_norms: Option<[Buffer; 2]>,
    pub(super) o: Weight,
    pub(super) o_bias: Option<Buffer>,
    pub(super) ffn_norm: Buffer,
    pub(super) gate_up: Side,
    pub(super) down: Weight,
}

fn or_none(buffer: Option<&Buffer>) -> Slice<'_> {
    buffer.map_or(Slice::none(Type::F32), |buffer| buffer.of(Type::F32))
}

impl Block {
    pub(super) fn bytes(&self) -> usize {
        self.qkv.bytes() + self.o.bytes() + self.gate_up.bytes() + self.down.bytes()
    }

    /// What the tokens attend to, as a change of the residual stream; what the layer before had to change is added first.
    #[allow(clippy::too_many_arguments, reason = "what a layer is given")]
    pub(super) fn attention(
        &self,
        gpu: &dyn Gpu,
        shape: &Shape,
        parts: &Parts<'_>,
        frequencies: Slice<'_>,
        [keys, values]: [Slice<'_>; 2],
        change: Slice<'_>,
        work: &Workspace,
    ) -> Result<(), GpuError> {
        let (rows, d) = (parts.rows, shape.width);
        let x = work.x.of(shape.kind).part(0, rows * d)?;
        let none = Slice::none(Type::F32);
        ops::add_norm(gpu, parts.residual, change, none, self.attention_norm.of(Type::F32), x, shape.eps)?;
        let qkv = work.wide.of(shape.kind).part(0, rows * shape.qkv())?;
        self.qkv.product(gpu, x, (qkv, shape.qkv()), rows, work)?;
        let turn = ops::Turn {
            bias: or_none(self.bias.as_ref()),
            q_norm: or_none(self.head_norms.as_ref().map(|[q, _]| q)),
            k_norm: or_none(self.head_norms.as_ref().map(|[_, k]| k)),
            frequencies,
            eps: shape.eps,
            heads: shape.all_heads(),
        };
        ops::turn(gpu, qkv, turn, parts.positions, parts.slots, [keys, values])?;
        let mixed = work.mixed.of(shape.kind).part(0, rows * shape.queries())?;
        let paged =
            ops::Paged { qkv, keys, values, pages: parts.pages, heads: shape.all_heads(), tile: shape.tile };
        ops::paged_tiles(gpu, paged, parts.tiles, mixed)?;
        ops::paged_queries(gpu, paged, parts.queries, parts.chunks, work.parts.of(Type::F32), mixed)?;
        self.o.product(gpu, mixed, (work.change.of(Type::F32).part(0, rows * d)?, d), rows, work)
    }

    /// The feed-forward layer, after what attention changes was added: what is still to be added to the residual stream.
    pub(super) fn feed_forward<'a>(
        &self,
        gpu: &dyn Gpu,
        shape: &Shape,
        parts: &Parts<'_>,
        work: &'a Workspace,
    ) -> Result<Slice<'a>, GpuError> {
        let change = work.change.of(Type::F32).part(0, parts.rows * shape.width)?;
        self.through(gpu, shape, parts.residual, change, work, parts.rows)?;
        Ok(change)
    }

    /// As `feed_forward`, for the wanted rows alone: of the others nothing more is read.
    pub(super) fn last_feed_forward<'a>(
        &self,
        gpu: &dyn Gpu,
        shape: &Shape,
        parts: &Parts<'a>,
        work: &Workspace,
    ) -> Result<Slice<'a>, GpuError> {
        let (d, none) = (shape.width, Slice::none(Type::F32));
        let change = work.change.of(Type::F32).part(0, parts.rows * d)?;
        ops::take_rows(gpu, (parts.residual, none), parts.wanted, parts.kept, d)?;
        ops::take_rows(gpu, (change, none), parts.wanted, parts.kept_change, d)?;
        self.through(gpu, shape, parts.kept, parts.kept_change, work, parts.wanted_rows)?;
        Ok(parts.kept_change)
    }

    fn through(
        &self,
        gpu: &dyn Gpu,
        shape: &Shape,
        residual: Slice<'_>,
        change: Slice<'_>,
        work: &Workspace,
        rows: usize,
    ) -> Result<(), GpuError> {
        let (d, ffn) = (shape.width, shape.feed_forward);
        let x = work.x.of(shape.kind).part(0, rows * d)?;
        ops::add_norm(
            gpu,
            residual,
            change,
            or_none(self.o_bias.as_ref()),
            self.ffn_norm.of(Type::F32),
            x,
            shape.eps,
        )?;
        let wide = work.wide.of(shape.kind).part(0, rows * 2 * ffn)?;
        self.gate_up.product(gpu, x, (wide, 2 * ffn), rows, work)?;
        let inner = work.x.of(shape.kind).part(0, rows * ffn)?;
        ops::gated(gpu, wide, inner, ffn)?;
        self.down.product(gpu, inner, (change, d), rows, work)
    }
}
