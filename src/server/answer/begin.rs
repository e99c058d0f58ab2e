use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::select_all;

use super::choice::{Choice, Common};
use super::stops::StopStrings;
use super::{Answer, Samples, Tally};
use crate::engine::{self, Sampling};
use crate::server::App;
use crate::server::observe::Watch;
use crate::server::wire::error::ApiError;
use crate::server::wire::request::{Generation, Truncate};
use crate::server::wire::response::{Form, Head};

/// How many tokens a completion gets that does not say how many it wants. An answer in a conversation gets what fits.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Prompts that are to be continued, and how.
pub(in crate::server) struct Job {
    pub(in crate::server) form: Form,
    pub(in crate::server) generation: Generation,
    /// The field that the prompts came from, which errors name.
    pub(in crate::server) source: &'static str,
    pub(in crate::server) prompts: Vec<Vec<u32>>,
    /// Samples of each prompt, of which the best become choices.
    pub(in crate::server) best_of: usize,
    pub(in crate::server) echo: bool,
    pub(in crate::server) logprobs: Option<usize>,
}

/// A prompt as the engine gets it.
struct Fitted {
    prompt: Arc<[u32]>,
    max_tokens: usize,
}

/// Checks that the request is for the model that is served.
pub(in crate::server) fn check_model(app: &App, name: Option<&String>) -> Result<(), ApiError> {
    match name.filter(|name| **name != app.card.id) {
        Some(name) => Err(ApiError::unknown_model(name, &app.card.id)),
        None => Ok(()),
    }
}

/// Checks what depends on the model and hands the job's sequences to the engine.
pub(in crate::server) fn begin(app: &App, mut job: Job, watch: &Watch) -> Result<Answer, ApiError> {
    check_tokens(app, &job.generation)?;
    let fitted = std::mem::take(&mut job.prompts)
        .into_iter()
        .map(|prompt| job.fit(prompt, app.engine.context()))
        .collect::<Result<Vec<_>, _>>()?;
    let common = Arc::new(job.common(app));
    let samples = || fitted.iter().flat_map(|fitted| (0..job.best_of).map(move |sample| (fitted, sample)));
    let requests = samples().map(|(fitted, sample)| job.request(fitted, sample, &common)).collect();
    let receivers = app.engine.submit(requests).map_err(|error| ApiError::of_engine(&error, job.source))?;

    let prompts: Vec<_> = fitted.iter().map(|fitted| Arc::clone(&fitted.prompt)).collect();
    let tally = Tally::new(&prompts, job.best_of);
    watch.prompt(tally.prompt_tokens);
    if let Some(live) = &app.table {
        watch.matches(&live.get(), prompts.iter().map(|prompt| &**prompt));
    }
    let choices = samples().zip(receivers).enumerate().map(|(index, ((fitted, _), events))| {
        Choice::new(index, &common, &fitted.prompt, events, watch.choice()).into_pieces().boxed()
    });
    Ok(Answer {
        head: Head::new(job.form, &app.card.id, common.has_logprobs, job.generation.return_token_ids),
        pieces: select_all(choices).boxed(),
        tally,
        samples: Samples { drawn: job.best_of, kept: job.generation.n },
        stream: job.generation.stream,
    })
}

/// Token ids that no token has would do nothing, which is not what was meant.
fn check_tokens(app: &App, generation: &Generation) -> Result<(), ApiError> {
    let size = app.engine.vocab_size();
    let unknown = |name: &'static str, id: u32| {
        ApiError::invalid(name, format!("`{name}` has token {id}, but there are only {size} tokens"))
    };
    let is_unknown = |id: u32| id as usize >= size;
    if let Some(&(id, _)) = generation.sampling.logit_bias.iter().find(|(id, _)| is_unknown(*id)) {
        return Err(unknown("logit_bias", id));
    }
    match generation.ends.tokens.iter().find(|id| is_unknown(**id)) {
        Some(&id) => Err(unknown("stop_token_ids", id)),
        None => Ok(()),
    }
}

impl Job {
    fn common(&self, app: &App) -> Common {
        let ends = &self.generation.ends;
        Common {
            tokenizer: Arc::clone(&app.tokenizer),
            eos: if ends.ignore_eos { Vec::new() } else { app.stop_tokens.clone() },
            stop_tokens: ends.tokens.clone(),
            stops: StopStrings::new(ends.strings.clone(), ends.is_included),
            is_stop_included: ends.is_included,
            skip_special_tokens: self.generation.skip_special_tokens,
            min_tokens: self.generation.min_tokens,
            echo: self.echo,
            has_logprobs: self.logprobs.is_some(),
        }
    }

    fn request(&self, fitted: &Fitted, sample: usize, common: &Common) -> engine::Request {
        // The best are found by their log-probabilities, wanted or not.
        let ranked = (self.best_of > self.generation.n).then_some(0);
        engine::Request {
            prompt: fitted.prompt.to_vec(),
            max_tokens: fitted.max_tokens,
            min_tokens: self.generation.min_tokens,
            sampling: Sampling { stream: sample as u64, ..self.generation.sampling.clone() },
            stop_tokens: [common.eos.as_slice(), &common.stop_tokens].concat(),
            logprobs: self.logprobs.or(ranked),
            prompt_logprobs: self.logprobs.filter(|_| self.echo),
        }
    }

    /// Cuts the prompt if that was asked for, and says how much may be generated after it. What was asked for must fit; a
    /// default is cut to what does.
    fn fit(&self, mut prompt: Vec<u32>, context: usize) -> Result<Fitted, ApiError> {
        let asked = self.generation.max_tokens;
        let kept = match self.generation.truncate {
            None => prompt.len(),
            Some(Truncate::To(count)) => count,
            Some(Truncate::ToFit) => {
                let usual = DEFAULT_MAX_TOKENS.max(self.generation.min_tokens);
                context.saturating_sub(asked.unwrap_or(usual)).max(1)
            }
        };
        prompt.drain(..prompt.len().saturating_sub(kept));
        let max_tokens = self.max_tokens(prompt.len(), context)?;
        let min_tokens = self.generation.min_tokens;
        if min_tokens > max_tokens {
            let message =
                format!("`min_tokens` is {min_tokens}, but at most {max_tokens} tokens are generated");
            return Err(ApiError::invalid("min_tokens", message));
        }
        Ok(Fitted { prompt: prompt.into(), max_tokens })
    }

    fn max_tokens(&self, prompt: usize, context: usize) -> Result<usize, ApiError> {
        let room = context.saturating_sub(prompt);
        let asked = self.generation.max_tokens;
        if prompt > context || (room == 0 && asked != Some(0)) {
            let message = format!(
                "the prompt has {prompt} tokens, but the model's context is {context} tokens, which must hold the prompt \
                 and what is generated"
            );
            return Err(ApiError::too_long(self.source, message));
        }
        match asked {
            Some(asked) if asked > room => {
                let message = format!(
                    "`max_tokens` is {asked}, but the model's context is {context} tokens, of which the prompt takes \
                     {prompt}: at most {room} can be generated"
                );
                Err(ApiError::too_long("max_tokens", message))
            }
            Some(asked) => Ok(asked),
            None if self.form == Form::Chat => Ok(room),
            None => Ok(room.min(DEFAULT_MAX_TOKENS.max(self.generation.min_tokens))),
        }
    }
}
