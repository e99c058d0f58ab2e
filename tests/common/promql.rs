//! As much of PromQL as says which metrics and labels an expression uses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "each test file is a program of its own")]

use super::exposition::is_name;

/// What an expression asks for.
#[derive(Debug, Default)]
pub struct Used {
    pub selectors: Vec<Selector>,
    /// The labels by which it groups or joins.
    pub groups: Vec<String>,
}

/// A metric, and what its labels must be: name, operator, value.
#[derive(Debug)]
pub struct Selector {
    pub metric: String,
    pub labels: Vec<(String, String, String)>,
}

/// Words that are no metrics. What is neither one of these nor a metric of ours is a mistake.
const WORDS: [&str; 15] = [
    "sum",
    "max",
    "min",
    "rate",
    "changes",
    "histogram_quantile",
    "vector",
    "time",
    "by",
    "on",
    "and",
    "or",
    "offset",
    "absent",
    "ignoring",
];

/// Splits into names, numbers, strings (with their quotes) and other characters; durations in brackets are left out.
fn lex(expression: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '"' => rest[1..].find('"').unwrap() + 2,
            '[' => rest.find(']').unwrap() + 1,
            c if c.is_ascii_alphanumeric() || c == '_' => {
                let is_in = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '.';
                rest.find(|c| !is_in(c)).unwrap_or(rest.len())
            }
            '=' | '!' | '<' | '>' if rest[1..].starts_with(['=', '~']) => 2,
            c => c.len_utf8(),
        };
        let (token, after) = rest.split_at(end);
        if !first.is_whitespace() && first != '[' {
            tokens.push(token.to_owned());
        }
        rest = after;
    }
    tokens
}

impl Used {
    pub fn of(expression: &str) -> Self {
        let tokens = lex(expression);
        let opening = |open: &str| tokens.iter().filter(|token| *token == open).count();
        assert_eq!((opening("("), opening("{")), (opening(")"), opening("}")), "{expression}");
        let mut used = Self::default();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            if token == "by" || token == "on" || token == "ignoring" {
                let length = tokens[at..].iter().position(|token| token == ")").unwrap();
                let names = tokens[at..at + length].iter().filter(|token| is_name(token));
                used.groups.extend(names.cloned());
                at += length;
            } else if is_name(token) && !WORDS.contains(&token.as_str()) {
                let mut labels = Vec::new();
                if tokens.get(at).is_some_and(|token| token == "{") {
                    let length = tokens[at..].iter().position(|token| token == "}").unwrap();
                    for matcher in tokens[at + 1..at + length].split(|token| token == ",") {
                        let [label, operator, value] = matcher else { panic!("{matcher:?} in {expression}") };
                        labels.push((label.clone(), operator.clone(), value.trim_matches('"').to_owned()));
                    }
                    at += length;
                }
                used.selectors.push(Selector { metric: token.clone(), labels });
            }
        }
        assert!(!used.selectors.is_empty(), "{expression} asks for nothing");
        used
    }
}
