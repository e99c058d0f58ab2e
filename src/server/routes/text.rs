use crate::server::wire::error::ApiError;
use crate::tokenizer::Tokenizer;

/// The tokens of a text that came in the field `name`. One that must have more than `most` tokens is refused before it is
/// tokenized, which takes seconds for what a body can hold.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    name: &'static str,
    text: &str,
    add_special_tokens: bool,
    most: Option<usize>,
) -> Result<Vec<u32>, ApiError> {
    let least = tokenizer.least_tokens(text);
    if let Some(most) = most.filter(|&most| least > most) {
        let message = format!("`{name}` is a text of at least {least} tokens, but at most {most} fit");
        return Err(ApiError::too_long(name, message));
    }
    let tokens = if add_special_tokens { tokenizer.encode(text) } else { tokenizer.encode_piece(text) };
    tokens.map_err(|error| ApiError::invalid(name, error.to_string()))
}
