/// The strings that end a completion, as they are looked for in text that arrives in pieces.
#[derive(Debug, Clone)]
pub(in crate::server) struct StopStrings(Vec<String>);

impl StopStrings {
    /// From strings that are not empty.
    pub(in crate::server) fn new(strings: Vec<String>) -> Self {
        Self(strings)
    }

    /// Where in `text` the first of the strings begins, if one of them is there.
    pub(in crate::server) fn find(&self, text: &str) -> Option<usize> {
        self.0.iter().filter_map(|stop| text.find(stop)).min()
    }

    /// How many bytes at the end of `text` may be the beginning of one of the strings, and so must not be shown yet.
    pub(in crate::server) fn held_back(&self, text: &str) -> usize {
        let longest = |stop: &String| {
            let most = text.len().min(stop.len() - 1);
            (1..=most).rev().find(|&len| text.as_bytes().ends_with(&stop.as_bytes()[..len])).unwrap_or(0)
        };
        self.0.iter().map(longest).max().unwrap_or(0)
    }
}
