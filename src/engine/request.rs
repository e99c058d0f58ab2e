use super::Failure;

/// One sequence to be continued. `n` samples of one prompt are `n` requests.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids to start from, at least one; taken as they are, nothing is put before them.
    pub prompt: Vec<u32>,
    /// The most tokens to generate. With 0 the prompt is only read.
    pub max_tokens: usize,
    /// Before so many are generated, no stop token is.
    pub min_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Tokens that end the sequence. The one that did is the last that is sent.
    pub stop_tokens: Vec<u32>,
    /// Send a [`Score`] with each generated token, with this many of the likeliest.
    pub logprobs: Option<usize>,
    /// Send [`Event::Prompt`], with this many of the likeliest at each position.
    pub prompt_logprobs: Option<usize>,
}

/// How a token is chosen from logits: bias and penalties change them, they are divided by the temperature, then cut by
/// `min_p`, by `top_k`, and by `top_p`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token (of equals the lowest id); 1 is the model's own distribution.
    pub temperature: f64,
    /// Only the likeliest tokens, as few as reach this much probability together. 1 keeps all.
    pub top_p: f64,
    /// Only this many of the likeliest tokens. 0 keeps all.
    pub top_k: usize,
    /// Only tokens that are at least this many times as likely as the likeliest. 0 keeps all.
    pub min_p: f64,
    /// What tokens that are there already lose.
    pub penalties: Penalties,
    /// Token ids, each at most once, and what is added to their logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Equal seeds give equal tokens, whatever runs beside. None draws a seed.
    pub seed: Option<u64>,
    /// Which of a seed's independent random streams: the number of the sample, where a prompt has several.
    pub stream: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        penalties: Penalties::NONE,
        logit_bias: Vec::new(),
        seed: None,
        stream: 0,
    };
}

/// What the logits of tokens lose that are there already, in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Divides the logits above 0 and multiplies those below, of tokens of the prompt and generated ones. 1 is none.
    pub repetition: f32,
    /// Is taken off once for each time that a token was generated. 0 is none.
    pub frequency: f32,
    /// Is taken off if a token was generated. 0 is none.
    pub presence: f32,
}

impl Penalties {
    /// They change nothing.
    pub const NONE: Self = Self { repetition: 1.0, frequency: 0.0, presence: 0.0 };

    /// Whether they change nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// What a request's receiver gets, in this order: `Started`, at most one `Prompt`, then `Token`s, then one `Done`; or, at
/// any point, `Failed` as the last. A channel that closes without either belonged to an engine that died.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its turn has come.
    Started {
        /// How many tokens of the prompt need not be computed, because another request began with the same.
        cached_tokens: usize,
    },
    /// The prompt's tokens under the model, if asked for. The first has none: nothing comes before it.
    Prompt(Vec<Option<Score>>),
    /// The next token.
    Token {
        /// Its id.
        id: u32,
        /// Its log-probability, if asked for.
        score: Option<Score>,
    },
    /// The sequence is complete.
    Done(Finish),
    /// The sequence was ended by an error.
    Failed(Failure),
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By one of its stop tokens.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
}

/// A token's log-probability (natural logarithm) under the model itself: before temperature and truncation.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// That of the token itself.
    pub logprob: f32,
    /// The likeliest tokens here with theirs, in falling order (of equals the lower id first); the token itself is added
    /// as the last where it is not among them.
    pub top: Vec<(u32, f32)>,
}
