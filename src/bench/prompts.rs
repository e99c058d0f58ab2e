use std::fs::read_to_string;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::BenchError;

/// English prose for prompts of a fixed length where no text is given.
const SAMPLE: &str = include_str!("sample.txt");

/// Words that an English token amounts to, for prompts of about a given length.
const WORDS_PER_TOKEN: f64 = 0.75;

/// What is sent as `prompt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Text, which the server tokenizes.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// The prompts of a run, every target's in the same order, and where they come from.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// At least one; used in turn, and again from the start when they are used up.
    pub list: Vec<Prompt>,
    /// Their source, in words, for the report.
    pub source: String,
}

/// A line of the usual prompt files, whichever of these fields it has.
#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    text: Option<String>,
    question: Option<String>,
    turns: Option<Vec<Turn>>,
}

/// MT-Bench writes its turns as strings, Arena-Hard as objects.
#[derive(Deserialize)]
#[serde(untagged)]
enum Turn {
    Text(String),
    Object { content: String },
}

impl Line {
    fn into_text(self) -> Option<String> {
        let first_turn = || match self.turns?.into_iter().next()? {
            Turn::Text(text) | Turn::Object { content: text } => Some(text),
        };
        self.prompt.or(self.text).or(self.question).or_else(first_turn)
    }
}

impl Prompts {
    /// Reads JSONL, of each line the first that exists of `prompt`, `text`, `question` and the first of `turns`.
    /// A prompt is cut to `max_chars` characters at most, between words where that is possible.
    ///
    /// # Errors
    /// Where the file cannot be read, has no prompt, or has a line without one.
    pub fn from_jsonl(path: &Path, max_chars: usize) -> Result<Self, BenchError> {
        let content = read(path)?;
        let mut list = Vec::new();
        for (number, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |why: String| BenchError::Input {
                path: path.into(),
                why: format!("line {}: {why}", number + 1),
            };
            let line: Line = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
            let text = line.into_text().filter(|text| !text.trim().is_empty()).ok_or_else(|| {
                bad("no text in any of the fields prompt, text, question or turns".to_owned())
            })?;
            list.push(Prompt::Text(cut(&text, max_chars).to_owned()));
        }
        if list.is_empty() {
            return Err(BenchError::Input { path: path.into(), why: "it has no prompt".to_owned() });
        }
        let source = format!("{} of {}, at most {max_chars} characters each", list.len(), path.display());
        Ok(Self { list, source })
    }

    /// Cuts `count` prompts of `tokens` tokens each from a text, the built-in one where none is given.
    ///
    /// With a `tokenizer.json` they are exact and sent as token ids. Without, they are three words for every four
    /// tokens and sent as text.
    ///
    /// # Errors
    /// Where a file cannot be read or the text is shorter than a prompt.
    pub fn of_length(
        tokens: usize,
        count: usize,
        text: Option<&Path>,
        tokenizer: Option<&Path>,
    ) -> Result<Self, BenchError> {
        let content = text.map_or_else(|| Ok(SAMPLE.to_owned()), read)?;
        let origin = text.map_or_else(|| "the built-in text".to_owned(), |path| path.display().to_string());
        let too_short = || BenchError::ShortText { tokens, origin: origin.clone() };
        if let Some(path) = tokenizer {
            let ids = encode(path, &content)?;
            let windows = windows(&ids, tokens, count).ok_or_else(too_short)?;
            let list = windows.map(|window| Prompt::Tokens(window.to_vec())).collect();
            return Ok(Self { list, source: format!("{tokens} tokens each, cut from {origin}") });
        }
        let words: Vec<&str> = content.split_whitespace().collect();
        let length = ((tokens as f64 * WORDS_PER_TOKEN).round() as usize).max(1);
        let windows = windows(&words, length, count).ok_or_else(too_short)?;
        let list = windows.map(|window| Prompt::Text(window.join(" "))).collect();
        let source = format!(
            "about {tokens} tokens each ({length} words, as no tokenizer was given), cut from {origin}"
        );
        Ok(Self { list, source })
    }

    /// The prompt of this number, from the start again when they are used up.
    pub(super) fn get(&self, number: usize) -> &Prompt {
        &self.list[number % self.list.len()]
    }
}

/// Consecutive windows, from near the start again when the text is used up. None of no length or too short a text.
fn windows<T>(items: &[T], length: usize, count: usize) -> Option<impl Iterator<Item = &[T]>> {
    let starts = items.len().checked_sub(length)? + 1;
    (length > 0).then(|| (0..count.max(1)).map(move |i| &items[i * length % starts..][..length]))
}

fn encode(tokenizer: &Path, text: &str) -> Result<Vec<u32>, BenchError> {
    let bad = |error: tokenizers::Error| BenchError::Input { path: tokenizer.into(), why: error.to_string() };
    let tokenizer = tokenizers::Tokenizer::from_file(tokenizer).map_err(bad)?;
    Ok(tokenizer.encode_fast(text, false).map_err(bad)?.get_ids().to_vec())
}

pub(super) fn read(path: &Path) -> Result<String, BenchError> {
    read_to_string(path).map_err(|error| BenchError::Input { path: path.into(), why: error.to_string() })
}

/// The start of a text, at most `max_chars` characters, up to the last white space if there is one.
fn cut(text: &str, max_chars: usize) -> &str {
    let Some((end, _)) = text.char_indices().nth(max_chars) else {
        return text;
    };
    let start = &text[..end];
    let word_end = start.rfind(char::is_whitespace).map(|end| start[..end].trim_end());
    word_end.filter(|cut| !cut.is_empty()).unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(content: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file
    }

    #[test]
    fn every_form_of_prompt_file_is_read() {
        let file = file(concat!(
            r#"{"prompt": "a", "text": "no"}"#,
            "\n\n",
            r#"{"id": 7, "text": "b"}"#,
            "\n",
            r#"{"question": "c", "answer": "no"}"#,
            "\n",
            r#"{"category": "x", "turns": ["d", "no"]}"#,
            "\n",
            r#"{"turns": [{"content": "e f g"}]}"#,
        ));
        let prompts = Prompts::from_jsonl(file.path(), 4).unwrap();
        assert_eq!(prompts.list, ["a", "b", "c", "d", "e f"].map(|text| Prompt::Text(text.to_owned())));
        assert_eq!(prompts.get(6), prompts.get(1));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (content, part) in [
            ("{\"prompt\": \"a\"}\n{\"id\": 1}", "line 2"),
            ("{\"prompt\": \"a\"}\n\nnonsense", "line 3"),
            ("{\"turns\": []}", "line 1"),
            ("\n", "no prompt"),
        ] {
            let error = Prompts::from_jsonl(file(content).path(), 100).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_length_without_a_tokenizer_is_counted_in_words() {
        let prompts = Prompts::of_length(40, 50, None, None).unwrap();
        assert_eq!(prompts.list.len(), 50);
        for prompt in &prompts.list {
            assert!(matches!(prompt, Prompt::Text(text) if text.split(' ').count() == 30));
        }
        assert!(prompts.source.starts_with("about 40 tokens"));
        let different: std::collections::HashSet<String> =
            prompts.list.iter().map(|prompt| format!("{prompt:?}")).collect();
        assert!(different.len() > 40, "only {} differ", different.len());
        assert!(matches!(Prompts::of_length(100_000, 1, None, None), Err(BenchError::ShortText { .. })));
    }

    #[test]
    fn a_length_with_a_tokenizer_is_exact() {
        let tokenizer = file(
            r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2, "?": 3}, "unk_token": "?"}}"#,
        );
        let text = file("a b c d a b");
        let prompts = Prompts::of_length(2, 4, Some(text.path()), Some(tokenizer.path())).unwrap();
        let expected = [[0, 1], [2, 3], [0, 1], [1, 2]].map(|ids| Prompt::Tokens(ids.to_vec()));
        assert_eq!(prompts.list, expected);
    }

    proptest! {
        #[test]
        fn a_cut_is_a_short_start_of_its_text(text in "[a-c é漢\n]{0,30}", max in 1..40usize) {
            let cut = cut(&text, max);
            prop_assert!(text.starts_with(cut));
            prop_assert!(cut.chars().count() <= max);
            prop_assert!(!cut.is_empty() || text.is_empty());
            prop_assert!(text.chars().count() > max || cut == text);
        }
    }
}
