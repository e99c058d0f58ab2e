use std::path::Path;

use super::chart::{Axis, Form, Line, Plot, Point, picture, short};
use super::record::read_updates;
use crate::new_file;
use crate::train::{Progress, TrainError};

/// As many points as a line gets: more could not be told apart.
const BLOCKS: usize = 200;

/// Draws `metrics.jsonl` of a run's directory as `curves.svg` beside it: training and validation loss, learning rate,
/// gradient norm, all over the tokens trained on.
pub(in crate::train) fn draw_curves(directory: &Path) -> Result<(), TrainError> {
    let updates = read_updates(&directory.join("metrics.jsonl"))?;
    let name = directory.file_name().unwrap_or(directory.as_os_str()).to_string_lossy();
    let path = directory.join("curves.svg");
    new_file::write(&path, curves(&name, &updates).as_bytes()).map_err(TrainError::io(&path))
}

/// The picture of one run.
pub(super) fn curves(name: &str, updates: &[Progress]) -> String {
    let tokens = || updates.iter().map(|update| update.tokens as f64).chain([0.0]);
    let axis = || Axis::linear("tokens trained on", tokens());
    let validation: Vec<Point> = validation_losses(updates);
    let losses = [("training", blocks(updates, |update| update.loss)), ("validation", validation)];
    let lines: Vec<Line> = losses
        .into_iter()
        .filter_map(|(label, points)| {
            let label = format!("{label} {}", short(points.last()?.y, 4));
            Some(Line { label, form: Form::Curve, points })
        })
        .collect();
    let loss = Plot {
        title: format!("{name}: {} updates", updates.last().map_or(0, |update| update.step)),
        x: axis(),
        y: Axis::linear("loss, nats a token", after_the_beginning(&lines)),
        lines,
    };
    let small = |label: &str, value: fn(&Progress) -> f64| {
        // What was validated before the first update has neither.
        let points = blocks(updates, |update| update.loss.and(Some(value(update))));
        let shown = points.iter().flat_map(|point| [point.low, point.high]);
        let y = Axis::fitting(label, shown);
        let lines = vec![Line { label: String::new(), form: Form::Curve, points }];
        Plot { title: String::new(), x: axis(), y, lines }
    };
    let rate = Plot {
        y: Axis::linear("learning rate", updates.iter().map(|update| update.learning_rate).chain([0.0])),
        ..small("learning rate", |update| update.learning_rate)
    };
    let norm = small("gradient norm, unclipped", |update| update.gradient_norm);
    picture(
        860.0,
        640.0,
        &format!("Training curves of {name}"),
        &[
            (loss, (0.0, 0.0, 860.0, 390.0)),
            (rate, (0.0, 390.0, 430.0, 250.0)),
            (norm, (430.0, 390.0, 430.0, 250.0)),
        ],
    )
}

/// The validation losses of a run, over its tokens.
pub(super) fn validation_losses(updates: &[Progress]) -> Vec<Point> {
    let point = |update: &Progress| {
        let (x, y) = (update.tokens as f64, update.validation_loss.filter(|loss| loss.is_finite())?);
        Some(Point { x, y, low: y, high: y })
    };
    updates.iter().filter_map(point).collect()
}

/// Updates side by side are averaged, and the extremes kept: a spike shows however long the run.
fn blocks(updates: &[Progress], value: impl Fn(&Progress) -> Option<f64>) -> Vec<Point> {
    let block = |updates: &[Progress]| {
        let values: Vec<f64> = updates.iter().filter_map(&value).filter(|value| value.is_finite()).collect();
        let mean = |sum: f64, count: usize| (count > 0).then(|| sum / count as f64);
        Some(Point {
            x: mean(updates.iter().map(|update| update.tokens as f64).sum(), updates.len())?,
            y: mean(values.iter().sum(), values.len())?,
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    };
    updates.chunks(updates.len().div_ceil(BLOCKS).max(1)).filter_map(block).collect()
}

/// What a loss axis must show: all but each line's first tenth, where losses fall from so high that nothing else could
/// be told apart.
pub(super) fn after_the_beginning(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines.iter().flat_map(|line| {
        let end = line.points.last().map_or(0.0, |point| point.x);
        line.points.iter().filter(move |point| point.x >= 0.1 * end).map(|point| point.y)
    })
}
