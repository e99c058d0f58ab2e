/// What a model says in place of a token where logits are no distribution: one is not a number, or the largest not finite.
pub const NO_TOKEN: u32 = u32::MAX;

/// How a token is chosen from the logits of its position, where a model does so itself: of the tokens that are left of `min_p`, then
/// of `top_k`, then of `top_p`, the one at `uniform` of their weight, by id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Divides the logits. 0 takes the likeliest token, of equals the lowest, whatever the rest says.
    pub temperature: f64,
    /// Only the likeliest tokens, as few as reach this much probability together. 1 keeps all.
    pub top_p: f64,
    /// Only this many of the likeliest tokens. 0 keeps all.
    pub top_k: usize,
    /// Only tokens that are at least this many times as likely as the likeliest. 0 keeps all.
    pub min_p: f64,
    /// From 0 to, but without, 1.
    pub uniform: f64,
}

impl Draw {
    /// The likeliest token.
    pub const LIKELIEST: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, uniform: 0.0 };
}
