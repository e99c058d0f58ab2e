/// The strings that end a completion, as they are looked for in text that arrives in pieces.
#[derive(Debug, Clone)]
pub(in crate::server) struct StopStrings {
    strings: Vec<String>,
    /// Whether the one that ended a completion stays in its text.
    is_included: bool,
}

impl StopStrings {
    /// From strings that are not empty.
    pub(in crate::server) fn new(strings: Vec<String>, is_included: bool) -> Self {
        Self { strings, is_included }
    }

    /// Where `text` ends by the first of the strings that is in it, and which that is; of those that begin at the same
    /// place, the shortest.
    pub(in crate::server) fn find(&self, text: &str) -> Option<(usize, String)> {
        let found = self.strings.iter().filter_map(|stop| Some((text.find(stop)?, stop.len(), stop)));
        let (start, length, stop) = found.min()?;
        Some((if self.is_included { start + length } else { start }, stop.clone()))
    }

    /// How many bytes at the end of `text` may be the beginning of one of the strings, and so must not be shown yet.
    pub(in crate::server) fn held_back(&self, text: &str) -> usize {
        let longest = |stop: &String| {
            let most = text.len().min(stop.len() - 1);
            (1..=most).rev().find(|&len| text.as_bytes().ends_with(&stop.as_bytes()[..len])).unwrap_or(0)
        };
        self.strings.iter().map(longest).max().unwrap_or(0)
    }
}
