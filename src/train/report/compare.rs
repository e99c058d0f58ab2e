use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::chart::{Axis, Form, Line, Plot, single};
use super::columns::{Align, Columns};
use super::curves::{after_the_beginning, validation_losses};
use super::{RunRecord, field};
use crate::train::TrainError;

/// Runs side by side; what is relative is relative to the first.
pub struct Comparison {
    pub(super) runs: Vec<RunRecord>,
}

impl Comparison {
    /// Reads the directories of runs. Where two have the same name, all go by their paths.
    ///
    /// # Errors
    /// Where there is none, or one cannot be read: see [`RunRecord::read`].
    pub fn read(directories: &[PathBuf]) -> Result<Self, TrainError> {
        let mut runs =
            directories.iter().map(|directory| RunRecord::read(directory)).collect::<Result<Vec<_>, _>>()?;
        if runs.is_empty() {
            return Err(TrainError::Data("there are no runs to compare".into()));
        }
        let names: BTreeSet<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        if names.len() < runs.len() {
            for run in &mut runs {
                run.name = run.directory().display().to_string();
            }
        }
        Ok(Self { runs })
    }

    /// The runs, in the order they were named.
    pub fn runs(&self) -> &[RunRecord] {
        &self.runs
    }

    /// Where the validation loss is to be found: that of the served model where it was measured for all runs, and
    /// otherwise the lowest of those in training. The two are never mixed.
    pub(super) fn validation(&self) -> &'static str {
        let measured = self.runs.iter().all(|run| run.number("validation.loss").is_some());
        if measured { "validation" } else { "best" }
    }

    /// A table of the runs as Markdown, with these figures besides the usual ones.
    ///
    /// # Errors
    /// Where none of the runs has one of those figures.
    pub fn table(&self, show: &[String]) -> Result<String, TrainError> {
        self.check(show)?;
        let validation = self.validation();
        let [loss, perplexity] = ["loss", "perplexity"].map(|figure| format!("{validation}.{figure}"));
        let mut columns = Columns::default();
        columns.add("run", Align::Left, self.runs.iter().map(|run| Some(run.name.clone())));
        let add = |columns: &mut Columns, path: &str| {
            let cells = self.runs.iter().map(|run| Some(field::cell(path, run.number(path)?)));
            columns.add(&field::label(path), Align::Right, cells);
        };
        for path in ["parameters.main", "parameters.fgram", "fgrams", "max_n", "tokens", &loss, &perplexity] {
            add(&mut columns, path);
        }
        let relative = self.relative(&perplexity).into_iter().enumerate();
        let relative = relative.map(|(i, share)| share.filter(|_| i > 0).map(percent));
        columns.add(&format!("to {}", self.runs[0].name), Align::Right, relative);
        for path in self.text_figures().iter().chain(show) {
            add(&mut columns, path);
        }
        add(&mut columns, "tokens_per_second");
        let settings = differing(&self.runs.iter().collect::<Vec<_>>()).into_iter().map(|settings| {
            let settings: Vec<String> =
                settings.iter().map(|(path, value)| format!("{path}={value}")).collect();
            (!settings.is_empty()).then(|| settings.join(" "))
        });
        columns.add("settings that differ", Align::Left, settings);
        Ok(columns.render())
    }

    /// Perplexity and hit rate of the texts that runs were measured on.
    fn text_figures(&self) -> Vec<String> {
        let texts = self.runs.iter().filter_map(|run| run.figures().get("texts")?.as_object());
        let names: BTreeSet<&String> = texts.flat_map(|texts| texts.keys()).collect();
        let figures = ["perplexity", "hit_rate"];
        names.iter().flat_map(|name| figures.map(|figure| format!("texts.{name}.{figure}"))).collect()
    }

    /// How much more of a figure each run has than the first, as a share.
    fn relative(&self, path: &str) -> Vec<Option<f64>> {
        let first = self.runs[0].number(path);
        self.runs.iter().map(|run| Some(run.number(path)? / first? - 1.0)).collect()
    }

    /// Everything that is known of the runs.
    pub fn json(&self) -> Value {
        let perplexity = format!("{}.perplexity", self.validation());
        let settings = differing(&self.runs.iter().collect::<Vec<_>>());
        let runs = self.runs.iter().zip(self.relative(&perplexity)).zip(settings).map(
            |((run, relative), settings)| {
                json!({
                    "name": run.name,
                    "directory": run.directory(),
                    "baseline": run.is_baseline(),
                    "figures": run.figures(),
                    "relative_perplexity": relative,
                    "settings_that_differ": settings,
                })
            },
        );
        json!({ "relative_to": perplexity, "runs": runs.collect::<Vec<_>>() })
    }

    /// An SVG of the runs' validation losses over the tokens they were trained on.
    ///
    /// # Errors
    /// Where none has been validated yet.
    pub fn chart(&self) -> Result<String, TrainError> {
        let line = |run: &RunRecord| {
            let points = validation_losses(&run.updates);
            let best = points.iter().map(|point| point.y).min_by(f64::total_cmp)?;
            Some(Line {
                label: format!("{} {}", run.name, field::cell("loss", best)),
                form: Form::Curve,
                points,
            })
        };
        let lines: Vec<Line> = self.runs.iter().filter_map(line).collect();
        if lines.is_empty() {
            return Err(TrainError::Data("there is nothing to draw: no run has been validated yet".into()));
        }
        let tokens = lines.iter().flat_map(|line| line.points.iter().map(|point| point.x)).chain([0.0]);
        Ok(single(Plot {
            title: "Validation loss (at the line's end: the lowest)".into(),
            x: Axis::linear("tokens trained on", tokens),
            y: Axis::linear("validation loss, nats a token", after_the_beginning(&lines)),
            lines,
        }))
    }

    /// Refuses figures that no run has, with those that there are.
    pub(super) fn check(&self, paths: &[String]) -> Result<(), TrainError> {
        let missing = paths.iter().find(|path| self.runs.iter().all(|run| run.number(path).is_none()));
        let Some(missing) = missing else { return Ok(()) };
        let known: BTreeSet<String> = self.runs.iter().flat_map(RunRecord::paths).collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        Err(TrainError::Data(format!("no run has a number called {missing}. There are: {known}")))
    }
}

/// For each run the settings in which runs with such a section differ, with its own value.
pub(super) fn differing(runs: &[&RunRecord]) -> Vec<BTreeMap<String, String>> {
    let settings: Vec<BTreeMap<String, String>> =
        runs.iter().map(|run| run.settings().into_iter().collect()).collect();
    let section = |path: &str| path.split('.').next().unwrap_or(path).to_owned();
    let sections: Vec<BTreeSet<String>> =
        settings.iter().map(|settings| settings.keys().map(|path| section(path)).collect()).collect();
    let differs = |path: &str| {
        let with = settings.iter().zip(&sections).filter(|(_, sections)| sections.contains(&section(path)));
        with.map(|(settings, _)| settings.get(path)).collect::<BTreeSet<_>>().len() > 1
    };
    let own = |settings: &BTreeMap<String, String>| {
        settings.iter().filter(|(path, _)| differs(path)).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    settings.iter().map(own).collect()
}

/// A share, with its sign.
pub(super) fn percent(share: f64) -> String {
    format!("{:+.2} %", 100.0 * share)
}
