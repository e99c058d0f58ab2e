//! `scone-train prepare`: text to token shards.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ArgGroup;
use indicatif::HumanBytes;

use super::progress_bar;
use crate::corpus::{
    Input, Manifest, PrepareOptions, Progress, SAMPLE_BYTES, SHARD_TOKENS, SplitEntry, TokenizerSource,
    prepare,
};

/// Turn text into token shards.
#[derive(Debug, clap::Args)]
#[command(
    group(ArgGroup::new("source").required(true).args(["tokenizer", "vocab_size"])),
    after_help = "Inputs are .txt and other text files (one document a file), .jsonl and .ndjson (one document a \
line, its \"text\" field), and .zst of any of them. Of a directory, every .txt, .text, .md, .jsonl and .ndjson file \
(and .zst) under it is taken, sorted by path. Nothing is held in memory whole: documents of more than 1 MiB are \
tokenized in pieces cut at line ends.

Which documents are held out depends on their order alone. The first never is; where the share selects none, the \
last is.

Example: scone-train prepare books/ --output data/books --vocab-size 8192"
)]
pub struct Args {
    /// Files and directories of text
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// The dataset's directory: must not exist, or be empty
    #[arg(long, short, env = "SCONE_DATASET", value_name = "DATASET")]
    output: PathBuf,
    /// Use this tokenizer.json
    #[arg(long, env = "SCONE_TOKENIZER", value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Train a byte-level BPE of N tokens (257 or more)
    #[arg(long, env = "SCONE_VOCAB_SIZE", value_name = "N")]
    vocab_size: Option<usize>,
    /// How many bytes of text to train it on, at most
    #[arg(long, env = "SCONE_SAMPLE_BYTES", default_value_t = SAMPLE_BYTES, value_name = "BYTES")]
    sample_bytes: usize,
    /// The share of documents to hold out, from 0 to below 1
    #[arg(long, env = "SCONE_VALIDATION", default_value_t = 0.01, value_name = "SHARE")]
    validation: f64,
    /// The token after each document, by name; the tokenizer's usual one (such as <|endoftext|>) if left out
    #[arg(long, env = "SCONE_EOS", value_name = "TOKEN")]
    eos: Option<String>,
    /// Print dataset.json, with the seconds taken, on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// See [`prepare`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let input = Input::new(&args.inputs)?;
    let tokenizer = match (&args.tokenizer, args.vocab_size) {
        (Some(path), _) => TokenizerSource::File(path.clone()),
        (None, Some(vocab_size)) => TokenizerSource::Train { vocab_size, sample_bytes: args.sample_bytes },
        (None, None) => anyhow::bail!("give --tokenizer or --vocab-size"),
    };
    let options = PrepareOptions {
        output: args.output.clone(),
        tokenizer,
        eos: args.eos.clone(),
        validation: args.validation,
        shard_tokens: SHARD_TOKENS,
    };
    let start = Instant::now();
    let mut tokenizing = None;
    let bar = progress_bar(input.bytes(), "{msg} [{bar:40}] {bytes}/{total_bytes} {eta}");
    let manifest = prepare(&input, &options, &mut |progress| match progress {
        Progress::Sampling(bytes) => {
            bar.set_message("sampling");
            bar.set_position(bytes);
        }
        Progress::Training(bytes) => {
            bar.suspend(|| eprintln!("training a tokenizer on {} of text", HumanBytes(bytes)));
        }
        Progress::Tokenizing { bytes, tokens } => {
            let since = *tokenizing.get_or_insert_with(Instant::now);
            let rate = tokens as f64 / since.elapsed().as_secs_f64().max(1e-3);
            bar.set_message(format!("tokenizing, {:.2} M tokens/s", rate / 1e6));
            bar.set_position(bytes);
        }
    })?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let mut json = serde_json::to_value(&manifest)?;
        json["seconds"] = seconds.into();
        super::print(&json.to_string())?;
    } else {
        super::print(&summary(&args.output, &manifest, seconds))?;
    }
    Ok(())
}

fn summary(output: &Path, manifest: &Manifest, seconds: f64) -> String {
    let mut text =
        format!("{:12} {:>10} {:>15} {:>15} {:>7}\n", "split", "documents", "bytes", "tokens", "shards");
    for (name, split) in [("train", &manifest.train), ("validation", &manifest.validation)] {
        let SplitEntry { documents, bytes, tokens, shards } = split;
        text += &format!("{name:12} {documents:>10} {bytes:>15} {tokens:>15} {:>7}\n", shards.len());
    }
    let bytes = manifest.train.bytes + manifest.validation.bytes;
    text += &format!(
        "{}: {:.2} bytes a token, {:?}, tokenizer {:.12}, {seconds:.1} s ({:.2} M tokens/s)",
        output.display(),
        bytes as f64 / manifest.tokens as f64,
        manifest.dtype,
        manifest.tokenizer_sha256,
        manifest.tokens as f64 / seconds / 1e6
    );
    text
}
