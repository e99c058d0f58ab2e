use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use super::Error;

/// A document is cut into pieces of at least this many bytes, each ending with a line's end.
const PIECE: usize = 1 << 20;
/// Where no line ends, a piece is cut at this many bytes, between two characters.
const LONGEST_PIECE: usize = 4 << 20;

/// A part of a document: the unit in which text is read, tokenized and sampled.
///
/// A plain-text file is one document, a line of JSONL another. Documents of more than 1 MiB come in several pieces,
/// so that a file larger than memory streams; a token never reaches across the cut, which follows a line's end.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text, never empty.
    pub text: String,
    /// The document's place among all, from 0.
    pub document: u64,
    /// Whether its document ends here.
    pub last: bool,
}

/// The input files, in order.
#[derive(Debug)]
pub struct Input {
    files: Vec<PathBuf>,
    bytes: u64,
    read: Arc<AtomicU64>,
}

impl Input {
    /// Lists the inputs: files as they are given, directories with all the `.txt`, `.md`, `.jsonl` and `.ndjson`
    /// files under them (and `.zst` of these), sorted by path.
    ///
    /// # Errors
    /// Where a path does not exist or a directory holds no such file.
    pub fn new(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut files = Vec::new();
        for path in paths {
            let metadata = std::fs::metadata(path).map_err(Error::io("open", path))?;
            if metadata.is_dir() {
                let before = files.len();
                list(path, &mut files)?;
                if files.len() == before {
                    return Err(Error::Empty(format!("{} holds no text or JSONL files", path.display())));
                }
            } else {
                files.push(path.clone());
            }
        }
        let mut bytes = 0;
        for file in &files {
            bytes += std::fs::metadata(file).map_err(Error::io("open", file))?.len();
        }
        Ok(Self { files, bytes, read: Arc::default() })
    }

    /// The size of all files as they are on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes of the files have been read since [`Input::for_each`] was last begun.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Reads everything once, in order. Documents without any text are left out and not numbered.
    ///
    /// # Errors
    /// Those of `take`, and where a file cannot be read, is not UTF-8 or not JSONL; with file and place.
    pub fn for_each(&self, mut take: impl FnMut(Piece) -> Result<(), Error>) -> Result<(), Error> {
        self.read.store(0, Ordering::Relaxed);
        let mut document = 0;
        for path in &self.files {
            let file = File::open(path).map_err(Error::io("open", path))?;
            let counted = Counted { file, read: Arc::clone(&self.read) };
            let (kind, compressed) = kind_of(path);
            let mut reader: Box<dyn BufRead> = if compressed {
                let decoder = zstd::Decoder::new(counted).map_err(Error::io("decompress", path))?;
                Box::new(BufReader::with_capacity(PIECE, decoder))
            } else {
                Box::new(BufReader::with_capacity(PIECE, counted))
            };
            let doing = if compressed { "decompress" } else { "read" };
            let source = Source { path, doing, reader: &mut *reader };
            match kind {
                Kind::Jsonl => source.jsonl(&mut document, &mut take)?,
                Kind::Text => source.text(&mut document, &mut take)?,
            }
        }
        Ok(())
    }
}

/// Counts the bytes that are read from a file.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Jsonl,
}

/// What a file's name says of it, and whether it is compressed.
fn kind_of(path: &Path) -> (Kind, bool) {
    let compressed = path.extension().is_some_and(|extension| extension == "zst");
    let stem = if compressed { path.with_extension("") } else { path.to_owned() };
    let jsonl = stem.extension().is_some_and(|extension| extension == "jsonl" || extension == "ndjson");
    (if jsonl { Kind::Jsonl } else { Kind::Text }, compressed)
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io("list", directory))? {
        entries.push(entry.map_err(Error::io("list", directory))?.path());
    }
    entries.sort();
    for path in entries {
        if path.is_dir() {
            list(&path, files)?;
            continue;
        }
        let stem = if kind_of(&path).1 { path.with_extension("") } else { path.clone() };
        let extension = stem.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("txt" | "text" | "md" | "jsonl" | "ndjson")) {
            files.push(path);
        }
    }
    Ok(())
}

struct Source<'a> {
    path: &'a Path,
    doing: &'static str,
    reader: &'a mut dyn BufRead,
}

impl Source<'_> {
    fn error(&self, place: String, what: impl Into<String>) -> Error {
        Error::Input { path: self.path.to_owned(), place, what: what.into() }
    }

    fn text(
        self,
        document: &mut u64,
        take: &mut impl FnMut(Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut buffer = Vec::new();
        let mut offset = 0;
        // The piece before, kept back until it is known whether another follows.
        let mut previous: Option<String> = None;
        loop {
            let wanted = (LONGEST_PIECE - buffer.len()) as u64;
            let n = self
                .reader
                .take(wanted)
                .read_to_end(&mut buffer)
                .map_err(Error::io(self.doing, self.path))?;
            if buffer.is_empty() {
                break;
            }
            let ended = (n as u64) < wanted;
            let cut = cut_of(&buffer, ended);
            let text = std::str::from_utf8(&buffer[..cut]).map_err(|error| {
                self.error(format!("byte {}", offset + error.valid_up_to()), "this is not UTF-8 text")
            })?;
            if let Some(text) = previous.replace(text.to_owned()) {
                take(Piece { text, document: *document, last: false })?;
            }
            offset += cut;
            buffer.drain(..cut);
        }
        if let Some(text) = previous {
            take(Piece { text, document: *document, last: true })?;
            *document += 1;
        }
        Ok(())
    }

    fn jsonl(
        self,
        document: &mut u64,
        take: &mut impl FnMut(Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Line {
            text: Option<String>,
        }
        let mut line = Vec::new();
        for number in 1u64.. {
            line.clear();
            if self.reader.read_until(b'\n', &mut line).map_err(Error::io(self.doing, self.path))? == 0 {
                break;
            }
            let place = || format!("line {number}");
            let json = std::str::from_utf8(&line).map_err(|error| {
                self.error(format!("line {number}, byte {}", error.valid_up_to()), "this is not UTF-8 text")
            })?;
            if json.trim().is_empty() {
                continue;
            }
            let parsed: Line =
                serde_json::from_str(json).map_err(|error| self.error(place(), error.to_string()))?;
            let Some(text) = parsed.text else {
                return Err(self.error(place(), "the object has no \"text\""));
            };
            if text.is_empty() {
                continue;
            }
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cut_of(rest.as_bytes(), true));
                take(Piece { text: piece.to_owned(), document: *document, last: after.is_empty() })?;
                rest = after;
            }
            *document += 1;
        }
        Ok(())
    }
}

/// Where the next piece of a document ends: after the first line's end past [`PIECE`], or failing that at
/// [`LONGEST_PIECE`], moved back to a character's start; all of it where it is shorter and `ended`.
fn cut_of(bytes: &[u8], ended: bool) -> usize {
    if let Some(line) = bytes.iter().skip(PIECE).position(|&byte| byte == b'\n') {
        return PIECE + line + 1;
    }
    if ended && bytes.len() <= LONGEST_PIECE {
        return bytes.len();
    }
    let end = bytes.len().min(LONGEST_PIECE);
    // Invalid UTF-8 may be nothing but continuation bytes; then any cut will do for reporting it.
    (end.saturating_sub(4)..end)
        .rev()
        .find(|&i| bytes.get(i).is_some_and(|byte| byte & 0xc0 != 0x80))
        .filter(|&i| i > 0)
        .unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(name: &str, bytes: &[u8]) -> Result<Vec<Piece>, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut pieces = Vec::new();
        Input::new(&[path])?.for_each(|piece| {
            pieces.push(piece);
            Ok(())
        })?;
        Ok(pieces)
    }

    #[test]
    fn long_documents_come_in_pieces_that_join_to_the_whole() {
        for unit in ["a line of text\n", "no line ends here, naïve 日本語 ", "🦀", "\n"] {
            let text = unit.repeat(9_000_000 / unit.len());
            let jsonl = serde_json::json!({ "text": text }).to_string();
            for (name, bytes) in [("a.txt", text.as_bytes()), ("a.jsonl", jsonl.as_bytes())] {
                let pieces = pieces(name, bytes).unwrap();
                assert!(pieces.len() > 1);
                assert!(pieces.iter().all(|piece| piece.text.len() <= LONGEST_PIECE && piece.document == 0));
                let (last, before) = pieces.split_last().unwrap();
                assert!(last.last && before.iter().all(|piece| !piece.last));
                assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), text);
                if unit.ends_with('\n') {
                    assert!(before.iter().all(|piece| piece.text.ends_with('\n')));
                }
            }
        }
    }

    #[test]
    fn errors_say_where() {
        let say = |name: &str, bytes: &[u8]| pieces(name, bytes).unwrap_err().to_string();
        assert!(say("a.txt", b"good\nbad \xff").contains("a.txt, byte 9: this is not UTF-8"));
        assert!(say("a.txt", &[&b"x".repeat(9_000_000)[..], b"\xff"].concat()).contains("byte 9000000:"));
        assert!(say("a.txt", &b"\x80".repeat(9_000_000)).contains("byte 0:"));
        assert!(say("a.jsonl", b"{\"text\":\"a\"}\n\n{\"text\":3}\n").contains("a.jsonl, line 3:"));
        assert!(say("a.jsonl", b"{\"text\":\"a\"}\n{\"txt\":\"a\"}\n").contains("line 2: the object has no"));
        assert!(say("a.jsonl", b"{\"text\":\"\xff\"}\n").contains("line 1, byte 9:"));
        assert!(say("a.txt.zst", b"not compressed").contains("cannot decompress"));
    }
}
