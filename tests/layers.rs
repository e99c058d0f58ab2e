//! The layers of ARCHITECTURE.md: a layer of `src/` uses those before it in `LAYERS`, and none after.
//!
//! The source is read as text, without comments and strings, and every path that starts at the crate's root is looked
//! at, in a `use` or not, grouped or not, by way of `crate`, `scone` or enough `super`s.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

struct Layer {
    name: &'static str,
    /// Layers before it that it does without all the same.
    without: &'static [&'static str],
    /// Whether it may name candle.
    tensors: bool,
}

const fn layer(name: &'static str, without: &'static [&'static str], tensors: bool) -> Layer {
    Layer { name, without, tensors }
}

const LAYERS: [Layer; 14] = [
    layer("memory", &[], false),
    layer("new_file", &[], false),
    layer("tokenizer", &[], false),
    layer("fgram", &[], false),
    layer("table", &[], false),
    layer("corpus", &[], false),
    layer("kernels", &["tokenizer", "fgram", "table", "corpus"], false),
    layer("gpu", &["tokenizer", "fgram", "table", "corpus", "kernels"], true),
    layer("model", &[], true),
    layer("engine", &[], true),
    layer("train", &["engine"], true),
    layer("server", &["corpus", "train"], false),
    layer("bench", &["fgram", "table", "corpus", "kernels", "model", "engine", "train", "server"], false),
    layer("cli", &[], true),
];

/// Why `layer` may not use `used`, if it may not.
fn objection(layer: &str, used: &str) -> Option<String> {
    let position = |name| LAYERS.iter().position(|layer| layer.name == name);
    let Some(target) = position(used) else {
        return Some(format!(
            "`{used}` is no layer: modules of the crate's root are listed in tests/layers.rs"
        ));
    };
    if layer == "bin" {
        return (used != "cli").then(|| format!("a program only calls `cli`, not `{used}`"));
    }
    let own = position(layer)?;
    if target > own {
        Some(format!("`{layer}` comes before `{used}` and must not use it"))
    } else if LAYERS[own].without.contains(&used) {
        Some(format!("`{layer}` does without `{used}`"))
    } else {
        None
    }
}

#[derive(Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// Identifiers, `::` and single other characters; comments, strings, characters and lifetimes are left out.
fn lex(source: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut rest = source;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (length, keep) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("/*") {
            (block_comment(rest), false)
        } else if let Some(length) = raw_string(rest) {
            (length, false)
        } else if first == '"' {
            (quoted(rest, '"'), false)
        } else if first == '\'' {
            let mut ahead = rest.chars().skip(1);
            let character = ahead.next() == Some('\\') || ahead.next() == Some('\'');
            (if character { quoted(rest, '\'') } else { 1 }, false)
        } else if rest.starts_with("::") {
            (2, true)
        } else if name > 0 {
            (name, true)
        } else {
            (first.len_utf8(), !first.is_whitespace())
        };
        let (text, after) = rest.split_at(length);
        if keep {
            tokens.push(Token { text: text.to_owned(), line });
        }
        line += text.matches('\n').count();
        rest = after;
    }
    tokens
}

/// The length of the nested comment at the start of `text`.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while let Some(found) = text[at..].find(['/', '*']) {
        at += found;
        match text.get(at..at + 2) {
            Some("/*") => (depth, at) = (depth + 1, at + 2),
            Some("*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The length of the raw string at the start of `text`, if there is one.
fn raw_string(text: &str) -> Option<usize> {
    let body = ["br", "cr", "r"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let inside = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - inside.len();
    Some(inside.find(&end).map_or(text.len(), |found| start + found + end.len()))
}

/// The length of the literal at the start of `text`, both quotes included.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// What follows `a::` at `at`: one name, or the first names of a group.
fn heads(tokens: &[Token], at: usize) -> Vec<&Token> {
    let Some(first) = tokens.get(at) else { return Vec::new() };
    if first.text != "{" {
        return vec![first];
    }
    let mut heads = Vec::new();
    let mut depth = 0;
    for (token, before) in tokens[at..].iter().zip(std::iter::once(first).chain(&tokens[at..])) {
        if depth == 1 && (before.text == "{" || before.text == ",") && token.text != "}" {
            heads.push(token);
        }
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// The names used directly below the crate's root by a module at `module` (its path of names).
fn root_uses(tokens: &[Token], module: usize) -> Vec<&Token> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut uses = Vec::new();
    // The brace depths at which inline modules opened: each takes one more `super`.
    let mut inline = Vec::new();
    let mut depth = 0;
    for at in 0..tokens.len() {
        match text(at) {
            "{" => {
                depth += 1;
                if at >= 2 && text(at - 2) == "mod" {
                    inline.push(depth);
                }
            }
            "}" => {
                inline.pop_if(|opened| *opened == depth);
                depth -= 1;
            }
            "crate" | "scone" if text(at + 1) == "::" => uses.extend(heads(tokens, at + 2)),
            "super" if at < 2 || text(at - 1) != "::" || text(at - 2) != "super" => {
                let chain =
                    (0..).take_while(|i| text(at + 2 * i) == "super" && text(at + 2 * i + 1) == "::").count();
                if chain > 0 && chain >= module + inline.len() {
                    uses.extend(heads(tokens, at + 2 * chain));
                }
            }
            _ => {}
        }
    }
    uses.retain(|used| used.text != "self");
    uses
}

/// One line for each use in `source` that its layer must not make. `path` is relative to `src`.
fn violations(path: &Path, source: &str) -> String {
    let mut module: Vec<_> =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    let layer = module.first().map_or("", String::as_str);
    // A program is a crate of its own: its root is the file.
    let depth = if layer == "bin" || layer == "lib" { 0 } else { module.len() };
    let tokens = lex(source);
    let mut found = String::new();
    let mut report = |line: usize, why: &str| {
        writeln!(found, "src/{}:{line}: {why}", path.display()).expect("a String takes everything");
    };
    if layer != "bin" && layer != "lib" && !LAYERS.iter().any(|known| known.name == layer) {
        report(1, &format!("`{layer}` is no layer: say in tests/layers.rs where it stands"));
    }
    for used in root_uses(&tokens, depth) {
        if used.text != layer
            && let Some(why) = objection(layer, &used.text)
        {
            report(used.line, &why);
        }
    }
    if LAYERS.iter().any(|known| known.name == layer && !known.tensors) {
        for token in tokens.iter().filter(|token| token.text.starts_with("candle")) {
            report(token.line, &format!("`{layer}` knows no tensors, but names `{}`", token.text));
        }
    }
    found
}

fn source_files(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).expect("src can be read");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            source_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn every_layer_uses_only_those_before_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    assert!(files.len() > 50, "found only {} files under {}", files.len(), src.display());
    let mut found = String::new();
    for path in files {
        let source = std::fs::read_to_string(&path).expect("a source file");
        found += &violations(path.strip_prefix(&src).expect("it is under src"), &source);
    }
    assert!(found.is_empty(), "the layers (tests/layers.rs) are not kept:\n{found}");
}

#[test]
fn the_library_lists_its_layers_in_this_order() {
    let tokens = lex(include_str!("../src/lib.rs"));
    let modules: Vec<_> =
        tokens.windows(2).filter(|pair| pair[0].text == "mod").map(|pair| &pair[1].text).collect();
    assert_eq!(modules, LAYERS.map(|layer| layer.name));
}

/// The lines of `source`, as a file at `path`, that break the rule.
fn lines(path: &str, source: &str) -> Vec<usize> {
    let found = violations(Path::new(path), source);
    found
        .lines()
        .map(|line| line.split(':').nth(1).and_then(|n| n.parse().ok()).expect("a line number"))
        .collect()
}

#[test]
fn a_use_of_a_later_layer_is_found_however_it_is_written() {
    for source in [
        "use crate::model::Model;",
        "use crate::{fgram::{Key, MAX_N}, model::{self, Model}};",
        "pub(crate) use crate::{\n    fgram::Key,\n    model,\n};",
        "fn f() { let model = crate::model::Model::open(\"crate::fgram\"); }",
        "use super::super::model::Model;",
        "use super::super::{fgram::Key, model::Model};",
        "mod tests { use super::super::super::model::Model; }",
        "mod a { mod b {} use super::super::super::model::Model; }",
        "mod tests {}\nuse super::super::model::Model;",
        "use scone::model::Model;",
        "const QUOTE: char = '\"'; use crate::model::Model; const C: char = '\\'';",
        "fn f<'a>(x: &'a str) -> &'a str { crate::model::name(x) }",
        "use crate::*;",
        "use candle_core::Tensor;",
        "fn f(x: &candle_core::Tensor) {}",
    ] {
        assert_eq!(lines("table/reader.rs", source).len(), 1, "not found once in: {source}");
    }
    assert_eq!(lines("table/reader.rs", "/* a\n */ r#\"\n\"#;\n\nuse crate::{\nfgram, model};"), [6]);
    assert_eq!(
        lines("server/mod.rs", "use crate::engine;\nuse crate::train;\nuse crate::corpus::Dataset;"),
        [2, 3]
    );
    assert_eq!(lines("bench/mod.rs", "use crate::tokenizer;\nuse crate::fgram;"), [2]);
    assert_eq!(lines("bin/scone.rs", "use scone::cli;\nuse scone::model;"), [2]);
    assert_eq!(lines("utils/mod.rs", ""), [1]);
}

#[test]
fn what_only_looks_like_a_use_is_let_pass() {
    for source in [
        "use crate::fgram::{Key, model};",
        "use crate::table::model;",
        "use super::model::Model;",
        "mod tests { use super::super::model::Model; }",
        "mod a {} mod b { mod c { use super::super::super::model; } }",
        "//! [`crate::model`]\n/// See [`crate::engine`].\n// use crate::model;",
        "/* use crate::model; /* nested */ use crate::model; */",
        "const A: &str = \"use crate::model; \\\" crate::model::x\";",
        "const A: &str = r#\"use \"crate::model\"; \"#;",
        "pub(crate) fn model() {}",
        "use model::candle;",
    ] {
        let source = source.replace("candle;", "Candle;");
        assert_eq!(violations(Path::new("table/reader.rs"), &source), "", "in: {source}");
    }
    assert_eq!(
        violations(Path::new("model/mod.rs"), "use candle_core::Tensor; use crate::table::Table;"),
        ""
    );
}
