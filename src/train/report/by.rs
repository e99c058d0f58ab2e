use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::chart::{Axis, Form, Line, Plot, Point, short, single};
use super::columns::{Align, Columns};
use super::compare::{differing, percent};
use super::equal::Equal;
use super::{Comparison, RunRecord, field};
use crate::train::TrainError;

/// What runs are laid out by. Each is the path of a figure or of a setting: see [`RunRecord::number`].
#[derive(Clone, Debug)]
pub struct Axes {
    /// What grows from left to right.
    pub by: String,
    /// What is judged; left out: the validation perplexity.
    pub of: Option<String>,
    /// What tells the lines apart; left out: whether a run has f-grams.
    pub series: Option<String>,
}

/// Runs laid out by a figure of theirs: one figure against another, a line a series.
///
/// Runs of one series that have the same number are repetitions: their mean is shown, and how far they lie apart. A
/// baseline that cannot have the number, such as a count of f-grams, is a level that the others are compared with.
pub struct Grid<'a> {
    by: String,
    of: String,
    comparison: &'a Comparison,
    series: Vec<Series<'a>>,
}

struct Series<'a> {
    label: String,
    /// The number that makes it a series, if it is one.
    value: Option<f64>,
    groups: Vec<Group<'a>>,
}

struct Group<'a> {
    x: Option<f64>,
    runs: Vec<&'a RunRecord>,
}

/// A figure over repetitions.
struct Spread {
    mean: f64,
    low: f64,
    high: f64,
}

impl Comparison {
    /// Lays the runs out.
    ///
    /// # Errors
    /// Where a run lacks a figure that it needs.
    pub fn by(&self, axes: &Axes) -> Result<Grid<'_>, TrainError> {
        let of = axes.of.clone().unwrap_or_else(|| format!("{}.perplexity", self.validation()));
        self.check(&[axes.by.clone(), of.clone()])?;
        self.check(axes.series.as_slice())?;
        let (mut series, mut level): (Vec<Series<'_>>, Option<&RunRecord>) = (Vec::new(), None);
        for run in self.runs() {
            let lacks = |path: &str| {
                let why = "a run that is to be laid out has none: measure it with `scone-train measure`, or leave it out";
                TrainError::Data(format!("{} has no number called {path}, and {why}", run.name))
            };
            let x = run.number(&axes.by);
            if x.is_none() && !run.is_baseline() {
                return Err(lacks(&axes.by));
            }
            run.number(&of).ok_or_else(|| lacks(&of))?;
            let mut label = series_label(run, axes.series.as_deref());
            // Baselines that are no repetitions of each other are levels of their own.
            let level = x.is_none().then(|| *level.get_or_insert(run));
            if level.is_some_and(|level| !other_settings(&[level, run]).is_empty()) {
                label.clone_from(&run.name);
            }
            let value = axes.series.as_ref().and_then(|path| run.number(path));
            let groups = match series.iter().position(|series| series.label == label) {
                Some(found) => &mut series[found].groups,
                None => {
                    series.push(Series { label, value, groups: Vec::new() });
                    let last = series.len() - 1;
                    &mut series[last].groups
                }
            };
            match groups.iter_mut().find(|group| group.x == x) {
                Some(group) => group.runs.push(run),
                None => groups.push(Group { x, runs: vec![run] }),
            }
        }
        for series in &mut series {
            series.groups.sort_by(|a, b| a.x.unwrap_or(f64::MIN).total_cmp(&b.x.unwrap_or(f64::MIN)));
        }
        // The first run's series is what the others are compared with.
        series[1..].sort_by(|a, b| a.value.unwrap_or(f64::MIN).total_cmp(&b.value.unwrap_or(f64::MIN)));
        Ok(Grid { by: axes.by.clone(), of, comparison: self, series })
    }
}

fn series_label(run: &RunRecord, path: Option<&str>) -> String {
    match path.map(|path| (path, run.number(path))) {
        Some((path, Some(value))) => format!("{} {}", field::label(path), field::cell(path, value)),
        _ if run.is_baseline() => "baseline".into(),
        Some((path, None)) => format!("no {}", field::label(path)),
        None => "SCONE".into(),
    }
}

impl Group<'_> {
    fn spread(&self, path: &str) -> Option<Spread> {
        let numbers: Vec<f64> = self.runs.iter().filter_map(|run| run.number(path)).collect();
        let low = numbers.iter().copied().min_by(f64::total_cmp)?;
        let high = numbers.iter().copied().max_by(f64::total_cmp)?;
        Some(Spread { mean: numbers.iter().sum::<f64>() / numbers.len() as f64, low, high })
    }
}

impl Grid<'_> {
    fn groups(&self) -> impl Iterator<Item = (&Series<'_>, &Group<'_>)> {
        self.series.iter().flat_map(|series| series.groups.iter().map(move |group| (series, group)))
    }

    fn first(&self) -> &RunRecord {
        &self.comparison.runs()[0]
    }

    /// A group's figure beside that of the first run's group, as a share.
    fn relative(&self, group: &Group<'_>) -> Option<f64> {
        let first = self.groups().map(|(_, group)| group);
        let first =
            first.filter(|group| group.runs.iter().any(|run| std::ptr::eq(*run, self.first()))).last()?;
        Some(group.spread(&self.of)?.mean / first.spread(&self.of)?.mean - 1.0)
    }

    /// The number at which the first series is as good as this group, if it is a line.
    fn equal(&self, series: &Series<'_>, group: &Group<'_>) -> Option<Equal> {
        let first = self.series.first().filter(|first| first.label != series.label)?;
        let line: Vec<(f64, f64)> =
            first.groups.iter().filter_map(|group| Some((group.x?, group.spread(&self.of)?.mean))).collect();
        Equal::on(&line, group.spread(&self.of)?.mean)
    }

    /// A table as Markdown, with these figures besides.
    ///
    /// # Errors
    /// Where none of the runs has one of them.
    pub fn table(&self, show: &[String]) -> Result<String, TrainError> {
        self.comparison.check(show)?;
        let cell = |group: &Group<'_>, path: &str| {
            let spread = group.spread(path)?;
            let [mean, low, high] = [spread.mean, spread.low, spread.high].map(|y| field::cell(path, y));
            Some(if low == high { mean } else { format!("{mean} ({low} to {high})") })
        };
        let mut columns = Columns::default();
        if self.series.len() > 1 {
            columns.add("", Align::Left, self.groups().map(|(series, _)| Some(series.label.clone())));
        }
        let xs = self.groups().map(|(_, group)| Some(field::cell(&self.by, group.x?)));
        columns.add(&field::label(&self.by), Align::Right, xs);
        if self.groups().any(|(_, group)| group.runs.len() > 1) {
            let counts = self.groups().map(|(_, group)| Some(group.runs.len().to_string()));
            columns.add("runs", Align::Right, counts);
        }
        columns.add(
            &field::label(&self.of),
            Align::Right,
            self.groups().map(|(_, group)| cell(group, &self.of)),
        );
        let relative = self.groups().map(|(_, group)| self.relative(group).filter(|share| *share != 0.0));
        let relative = relative.map(|share| share.map(percent));
        columns.add(&format!("to {}", self.first().name), Align::Right, relative);
        let equal = self.groups().map(|(series, group)| Some(self.equal(series, group)?.text(&self.by)));
        let first = self.series.first().map_or("", |series| &series.label);
        columns.add(&format!("as good as {first} of"), Align::Right, equal);
        for path in show {
            columns.add(&field::label(path), Align::Right, self.groups().map(|(_, group)| cell(group, path)));
        }
        Ok(columns.render() + &self.notes())
    }

    /// What to know before trusting a mean: that its runs differ in more than the seed.
    fn notes(&self) -> String {
        let notes = self.groups().filter_map(|(_, group)| {
            let other = other_settings(&group.runs);
            let names: Vec<&str> = group.runs.iter().map(|run| run.name.as_str()).collect();
            let (names, settings) = (names.join(", "), other.join(", "));
            (!other.is_empty())
                .then(|| format!("\n\n{names} are averaged, but differ in more than the seed: {settings}."))
        });
        notes.collect()
    }

    /// The same as numbers.
    pub fn json(&self) -> Value {
        let point = |series: &Series<'_>, group: &Group<'_>| {
            let spread = group.spread(&self.of);
            json!({
                "series": series.label,
                "at": group.x,
                "runs": group.runs.iter().map(|run| &run.name).collect::<Vec<_>>(),
                "mean": spread.as_ref().map(|spread| spread.mean),
                "lowest": spread.as_ref().map(|spread| spread.low),
                "highest": spread.as_ref().map(|spread| spread.high),
                "relative": self.relative(group),
                "as_good_as_first_series_at": self.equal(series, group).and_then(|equal| equal.number()),
            })
        };
        let points: Vec<Value> = self.groups().map(|(series, group)| point(series, group)).collect();
        json!({ "by": self.by, "of": self.of, "relative_to": self.first().name, "points": points })
    }

    /// An SVG: a line a series, the spread of repetitions as bars.
    pub fn chart(&self) -> String {
        let point = |group: &Group<'_>| {
            let Spread { mean, low, high } = group.spread(&self.of)?;
            Some(Point { x: group.x.unwrap_or(f64::NAN), y: mean, low, high })
        };
        let lines: Vec<Line> = self
            .series
            .iter()
            .map(|series| {
                let points: Vec<Point> = series.groups.iter().filter_map(point).collect();
                let is_level = series.groups.iter().all(|group| group.x.is_none());
                let last = points.last().filter(|_| is_level).map(|point| format!(" {}", short(point.y, 4)));
                let form = if is_level { Form::Level } else { Form::Dots };
                Line { label: series.label.clone() + &last.unwrap_or_default(), form, points }
            })
            .collect();
        let points = || lines.iter().flat_map(|line| &line.points);
        let [x, y] = [&self.by, &self.of].map(|path| field::label(path));
        single(Plot {
            title: format!("{} against {x}", capitalized(&y)),
            x: Axis::fitting(&x, points().map(|point| point.x)),
            y: Axis::linear(&y, points().flat_map(|point| [point.low, point.high])),
            lines,
        })
    }
}

/// In what settings runs differ, the seed left out and what says nothing of their steps.
fn other_settings(runs: &[&RunRecord]) -> Vec<String> {
    let all: BTreeSet<String> = differing(runs).into_iter().flat_map(BTreeMap::into_keys).collect();
    all.into_iter().filter(|path| path != "seed" && !unseen(path)).collect()
}

fn unseen(path: &str) -> bool {
    ["checkpoint.", "samples.", "card."].iter().any(|section| path.starts_with(section))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
