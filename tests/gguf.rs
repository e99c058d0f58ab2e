//! A GGUF file as a model: its tokenizer is the one that it was made of, and whatever the file holds, opening it never
//! panics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/gguf.rs"]
mod gguf;

use std::path::Path;
use std::sync::OnceLock;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use gguf::{config, make, shapes};
use proptest::prelude::*;
use scone::model::{Config, ModelDirectory, WeightType};
use scone::tokenizer::{GgufVocabulary, Tokenizer};

#[test]
fn its_tokenizer_is_the_original() {
    let made = make(config("llama", 32));
    let directory = tempfile::tempdir().unwrap();
    made.write_directory(directory.path(), WeightType::F32);
    let original = Tokenizer::from_file(directory.path().join("tokenizer.json")).unwrap();
    let path = directory.path().join("model.gguf");
    made.write_gguf(&path, GgmlDType::F32);
    let opened = ModelDirectory::open(&path).unwrap();
    let tokenizer = opened.tokenizer();
    assert_eq!(tokenizer.special_tokens(), original.special_tokens());
    assert_eq!((tokenizer.eos(), tokenizer.vocab_size()), (original.eos(), original.vocab_size()));
    assert_eq!(opened.stop_tokens().unwrap(), [0]);
    assert!(opened.scone().is_none());
    let same = |text: &str| {
        let ids = original.encode(text).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
    };
    for text in ["", " ", "the café isn't\n\n there 1234 ", "<|endoftext|>a<|endoftext|>", "日本語\t\t🦀  x"]
    {
        same(text);
    }
    same(include_str!("../README.md"));
    same(include_str!("gguf.rs"));
    proptest!(|(text in "[ a-zé'0-9\n🦀]{0,40}|\\PC{0,40}")| same(&text));
}

/// SentencePiece in a few tokens: characters, bytes, and words in the order of their scores.
fn sentence_piece() -> GgufVocabulary {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let first_word = tokens.len();
    tokens.extend(["▁t", "he", "▁the", "in", "▁s", "▁sea", "ea", "er", "▁▁"].map(str::to_owned));
    let first_character = tokens.len();
    tokens.extend("▁etaoinshr".chars().map(String::from));
    let types = (0..tokens.len()).map(|id| match id {
        0 => 2,
        1 | 2 => 3,
        _ if id < first_word => 6,
        _ => 1,
    });
    let scores = (0..tokens.len()).map(|id| if id < first_word { 0.0 } else { -((id - first_word) as f32) });
    assert!(first_character > first_word);
    GgufVocabulary {
        model: "llama".into(),
        types: types.collect(),
        scores: scores.collect(),
        tokens,
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..GgufVocabulary::default()
    }
}

/// SentencePiece's rule in plain words: of all neighbours that make a token, join those of the highest score, the
/// leftmost first; what is no token in the end becomes its bytes.
fn naively(vocabulary: &GgufVocabulary, text: &str) -> Vec<u32> {
    let is_normal = |id: usize| vocabulary.types[id] == 1;
    let find = |token: &str| {
        (0..vocabulary.tokens.len()).find(|&id| is_normal(id) && vocabulary.tokens[id] == token)
    };
    let text = format!("▁{}", text.replace(' ', "▁"));
    let mut pieces: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 1..pieces.len() {
            if let Some(id) = find(&format!("{}{}", pieces[at - 1], pieces[at])) {
                let score = vocabulary.scores[id];
                if best.is_none_or(|(highest, _)| score > highest) {
                    best = Some((score, at));
                }
            }
        }
        let Some((_, at)) = best else { break };
        let right = pieces.remove(at);
        pieces[at - 1] += &right;
    }
    let ids = pieces.iter().flat_map(|piece| match find(piece) {
        Some(id) => vec![id as u32],
        None => piece.bytes().map(|byte| u32::from(byte) + 3).collect(),
    });
    ids.collect()
}

#[test]
fn sentence_piece_is_rebuilt_from_scores() {
    let vocabulary = sentence_piece();
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.special_tokens()), (Some(2), [0, 1, 2].as_slice()));
    proptest!(|(text in "[ etaoinshr]{1,30}|\\PC{1,20}")| {
        prop_assume!(!text.contains(['<', '▁']));
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(ids[0], 1, "a text begins with <s>");
        prop_assert_eq!(&ids[1..], naively(&vocabulary, &text));
        prop_assert_eq!(&tokenizer.decode(&ids[1..]), &text);
        prop_assert_eq!(tokenizer.encode_piece(&text).unwrap(), &ids[1..]);
    });
    let plain = GgufVocabulary { add_bos: Some(false), add_space_prefix: Some(false), ..vocabulary.clone() };
    let plain = Tokenizer::from_gguf(&plain).unwrap();
    let sea = plain.encode(" sea").unwrap();
    assert_eq!(sea.iter().map(|&id| plain.id_to_token(id).unwrap()).collect::<Vec<_>>(), ["▁sea"]);
    assert_eq!(plain.decode(&sea), " sea");
    let both = Tokenizer::from_gguf(&GgufVocabulary { add_eos: Some(true), ..vocabulary }).unwrap();
    assert_eq!(both.encode("e").unwrap().last(), Some(&2));
}

/// Opens a model and reads all of its tensors; whatever is in the file, nothing may panic.
fn exercise(path: &Path, config: &Config) -> bool {
    let Ok(opened) = ModelDirectory::open(path) else { return false };
    let tokens = opened.tokenizer().encode("the café 12<|endoftext|>");
    if let Ok(tokens) = tokens {
        opened.tokenizer().decode(&tokens);
    }
    let _ = opened.stop_tokens();
    opened.weights().sha256("");
    let mut is_whole = opened.config().check().is_ok();
    for config in [config, opened.config()] {
        if config.num_hidden_layers <= 8 {
            for (name, shape) in shapes(config) {
                is_whole &= opened.weights().tensor(&name, &shape, &Device::Cpu).is_ok();
            }
        }
    }
    is_whole
}

struct Files {
    config: Config,
    gguf: Vec<u8>,
    /// Where the header of the GGUF file ends.
    header: usize,
    safetensors: Vec<u8>,
    directory: tempfile::TempDir,
}

fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let made = make(config("llama", 32));
        let directory = tempfile::tempdir().unwrap();
        made.write_directory(directory.path(), WeightType::F32);
        let path = directory.path().join("model.gguf");
        made.write_gguf(&path, GgmlDType::Q8_0);
        let config = made.config.clone();
        assert!(exercise(&path, &config) && exercise(directory.path(), &config));
        let gguf = std::fs::read(&path).unwrap();
        let tensors = made.quantized(GgmlDType::Q8_0);
        let data: usize = tensors.iter().map(|(_, t)| t.storage_size_in_bytes().next_multiple_of(32)).sum();
        let header = gguf.len() - data;
        assert!(header > 5000);
        let safetensors = std::fs::read(directory.path().join("model.safetensors")).unwrap();
        Files { config, gguf, header, safetensors, directory }
    })
}

fn gguf_opens(bytes: &[u8]) -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    exercise(file.path(), &files().config)
}

fn directory_opens(bytes: &[u8]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(files().directory.path().join(name), directory.path().join(name)).unwrap();
    }
    std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
    exercise(directory.path(), &files().config)
}

/// A number as headers have them: small, or absurd.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..40, Just(1 << 32), Just(u64::MAX), Just(u64::MAX / 4 + 1), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn bytes_of_a_gguf_header_changed(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = files().gguf.clone();
        for (at, byte) in changes {
            // Most of the header are tokens; what comes before and after is where places and sizes are.
            let header = files().header;
            let at = at.index(2 * header);
            let at = if at < header { at } else if at % 2 == 0 { at % 900 } else { header - at % 3000 };
            bytes[at] = byte;
        }
        gguf_opens(&bytes);
    }

    #[test]
    fn numbers_of_a_gguf_header_changed(at in any::<prop::sample::Index>(), number in number(), wide in any::<bool>()) {
        let mut bytes = files().gguf.clone();
        let at = at.index(3900);
        let at = if at < 900 { at } else { files().header + 900 - at };
        let number = number.to_le_bytes();
        let number = if wide { &number[..] } else { &number[..4] };
        bytes[at..at + number.len()].copy_from_slice(number);
        gguf_opens(&bytes);
    }

    #[test]
    fn a_gguf_file_cut_anywhere(len in any::<prop::sample::Index>()) {
        let bytes = &files().gguf;
        // The last tensor may be followed by padding, which nobody misses.
        prop_assert!(!gguf_opens(&bytes[..len.index(bytes.len() - 32)]));
    }

    #[test]
    fn safetensors_changed_or_cut(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        in_header in any::<bool>(),
        len in any::<prop::sample::Index>(),
    ) {
        let bytes = &files().safetensors;
        prop_assert!(!directory_opens(&bytes[..len.index(bytes.len())]));
        let mut changed = bytes.clone();
        let at = at.index(if in_header { 3000 } else { bytes.len() });
        changed[at] = byte;
        directory_opens(&changed);
    }
}
