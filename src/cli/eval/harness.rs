//! What lm-eval counts and reads in its own way.

use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

/// Whether Python takes it for white space: Unicode's, and four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// How many words a text has: parts between stretches of white space, an empty one at an end that has such a stretch too.
pub(super) fn words(text: &str) -> usize {
    let mut was_space = false;
    let starts = text.chars().filter(|&c| {
        let starts = is_space(c) && !was_space;
        was_space = is_space(c);
        starts
    });
    starts.count() + 1
}

/// The values of a file with one JSON object a line; empty lines are passed over.
pub(super) fn json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = read_text(path)?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let values = lines.map(|(line, number)| {
        serde_json::from_str(line).with_context(|| format!("{}, line {number}", path.display()))
    });
    values.collect()
}

/// A file that must be UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_as_by_splitting() {
        for (text, count) in
            [("", 1), ("one", 1), ("one two", 2), (" one\n\n two\t", 4), ("a\u{a0}b\x1cc", 3), ("\n", 2)]
        {
            assert_eq!(words(text), count, "{text:?}");
        }
    }
}
