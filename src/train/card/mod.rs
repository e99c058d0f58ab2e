//! The card of a model, as Hugging Face has it: a README.md that is generated from what a run left behind. Only what no
//! run can know is typed, in the `[card]` section of its TOML file.

mod front_matter;
mod section;
mod tables;

use std::path::Path;

use serde_json::Value;

pub use section::CardSection;

use super::{History, Results, RunConfig, TrainError};
use crate::model::{ModelDirectory, WeightType};

/// What a card is made of. What is not known is left out of it.
#[derive(Clone, Debug)]
pub struct Card {
    /// The run.
    pub config: RunConfig,
    /// Tokens that the tokenizer knows.
    pub vocab_size: usize,
    /// How the main model's weights are stored.
    pub weights: WeightType,
    /// Tokens of the training split, where it is one.
    pub corpus_tokens: Option<u64>,
    /// How the run went.
    pub history: Option<History>,
    /// What was measured.
    pub results: Option<Results>,
    /// The results of another run to stand beside it: its baseline's, as a rule.
    pub against: Option<Results>,
    /// `environment.json`: what the run was made with.
    pub environment: Option<Value>,
}

impl Card {
    /// Reads what a finished run left behind, and the results of the run that is to stand beside it.
    ///
    /// # Errors
    /// Where a file is damaged, the other run was not measured, or on another text of the same name.
    pub fn of_run(run: &Path, against: Option<&Path>) -> Result<Self, TrainError> {
        let config = RunConfig::of_run(run)?;
        let history = Some(History::read(run)?);
        let results = if run.join("results.json").exists() { Some(Results::read(run)?) } else { None };
        let other = against.map(Results::read).transpose()?;
        if let (Some(results), Some(other), Some(path)) = (&results, &other, against) {
            let differs = |name: &&String| {
                other.texts.get(*name).is_some_and(|text| text.sha256 != results.texts[*name].sha256)
            };
            if let Some(name) = results.texts.keys().find(differs) {
                return Err(TrainError::Data(format!(
                    "the text \"{name}\" of {} is another than that of {}: measure both with the same files",
                    path.display(),
                    run.display()
                )));
            }
        }
        let model = ModelDirectory::open(&run.join("model"))?;
        // How far through it the run came: of a mixture each corpus has gone another way.
        let corpus_tokens = results.as_ref().map(|results| results.corpus_tokens);
        let corpus_tokens = corpus_tokens.filter(|_| config.data.corpora.is_empty());
        Ok(Self {
            weights: model.weight_type().unwrap_or(config.checkpoint.dtype),
            config,
            vocab_size: model.config().vocab_size,
            corpus_tokens,
            history,
            results,
            against: other,
            environment: Self::environment(run)?,
        })
    }

    /// The text: Markdown after a front matter in YAML.
    pub fn render(&self) -> String {
        let typed = self.config.card.clone().unwrap_or_default();
        let mut text = front_matter::render(self, &typed);
        text += &format!("\n# {}\n\n", self.title(&typed));
        if let Some(description) = &typed.description {
            text += &format!("{}\n\n", description.trim());
        }
        text += &self.model();
        text += &self.data(&typed);
        text += &tables::figures(self);
        text += &self.training();
        if let Some(limits) = &typed.limits {
            text += &format!("## Limits\n\n{}\n\n", limits.trim());
        }
        text + &format!("## Recipe\n\n`scone-train fit` with\n\n```toml\n{}```\n", self.recipe().to_toml())
    }

    /// The configuration without the card's own section, and of paths only the names: where files lay is nobody's matter.
    fn recipe(&self) -> RunConfig {
        let name = |path: &Path| path.file_name().unwrap_or_default().into();
        let mut recipe = self.config.clone();
        recipe.card = None;
        recipe.data.dataset = name(&recipe.data.dataset);
        for corpus in &mut recipe.data.corpora {
            corpus.dataset = name(&corpus.dataset);
        }
        if let Some(source) = &mut recipe.model.init_from {
            *source = name(source);
        }
        if let Some(fgram) = &mut recipe.fgram {
            fgram.set = name(&fgram.set);
        }
        recipe
    }

    fn title(&self, typed: &CardSection) -> String {
        let kind = if self.config.fgram.is_some() { "SCONE model" } else { "Baseline of a SCONE model" };
        typed.title.clone().unwrap_or_else(|| kind.to_owned())
    }

    fn model(&self) -> String {
        let main = self.config.model_config(self.vocab_size);
        let mut text = format!(
            "## Model\n\nA Llama-shaped decoder of {} parameters, {} without the embedding: {}, d = {}, {} heads ({} \
             of keys and values), vocabulary {}, context {}. Weights are {}.",
            number(main.parameters() as f64),
            number(main.decoder_parameters() as f64),
            counted(main.num_hidden_layers as u64, "layer"),
            main.hidden_size,
            main.num_attention_heads,
            main.kv_heads(),
            number(self.vocab_size as f64),
            number(self.config.model.context as f64),
            self.weights
        );
        // Of the set's K its parameters do not depend.
        if let Some(fgram) = self.config.fgram_config(self.vocab_size, 2) {
            let set = self.results.as_ref().map_or("its f-gram set".to_owned(), |results| {
                let rows = results.row_type.as_deref().unwrap_or("unknown");
                format!(
                    "{} f-grams of 2 to {} tokens (rows are {rows})",
                    number(results.fgrams as f64),
                    results.max_n
                )
            });
            let own = if fgram.own_embedding { ", with token embeddings of its own" } else { "" };
            text += &format!(
                " The input embedding of a token is that of the longest f-gram that ends there, read from a table of {set} \
                 (\"Scaling Embedding Layers in Language Models\", arXiv 2502.01637). The rows were computed by the f-gram \
                 model in `fgram_model/`, which serving does not need: {} parameters, {}, d = {}{own}.",
                number(fgram.parameters() as f64),
                counted(fgram.decoder.num_hidden_layers as u64, "layer"),
                fgram.decoder.hidden_size
            );
        }
        text + "\n\n"
    }

    fn data(&self, typed: &CardSection) -> String {
        let mut lines = Vec::new();
        lines.extend(typed.data.as_deref().map(|data| data.trim().to_owned()));
        if let Some(history) = &self.history {
            let of = self.corpus_tokens.map_or_else(String::new, |all| {
                let epochs = history.tokens as f64 / all as f64;
                format!(" of a training split of {} ({epochs:.2} epochs)", number(all as f64))
            });
            let start = self.config.model.init_from.as_ref().map_or_else(String::new, |source| {
                let name = source.file_name().unwrap_or_default().to_string_lossy();
                let frozen = self.config.train.freeze.map_or("", |_| ", whose main model stayed as it was");
                format!(
                    " It started from the trained model `{name}`{frozen}; what that had seen is not counted."
                )
            });
            lines.push(format!("Trained on {} tokens{of}.{start}", number(history.tokens as f64)));
        }
        if lines.is_empty() { String::new() } else { format!("## Data\n\n{}\n\n", lines.join("\n\n")) }
    }

    /// A run's `environment.json`, where it has one.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn environment(run: &Path) -> Result<Option<Value>, TrainError> {
        let path = run.join("environment.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(TrainError::io(&path))?;
        let broken = |e: serde_json::Error| TrainError::Config { path: path.clone(), why: e.to_string() };
        serde_json::from_slice(&text).map(Some).map_err(broken)
    }

    fn training(&self) -> String {
        let mut lines = Vec::new();
        if let Some(history) = &self.history {
            let train = &self.config.train;
            lines.push(format!(
                "{} steps of {} tokens in {} seconds, {} tokens a second.",
                number(history.steps as f64),
                number((train.batch * train.accumulate * self.config.model.context) as f64),
                number(history.seconds),
                number(history.tokens_per_second)
            ));
            if let (Some(loss), Some(step)) = (history.best_loss, history.best_step) {
                lines.push(format!(
                    "Lowest validation loss: {loss:.4} nats a token (perplexity {:.2}), after step {step}; the weights are \
                     those.",
                    loss.exp()
                ));
            }
        }
        lines.extend(self.environment.as_ref().map(tables::environment).filter(|lines| !lines.is_empty()));
        if lines.is_empty() { String::new() } else { format!("## Training\n\n{}\n\n", lines.join("\n\n")) }
    }
}

/// A whole number, its thousands apart.
fn number(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of something.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A number of operations or bytes, to four places.
fn scaled(value: f64) -> String {
    let units = [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|&(size, _)| value >= size) {
        Some((size, unit)) => {
            let value = value / size;
            let places = if value < 10.0 {
                3
            } else if value < 100.0 {
                2
            } else {
                1
            };
            format!("{value:.places$} {unit}")
        }
        None => format!("{value:.0} "),
    }
}
