use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use futures_util::stream::select_all;
use futures_util::{StreamExt, TryStreamExt};

use crate::engine::{self, Sampling};
use crate::server::App;
use crate::server::answer::Answer;
use crate::server::answer::choice::{Choice, Common, Piece};
use crate::server::answer::stops::StopStrings;
use crate::server::answer::stream::stream;
use crate::server::answer::transcript::Transcript;
use crate::server::observe::Watch;
use crate::server::wire::body::Fields;
use crate::server::wire::error::ApiError;
use crate::server::wire::request::{CompletionRequest, Prompt};
use crate::server::wire::response::{ChoiceBody, Completion, Head, Usage};

/// How many tokens a request gets that does not say how many it wants.
const DEFAULT_MAX_TOKENS: usize = 16;

/// `POST /v1/completions`.
pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let watch = Watch::new(&app.observe, request.extensions(), "completion");
    let fields = Fields::read(request).await?;
    // A long prompt takes a while to tokenize, in which this thread would serve nobody else.
    let work = tokio::task::spawn_blocking(move || {
        let request = CompletionRequest::from_fields(fields)?;
        let answer = begin(&app, &request, &watch)?;
        Ok::<_, ApiError>((request, answer))
    });
    let (request, answer) =
        work.await.map_err(|_| ApiError::internal("the request could not be prepared"))??;
    if request.stream { Ok(stream(answer, request.include_usage)) } else { whole(answer).await }
}

/// Checks the request against the model and hands its sequences to the engine.
fn begin(app: &App, request: &CompletionRequest, watch: &Watch) -> Result<Answer, ApiError> {
    if let Some(name) = request.model.as_ref().filter(|name| **name != app.card.id) {
        return Err(ApiError::unknown_model(name, &app.card.id));
    }
    let prompts = request.prompts.iter().map(|prompt| tokens(app, prompt)).collect::<Result<Vec<_>, _>>()?;
    let stop_tokens: Arc<[u32]> = if request.ignore_eos { [].into() } else { app.stop_tokens.clone().into() };
    let samples = prompts.iter().flat_map(|prompt| (0..request.n).map(move |sample| (prompt, sample)));
    let requests = samples
        .clone()
        .map(|(prompt, sample)| {
            Ok(engine::Request {
                prompt: prompt.to_vec(),
                max_tokens: max_tokens(request.max_tokens, prompt.len(), app.engine.context())?,
                min_tokens: 0,
                sampling: Sampling { stream: sample as u64, ..request.sampling.clone() },
                stop_tokens: stop_tokens.to_vec(),
                logprobs: request.logprobs,
                prompt_logprobs: request.logprobs.filter(|_| request.echo),
            })
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    watch.prompt(prompts.iter().map(|prompt| prompt.len()).sum());
    let receivers = app.engine.submit(requests)?;
    if let Some(live) = &app.table {
        watch.matches(&live.get(), prompts.iter().map(|prompt| &**prompt));
    }

    let common = Common {
        tokenizer: Arc::clone(&app.tokenizer),
        stop_tokens,
        echo: request.echo,
        has_logprobs: request.logprobs.is_some(),
    };
    let stops = StopStrings::new(request.stop.clone());
    let choices = samples.zip(receivers).enumerate().map(|(index, ((prompt, _), events))| {
        Choice::new(index, &common, prompt, Transcript::new(stops.clone()), events, watch.choice())
            .into_pieces()
            .boxed()
    });
    Ok(Answer {
        head: Head {
            id: next_id(),
            object: "text_completion",
            created: seconds(),
            model: app.card.id.clone(),
        },
        pieces: select_all(choices).boxed(),
        prompt_tokens: prompts.iter().map(|prompt| prompt.len()).sum(),
        has_logprobs: common.has_logprobs,
    })
}

fn tokens(app: &App, prompt: &Prompt) -> Result<Arc<[u32]>, ApiError> {
    let tokens = match prompt {
        Prompt::Tokens(tokens) => tokens.clone(),
        Prompt::Text(text) => {
            app.tokenizer.encode(text).map_err(|error| ApiError::invalid("prompt", error.to_string()))?
        }
    };
    Ok(tokens.into())
}

/// How many tokens may be generated after a prompt. What was asked for must fit; a default is cut to what does.
fn max_tokens(asked: Option<usize>, prompt: usize, context: usize) -> Result<usize, ApiError> {
    let room = context.saturating_sub(prompt);
    if prompt > context || (room == 0 && asked != Some(0)) {
        let message = format!(
            "the prompt has {prompt} tokens, but the model's context is {context} tokens, which must hold the prompt and \
             what is generated"
        );
        return Err(ApiError::too_long("prompt", message));
    }
    match asked {
        Some(asked) if asked > room => {
            let message = format!(
                "`max_tokens` is {asked}, but the model's context is {context} tokens, of which the prompt takes {prompt}: \
                 at most {room} can be generated"
            );
            Err(ApiError::too_long("max_tokens", message))
        }
        Some(asked) => Ok(asked),
        None => Ok(room.min(DEFAULT_MAX_TOKENS)),
    }
}

/// Waits for all choices and answers with them at once.
async fn whole(answer: Answer) -> Result<Response, ApiError> {
    let Answer { head, mut pieces, prompt_tokens, has_logprobs } = answer;
    let mut choices: Vec<Piece> = Vec::new();
    while let Some(piece) = pieces.try_next().await.map_err(ApiError::internal)? {
        match choices.iter_mut().find(|choice| choice.index == piece.index) {
            Some(choice) => choice.absorb(piece),
            None => choices.push(piece),
        }
    }
    choices.sort_by_key(|choice| choice.index);
    let usage = Usage::new(prompt_tokens, choices.iter().map(|choice| choice.generated).sum());
    let choices = choices.into_iter().map(|choice| ChoiceBody::new(choice, has_logprobs)).collect();
    Ok(Json(Completion { head: &head, choices, usage: Some(Some(usage)) }).into_response())
}

/// An id that no other answer has, of this process or another.
fn next_id() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("cmpl-{:016x}{:08x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed))
}

pub(in crate::server) fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
