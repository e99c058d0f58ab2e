//! `scone explain`: which f-gram each token of a text matched.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::PathBuf;

use super::{DEFAULT_MODEL, text_argument};
use crate::model::ModelDirectory;
use crate::table::{Explained, Totals, explain};
use anyhow::Context;

/// Show which f-gram each token of a text matched
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: scone explain --text \"It was the best of times, it was the worst of times\"

In a terminal the text is coloured by match length. --json prints {\"tokens\": [{id, text, match, fgram, fgram_tokens, row, count}], \
\"totals\": {tokens, hits, hit_rate, mean_match, by_length}}: match is 2 to K, 1 where the token fell back to its own embedding, 0 for a special token; row is the f-gram's rank from \
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
    let ids = directory.tokenizer().encode(&text)?;
    let tokens = explain(directory.tokenizer(), &table, &ids);
    if args.json {
        println!("{}", serde_json::json!({ "tokens": tokens, "totals": Totals::of(&tokens) }));
    } else {
        print!("{}", render(&tokens, table.policy().max_n, std::io::stdout().is_terminal()));
    }
    Ok(())
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
    let Totals { tokens, hit_rate, mean_match, .. } = Totals::of(tokens);
    _ = writeln!(out, "{tokens} tokens, hit rate {:.1} %, mean match {mean_match:.2}", 100.0 * hit_rate);
    out
}
