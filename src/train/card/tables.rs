//! The tables of a card.

use serde_json::Value;

use super::{Card, counted, number, scaled};
use crate::train::{Results, TextResult};

/// A column's head and where its figures come from.
type Column<'a> = (&'static str, &'a Results);

/// What was measured, and what it costs; who stands beside it comes first.
pub(super) fn figures(card: &Card) -> String {
    let Some(own) = &card.results else {
        return "## Figures\n\nNot measured yet: `scone-train measure RUN_DIR`, then `scone-train card RUN_DIR`.\n\n"
            .to_owned();
    };
    let name = |results: &Results| if results.fgrams > 0 { "SCONE" } else { "baseline" };
    let columns: Vec<Column<'_>> = match &card.against {
        Some(other) if name(other) == name(own) => vec![("the other", other), ("this", own)],
        Some(other) => vec![(name(other), other), (name(own), own)],
        None => vec![(name(own), own)],
    };
    let texts = own.texts.iter().map(|(name, text)| {
        let hash = text.sha256.get(..12).unwrap_or_default();
        format!("\"{name}\" is {} (sha256 {hash}...), {} words. ", text.file, number(text.words as f64))
    });
    format!(
        "## Figures\n\n{}\n{}\nMeasured by scone {} on the model as it is served, of one run (seed {}). {}A text is read in \
         windows of {} tokens, half of one apart. Validation data chose the weights. Operations are multiplications and \
         additions of matrix products and attention, each counted as one.\n\n",
        quality(&columns),
        costs(&columns),
        own.version,
        own.seed,
        texts.collect::<String>(),
        own.costs.context
    )
}

/// A row a figure: quality first, so that who reads on knows what for.
fn quality(columns: &[Column<'_>]) -> String {
    let mut text = head(columns, true);
    text += &row("validation: perplexity", columns, 2, |results| Some(results.validation.perplexity), true);
    text += &row(
        "validation: hit rate, %",
        columns,
        1,
        |results| hits(results, 100.0 * results.validation.hit_rate),
        false,
    );
    let names: Vec<&String> = columns.last().map_or(Vec::new(), |(_, own)| own.texts.keys().collect());
    for name in names {
        let mut add =
            |what: &str, places, figure: &dyn Fn(&Results, &TextResult) -> Option<f64>, compared| {
                let figure = |results: &Results| figure(results, results.texts.get(name)?);
                text += &row(&format!("{name}: {what}"), columns, places, figure, compared);
            };
        add("perplexity", 2, &|_, found| Some(found.perplexity), true);
        add("bits per byte", 4, &|_, found| Some(found.bits_per_byte), true);
        add("perplexity by the word", 2, &|_, found| Some(found.word_perplexity), true);
        add("hit rate, %", 1, &|results, found| hits(results, 100.0 * found.hit_rate), false);
        add("mean match, tokens", 2, &|results, found| hits(results, found.mean_match), false);
    }
    text
}

/// A figure that only a model with f-grams has.
fn hits(results: &Results, figure: f64) -> Option<f64> {
    (results.fgrams > 0).then_some(figure)
}

fn costs(columns: &[Column<'_>]) -> String {
    let mut text = head(columns, false);
    let mut add = |what: &str, figure: &dyn Fn(&Results) -> String| {
        let cells: String = columns.iter().map(|(_, results)| format!(" {} |", figure(results))).collect();
        text += &format!("| {what} |{cells}\n");
    };
    add("operations to serve a token, at the end of the context", &|r| scaled(r.costs.inference_flops));
    add("weights on the accelerator", &|r| scaled(r.costs.accelerator_bytes as f64) + "B");
    add("keys and values of one whole context", &|r| scaled(r.costs.kv_bytes as f64) + "B");
    add("table in the host's memory", &|r| scaled(r.costs.table_bytes as f64) + "B");
    add("operations to train", &|r| scaled(r.costs.training_flops));
    add("of these in the f-gram model", &|r| {
        format!("{:.1} %", 100.0 * r.costs.fgram_training_flops / r.costs.training_flops)
    });
    add("tokens trained on", &|r| number(r.history.tokens as f64));
    add("tokens a second in training", &|r| number(r.history.tokens_per_second));
    text
}

fn head(columns: &[Column<'_>], compared: bool) -> String {
    let mut names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    if compared && columns.len() == 2 {
        names.push("change");
    }
    let cells: String = names.iter().map(|name| format!(" {name} |")).collect();
    format!("| |{cells}\n|---|{}\n", "---|".repeat(names.len()))
}

fn row(
    what: &str,
    columns: &[Column<'_>],
    places: usize,
    figure: impl Fn(&Results) -> Option<f64>,
    compared: bool,
) -> String {
    let figures: Vec<Option<f64>> = columns.iter().map(|(_, results)| figure(results)).collect();
    let cell = |figure: &Option<f64>| match figure {
        Some(figure) => format!(" {figure:.places$} |"),
        None => " – |".to_owned(),
    };
    let cells: String = figures.iter().map(cell).collect();
    let change = match figures[..] {
        [Some(other), Some(own)] if compared => format!(" {:+.1} % |", 100.0 * (own / other - 1.0)),
        [_, _] => " |".to_owned(),
        _ => String::new(),
    };
    format!("| {what} |{cells}{change}\n")
}

/// What a run was started on, each machine once: a line each.
pub(super) fn environment(environment: &Value) -> String {
    let mut lines: Vec<String> = Vec::new();
    for start in environment["starts"].as_array().into_iter().flatten() {
        let text = |field: &str| start[field].as_str().unwrap_or("unknown").to_owned();
        let processes = match start["processes"].as_u64() {
            Some(processes) if processes > 1 => format!("{processes} processes, the first with "),
            _ => String::new(),
        };
        let line = format!(
            "- scone {}, {processes}{} of {} ({}), {}",
            text("version"),
            counted(start["threads"].as_u64().unwrap_or_default(), "thread"),
            text("cpu"),
            text("simd"),
            text("os")
        );
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("\n")
}
