use super::stops::StopStrings;

/// A token's text, or its name in the vocabulary where it has no text of its own: a part of a character.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::server) enum TokenText {
    Text(String),
    Name(String),
}

impl TokenText {
    /// Where in `text`, in characters, the token begins that made it certain: behind bytes of tokens before it that have
    /// turned out to be no character.
    fn start_in(&self, text: &str) -> usize {
        match self {
            Self::Text(own) => match text.strip_suffix(own.as_str()) {
                Some(before) if before.ends_with('\u{fffd}') => before.chars().count(),
                _ => 0,
            },
            Self::Name(_) => 0,
        }
    }
}

/// A token as a choice's `logprobs` show it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::server) struct Entry {
    pub(in crate::server) token: TokenText,
    /// None for the first token of a prompt.
    pub(in crate::server) logprob: Option<f32>,
    pub(in crate::server) top: Option<Vec<(TokenText, f32)>>,
    /// Where the token's text begins, in characters from the start of the choice's text.
    pub(in crate::server) offset: usize,
}

/// What a choice may show next: text, and the tokens that begin in it.
#[derive(Debug, Default, PartialEq)]
pub(in crate::server) struct Released {
    pub(in crate::server) text: String,
    pub(in crate::server) entries: Vec<Entry>,
    /// The stop string that was met: this is the last.
    pub(in crate::server) stop: Option<String>,
}

impl TokenText {
    /// The text, or the name marked as such: it may be another token's text.
    pub(in crate::server) fn shown(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Name(name) => format!("bytes:{name}"),
        }
    }

    /// The text of a token that has one.
    pub(in crate::server) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Name(_) => None,
        }
    }
}

/// The text of one choice as it grows. It holds back what may turn out to be a stop string, so that nothing is released
/// that has to be taken back: all releases together are the text, cut before the first stop string, or behind it if it is to
/// stay.
#[derive(Debug)]
pub(in crate::server) struct Transcript {
    stops: StopStrings,
    held: String,
    /// Characters before `held`, and before its end.
    released: usize,
    end: usize,
    /// Tokens that begin in `held`, or at its end.
    entries: Vec<Entry>,
}

impl Transcript {
    pub(in crate::server) fn new(stops: StopStrings) -> Self {
        Self { stops, held: String::new(), released: 0, end: 0, entries: Vec::new() }
    }

    /// Adds a token's text, in which no stop string is looked for: the prompt's, which is echoed, or that of a token
    /// which may not be the last. It goes out with the next [`Self::release`].
    pub(in crate::server) fn pass(&mut self, text: &str, entry: Option<Entry>) {
        self.append(text, entry);
    }

    /// Releases what [`Self::pass`] took.
    pub(in crate::server) fn release(&mut self) -> Released {
        let entries = std::mem::take(&mut self.entries);
        self.released = self.end;
        Released { text: std::mem::take(&mut self.held), entries, stop: None }
    }

    /// Adds the text that a generated token has made certain, with the token if its log-probability is to be shown.
    pub(in crate::server) fn push(&mut self, text: &str, entry: Option<Entry>) -> Released {
        self.append(text, entry);
        if let Some(stopped) = self.cut() {
            return stopped;
        }
        let rest = self.held.split_off(self.held.len() - self.stops.held_back(&self.held));
        let text = std::mem::replace(&mut self.held, rest);
        self.released += text.chars().count();
        let in_text = self.entries.partition_point(|entry| entry.offset < self.released);
        Released { text, entries: self.entries.drain(..in_text).collect(), stop: None }
    }

    /// Adds the last of the text and releases all that is held: no stop string can come any more.
    pub(in crate::server) fn finish(&mut self, text: &str) -> Released {
        self.append(text, None);
        self.cut().unwrap_or_else(|| self.release())
    }

    fn append(&mut self, text: &str, entry: Option<Entry>) {
        self.entries
            .extend(entry.map(|entry| Entry { offset: self.end + entry.token.start_in(text), ..entry }));
        self.held.push_str(text);
        self.end += text.chars().count();
    }

    /// Cuts at a stop string. Released text never has a part of one, so it begins in what is held.
    fn cut(&mut self) -> Option<Released> {
        let (end, stop) = self.stops.find(&self.held)?;
        self.held.truncate(end);
        let end = self.released + self.held.chars().count();
        self.entries.retain(|entry| entry.offset < end);
        Some(Released { stop: Some(stop), ..self.release() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(token: &str) -> Option<Entry> {
        Some(Entry { token: TokenText::Text(token.into()), logprob: None, top: None, offset: 0 })
    }

    /// Reads token by token, looking through the whole text each time.
    fn naive(tokens: &[String], stops: &[String], is_included: bool) -> (String, usize, Option<String>) {
        let mut text = String::new();
        for token in tokens {
            text.push_str(token);
            let found = stops.iter().filter_map(|stop| Some((text.find(stop)?, stop.len(), stop)));
            if let Some((at, length, stop)) = found.min() {
                let cut = if is_included { at + length } else { at };
                text.truncate(cut);
                let mut start = 0;
                let starts = tokens.iter().take_while(|token| {
                    let is_before = start < cut;
                    start += token.len();
                    is_before
                });
                return (text, starts.count(), Some(stop.clone()));
            }
        }
        (text, tokens.len(), None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_released_is_the_text_cut_at_the_first_stop(
            tokens in prop::collection::vec("[abé]{1,3}", 0..12),
            stops in prop::collection::vec("[abé]{1,5}", 0..3),
            is_included: bool,
        ) {
            let mut transcript = Transcript::new(StopStrings::new(stops.clone(), is_included));
            let mut all = Released::default();
            let mut add = |released: Released| {
                all.text.push_str(&released.text);
                all.entries.extend(released.entries);
                all.stop = released.stop;
                all.stop.is_some()
            };
            if !tokens.iter().any(|token| add(transcript.push(token, entry(token)))) {
                add(transcript.finish(""));
            }
            let (text, count, stop) = naive(&tokens, &stops, is_included);
            prop_assert_eq!(&all.text, &text);
            prop_assert_eq!(all.stop, stop);
            prop_assert_eq!(all.entries.len(), count);
            let mut offset = 0;
            for (entry, token) in all.entries.iter().zip(&tokens) {
                prop_assert_eq!((entry.offset, entry.token.text()), (offset, Some(token.as_str())));
                offset += token.chars().count();
            }
        }

        #[test]
        fn nothing_is_held_that_need_not_be(text in "[ab]{0,10}", stops in prop::collection::vec("[ab]{1,5}", 0..3)) {
            let expected = (0..=text.len())
                .find(|&from| from == text.len() || stops.iter().any(|s| s.len() > text.len() - from && s.starts_with(&text[from..])))
                .unwrap();
            prop_assert_eq!(StopStrings::new(stops, false).held_back(&text), text.len() - expected);
        }
    }

    #[test]
    fn a_token_begins_behind_broken_bytes_before_it() {
        let mut transcript = Transcript::new(StopStrings::new(vec![], false));
        let token = |text: &str| {
            Some(Entry { token: TokenText::Text(text.into()), logprob: None, top: None, offset: 0 })
        };
        transcript.pass("", token("\u{fffd}"));
        transcript.pass("\u{fffd} a", token(" a"));
        transcript.pass(" time", token(" time"));
        let offsets: Vec<usize> = transcript.release().entries.iter().map(|entry| entry.offset).collect();
        assert_eq!(offsets, [0, 1, 3]);
    }

    #[test]
    fn the_echo_is_not_searched() {
        let mut transcript = Transcript::new(StopStrings::new(vec!["ab".into()], false));
        transcript.pass("ab", entry("ab"));
        let echoed = transcript.release();
        assert_eq!((echoed.text.as_str(), echoed.entries.len(), echoed.stop), ("ab", 1, None));
        assert_eq!(transcript.push("c", entry("c")).entries[0].offset, 2);
    }

    #[test]
    fn a_token_without_text_is_shown_at_the_end() {
        let mut transcript = Transcript::new(StopStrings::new(vec![], false));
        assert_eq!(transcript.push("a", entry("a")).entries.len(), 1);
        assert_eq!(transcript.push("", entry("<eos>")), Released::default());
        let last = transcript.finish("");
        assert_eq!((last.entries[0].token.text(), last.entries[0].offset), (Some("<eos>"), 1));
    }
}
