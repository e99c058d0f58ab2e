//! What runs have come to: a run's curves, and runs beside each other as tables and charts.
//!
//! Read from what lies in a run's directory, and nothing else: `config.toml`, `metrics.jsonl` and, where the model has
//! been measured, `results.json`. So runs whose weights are long gone are still compared, and so are those that go on.

mod by;
mod chart;
mod columns;
mod compare;
mod curves;
mod equal;
mod field;
mod record;
#[cfg(test)]
mod tests;

pub use by::{Axes, Grid};
pub use compare::Comparison;
pub(super) use curves::draw_curves;
pub use record::RunRecord;
pub(super) use record::read_updates;
