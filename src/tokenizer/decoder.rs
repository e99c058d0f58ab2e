use std::ops::Deref;

use super::Tokenizer;

/// U+FFFD: what stands for bytes that are no UTF-8, so also for the first bytes of a character yet to be completed.
const REPLACEMENT: char = '\u{fffd}';

/// With this many tokens waiting, the bytes are no character in the making: no character needs so many tokens.
const MAX_PENDING: usize = 16;

/// Text from ids that come one at a time.
///
/// No piece ends inside a character, and all pieces together are what [`Tokenizer::decode`] gives for all ids. (A
/// decoder of the byte-fallback kind takes back valid bytes when invalid ones follow; there, and only for such
/// ids, the pieces may be longer than the whole.) Each push decodes a few of the last tokens, however long the text.
/// `T` is a reference to a tokenizer, or an `Arc` of one.
#[derive(Debug)]
pub struct Decoder<T> {
    tokenizer: T,
    /// The last tokens: some whose text is out, as context for the decoder, then those that wait.
    window: Vec<u32>,
    /// How many of the window's tokens are out.
    out: usize,
    /// How many bytes of the window's text are out.
    emitted: usize,
}

impl<T: Deref<Target = Tokenizer>> Decoder<T> {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: T) -> Self {
        Self { tokenizer, window: Vec::new(), out: 0, emitted: 0 }
    }

    /// Takes the next id; gives the text that is now certain, if there is any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window);
        if !text.ends_with(REPLACEMENT) {
            let piece = self.piece(&text);
            // What is out stays as context for one more round, since some decoders treat a text's first token
            // differently; what was context before is no longer needed.
            self.window.drain(..self.out);
            self.out = self.window.len();
            self.emitted = self.tokenizer.decode(&self.window).len();
            return piece;
        }
        if self.window.len() - self.out > MAX_PENDING { self.release(&text) } else { None }
    }

    /// The text that still waits: a character that was never completed shows as U+FFFD.
    pub fn finish(self) -> Option<String> {
        self.piece(&self.tokenizer.decode(&self.window))
    }

    fn piece(&self, text: &str) -> Option<String> {
        text.get(self.emitted..).filter(|piece| !piece.is_empty()).map(str::to_owned)
    }

    /// Lets go of all but the last few tokens, cutting where the two sides decode to the same text apart as together.
    fn release(&mut self, text: &str) -> Option<String> {
        let len = self.window.len();
        for cut in (len - 4..len).rev() {
            let head = self.tokenizer.decode(&self.window[..cut]);
            if text.strip_prefix(&head) == Some(&self.tokenizer.decode(&self.window[cut..])) {
                let piece = self.piece(&head);
                self.window.drain(..cut);
                self.out = 0;
                self.emitted = 0;
                return piece;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::train_bpe;

    fn bytes_and_a_few_merges() -> Tokenizer {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        let texts = (0..50).map(|i| format!("the naïve café 日本語 {i} 🦀🦀 the theme"));
        train_bpe(texts, 280, &path).unwrap();
        Tokenizer::from_file(&path).unwrap()
    }

    fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut decoder = Decoder::new(tokenizer);
        let mut text: String = ids.iter().filter_map(|&id| decoder.push(id)).collect();
        assert!(decoder.window.len() <= 2 * MAX_PENDING + 2, "the window grows: {}", decoder.window.len());
        text.extend(decoder.finish());
        text
    }

    #[test]
    fn pieces_join_to_the_whole() {
        let tokenizer = bytes_and_a_few_merges();
        proptest!(|(ids in prop::collection::vec(0u32..290, 0..80))| {
            prop_assert_eq!(stream(&tokenizer, &ids), tokenizer.decode(&ids));
        });
        // Long runs of bytes that are no text: continuation bytes, and first bytes of four.
        for id in 1..257 {
            let ids = vec![id; 100];
            assert_eq!(stream(&tokenizer, &ids), tokenizer.decode(&ids));
        }
    }

    #[test]
    fn text_survives_and_characters_stay_whole() {
        let tokenizer = Arc::new(bytes_and_a_few_merges());
        proptest!(|(text in "\\PC{0,40}")| {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert!((text.len() / 50..=ids.len()).contains(&tokenizer.least_tokens(&text)));
            let mut decoder = Decoder::new(Arc::clone(&tokenizer));
            let mut pieces: Vec<String> = ids.iter().filter_map(|&id| decoder.push(id)).collect();
            pieces.extend(decoder.finish());
            prop_assert!(pieces.iter().all(|piece| !piece.contains(REPLACEMENT)) || text.contains(REPLACEMENT));
            prop_assert_eq!(pieces.concat(), text);
        });
    }

    #[test]
    fn facts_of_a_trained_tokenizer() {
        let tokenizer = bytes_and_a_few_merges();
        assert_eq!((tokenizer.eos(), tokenizer.special_tokens()), (Some(0), [0].as_slice()));
        assert_eq!(tokenizer.vocab_size(), 280);
        assert_eq!(tokenizer.encode("12").unwrap().len(), 2, "digits stand alone");
        assert_eq!(tokenizer.encode("<|endoftext|>").unwrap(), [0]);
        assert_eq!(tokenizer.sha256().len(), 64);
    }
}
