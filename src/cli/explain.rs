//! `scone explain`: which f-gram each token of a text matched.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use super::{DEFAULT_MODEL, text_argument};
use crate::model::ModelDirectory;
use crate::table::Table;
use crate::tokenizer::{Decoder, Tokenizer};

/// Show which f-gram each token of a text matched
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: scone explain --text \"It was the best of times, it was the worst of times\"

In a terminal the text is coloured by match length. --json prints {\"tokens\": [{id, text, match, fgram, row, count}]}: \
match is 2 to K, 1 where the token fell back to its own embedding, 0 for a special token; row is the f-gram's rank from \
0, its line in `scone table export`; fgram, row and count are null where there is no match."
)]
pub struct Args {
    /// The model whose table is looked up
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// The text; - reads standard input
    #[arg(long, value_name = "TEXT")]
    text: String,
    /// Another table than the directory's
    #[arg(long, env = "SCONE_TABLE", value_name = "FILE")]
    table: Option<PathBuf>,
    /// Print one JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// A token and its match.
#[derive(Debug, Serialize)]
struct Explained {
    id: u32,
    text: String,
    #[serde(rename = "match")]
    length: u8,
    fgram: Option<String>,
    row: Option<u32>,
    count: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// Where the model cannot be read or the table does not fit it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let directory = ModelDirectory::open(&args.model)?;
    let path = args.table.clone().or_else(|| directory.table_path());
    let path = path.with_context(|| {
        format!("{} is a baseline: it has no table, so nothing to explain", args.model.display())
    })?;
    let table = directory.open_table(&path)?;
    let text = text_argument(&args.text)?;
    let tokens = explain(directory.tokenizer(), &table, &text)?;
    if args.json {
        println!("{}", serde_json::json!({ "tokens": tokens }));
    } else {
        print!("{}", render(&tokens, table.policy().max_n, std::io::stdout().is_terminal()));
    }
    Ok(())
}

fn explain(tokenizer: &Tokenizer, table: &Table, text: &str) -> anyhow::Result<Vec<Explained>> {
    let ids = tokenizer.encode(text)?;
    let index = table.index();
    let mut decoder = Decoder::new(tokenizer);
    let mut tokens: Vec<Explained> = Vec::with_capacity(ids.len());
    for (&id, found) in ids.iter().zip(index.matches(&ids, 0)) {
        let special = table.policy().special_tokens.binary_search(&id).is_ok();
        let fgram = found.and_then(|found| index.tokens(found.rank)).map(|gram| tokenizer.decode(&gram));
        tokens.push(Explained {
            id,
            text: decoder.push(id).unwrap_or_default(),
            length: found.map_or(u8::from(!special), |found| found.n),
            fgram,
            row: found.map(|found| found.rank),
            count: found.map(|found| table.count(found.rank)),
        });
    }
    // A character that the text breaks off in the middle of belongs to its last token.
    if let (Some(last), Some(rest)) = (tokens.last_mut(), decoder.finish()) {
        last.text.push_str(&rest);
    }
    Ok(tokens)
}

/// ANSI colours from cold to hot, for match lengths 2, 3, ...
const COLOURS: [u8; 5] = [36, 32, 33, 35, 31];

fn colour(length: u8) -> Option<u8> {
    COLOURS.get(usize::from(length).checked_sub(2)?.min(COLOURS.len() - 1)).copied()
}

/// The text coloured by match length with a legend, or a line a token where there is no terminal.
fn render(tokens: &[Explained], max_n: usize, terminal: bool) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    if terminal {
        for token in tokens {
            match colour(token.length) {
                Some(colour) => _ = write!(out, "\x1b[{colour}m{}\x1b[0m", token.text),
                None => out.push_str(&token.text),
            }
        }
        out.push_str("\n\nlongest f-gram ending at the token:");
        for length in 1..=max_n.min(usize::from(u8::MAX)) as u8 {
            match colour(length) {
                Some(colour) => _ = write!(out, " \x1b[{colour}m{length} tokens\x1b[0m"),
                None => out.push_str(" none"),
            }
        }
        out.push('\n');
    } else {
        _ = writeln!(out, "{:>7} {:<16} {:>5} {:>9} {:>10}  f-gram", "id", "token", "match", "row", "count");
        for token in tokens {
            let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
            _ = writeln!(
                out,
                "{:>7} {:<16} {:>5} {:>9} {:>10}  {}",
                token.id,
                format!("{:?}", token.text),
                token.length,
                number(token.row.map(u64::from)),
                number(token.count),
                token.fgram.as_ref().map_or_else(|| "-".to_owned(), |gram| format!("{gram:?}"))
            );
        }
    }
    let hits = tokens.iter().filter(|token| token.length >= 2).count();
    let mean = tokens.iter().map(|token| usize::from(token.length)).sum::<usize>() as f64
        / tokens.len().max(1) as f64;
    let rate = 100.0 * hits as f64 / tokens.len().max(1) as f64;
    _ = writeln!(out, "{} tokens, hit rate {rate:.1} %, mean match {mean:.2}", tokens.len());
    out
}
