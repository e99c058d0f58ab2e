use super::{Shape, Wanted};
use crate::gpu::ops;
use crate::kernels::{BLOCK, Span};
use crate::model::Draw;

/// A sequence's part of a step from so many rows on is done in tiles, else query by query.
const MANY: usize = 8;

/// The slot of a row that only fills a batch.
const NONE: u32 = u32::MAX;

/// What a step reads besides weights, as one list of numbers, and how many of what there are.
pub(super) struct Plan {
    /// Sources, positions and slots by row; three numbers a query; four a tile; the wanted rows and a draw for each; the
    /// sequences' pages; the ranks of rows that the GPU reads by itself.
    pub(super) numbers: Vec<u32>,
    pub(super) rows: usize,
    pub(super) queries: usize,
    pub(super) tiles: usize,
    pub(super) wanted: usize,
    pub(super) pages: usize,
    pub(super) ranks: usize,
    /// Chunks of positions that a query sees at most.
    pub(super) chunks: usize,
}

impl Plan {
    /// Of a ragged batch; filled up to `size` rows where that is given and each span is one row, whose logits are wanted.
    pub(super) fn new(
        spans: &[Span<'_>],
        (sources, ranks): (&[u32], &[u32]),
        wanted: Wanted<'_>,
        size: Option<usize>,
        shape: Shape,
    ) -> Self {
        let fill = size.map_or(0, |size| size - sources.len());
        let tile = shape.tile;
        let (mut positions, mut slots) = (Vec::new(), Vec::new());
        let (mut queries, mut tiles, mut pages) = (Vec::new(), Vec::new(), Vec::new());
        let (mut row, mut longest) = (0, 1);
        for span in spans {
            let (begin, end) = (pages.len(), span.past + span.new);
            pages.extend_from_slice(&span.blocks[..end.div_ceil(BLOCK)]);
            for position in span.past..end {
                positions.push(position as u32);
                slots.push(span.blocks[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32);
                if span.new < MANY {
                    queries.extend([(row + position - span.past) as u32, begin as u32, position as u32 + 1]);
                    longest = longest.max(position + 1);
                }
            }
            for from in (0..span.new).step_by(tile).filter(|_| span.new >= MANY) {
                let count = tile.min(span.new - from);
                tiles.extend([row + from, count, span.past + from, begin].map(|number| number as u32));
            }
            row += span.new;
        }
        let rows = sources.len() + fill;
        for row in sources.len()..rows {
            positions.push(0);
            slots.push(NONE);
            queries.extend([row as u32, 0, 0]);
        }
        let mut chunks = longest.div_ceil(ops::CHUNK);
        if size.is_some() {
            // Fewer different steps to record.
            chunks = chunks.next_power_of_two();
        }
        let wanted_rows: Vec<u32> = wanted
            .rows
            .iter()
            .map(|&row| row as u32)
            .chain((sources.len()..rows).map(|row| row as u32))
            .collect();
        let mut draws: Vec<u32> = wanted
            .choosing
            .iter()
            .flat_map(|draw| draw.map_or_else(ops::Draw::default, draw_of).numbers())
            .collect();
        draws.resize(wanted_rows.len() * ops::Draw::NUMBERS, 0);
        let counts = (queries.len() / 3, tiles.len() / 4, wanted_rows.len(), pages.len());
        let numbers = [
            sources,
            &vec![0; fill],
            &positions,
            &slots,
            &queries,
            &tiles,
            &wanted_rows,
            &draws,
            &pages,
            ranks,
        ]
        .concat();
        let (queries, tiles, wanted, pages) = counts;
        Self { numbers, rows, queries, tiles, wanted, pages, ranks: ranks.len(), chunks }
    }

    /// What two steps must have in common to be asked for in the same way, if they are filled up.
    pub(super) fn key(&self) -> (usize, usize) {
        (self.rows, self.chunks)
    }
}

/// A draw as the kernel reads it.
fn draw_of(draw: Draw) -> ops::Draw {
    let Draw { temperature, top_p, top_k, min_p, uniform } = draw;
    // As the sampler on the CPU has it: no temperature overflows, and minus infinity keeps its weight of nothing.
    let scale = (1.0 / temperature).clamp(f64::from(f32::MIN_POSITIVE), 1e30) as f32;
    ops::Draw {
        scale: if temperature == 0.0 { 0.0 } else { scale },
        min_p: min_p as f32,
        top_p: top_p as f32,
        uniform: (uniform as f32).min(1.0_f32.next_down()),
        top_k: u32::try_from(top_k).unwrap_or(0),
    }
}
