use std::mem::take;

/// Server-sent events (WHATWG HTML, section 9.2), parsed from bytes as they arrive, wherever the chunks are cut.
///
/// Only `data` fields are kept: no OpenAI server uses the others. Comments, which some send to keep a connection
/// alive, are dropped, and so is an event whose closing blank line never came.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    data: Option<String>,
    after_cr: bool,
}

impl Parser {
    /// Takes the next bytes and returns the data of the events that they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for &byte in bytes {
            // "\r\n" is one end of line, also where a chunk ends between the two.
            let after_cr = take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    events.extend(self.end_line());
                }
                _ => self.line.push(byte),
            }
        }
        events
    }

    fn end_line(&mut self) -> Option<String> {
        let line = take(&mut self.line);
        if line.is_empty() {
            return self.data.take();
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes events with the given end of line, a comment and a foreign field before each.
    fn encode(events: &[String], eol: &str) -> Vec<u8> {
        let mut text = String::new();
        for event in events {
            text += &format!(": still here{eol}event: message{eol}");
            for line in event.split('\n') {
                text += &format!("data: {line}{eol}");
            }
            text += eol;
        }
        text.into_bytes()
    }

    proptest! {
        #[test]
        fn events_survive_any_cutting(
            events in prop::collection::vec("[ a-z:{}\"é漢😀]{0,12}(\n[a-zü ]{0,5}){0,2}", 0..6),
            eol in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes = encode(&events, eol);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut parser = Parser::default();
            let parsed: Vec<String> =
                cuts.windows(2).flat_map(|cut| parser.push(&bytes[cut[0]..cut[1]])).collect();
            prop_assert_eq!(parsed, events);
        }
    }

    #[test]
    fn data_needs_no_space_and_an_unfinished_event_is_none() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(b"data:a\n\ndata:  b\n\ndata\n\nid: 1\n\ndata: c\n"), ["a", " b", ""]);
    }
}
