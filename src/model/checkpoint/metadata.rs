use std::collections::HashMap;

use super::gguf::{Cursor, Value};

/// What a GGUF file says of its model beside the tensors.
pub(crate) struct Metadata<'a> {
    pub(super) values: &'a HashMap<String, Value>,
    /// The whole file: arrays are read from it.
    pub(super) bytes: &'a [u8],
}

impl Metadata<'_> {
    /// Whether there is a value of this name.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A whole number that is not negative.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key, "a whole number", |value| match value {
            Value::Integer(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// A number.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, String> {
        self.get(key, "a number", |value| match value {
            Value::Float(x) => Some(*x),
            Value::Integer(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.get(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, String> {
        self.get(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// How many values an array has.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, String> {
        self.get(key, "an array", |value| match value {
            Value::Array { count, .. } => Some(*count),
            _ => None,
        })
    }

    /// An array of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<String>>, String> {
        self.array(key, "texts", |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        })
    }

    /// An array of numbers.
    pub(crate) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, String> {
        self.array(key, "numbers", |value| match value {
            Value::Float(x) => Some(x as f32),
            _ => None,
        })
    }

    /// An array of whole numbers that are not negative.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<u64>>, String> {
        self.array(key, "whole numbers", |value| match value {
            Value::Integer(n) => u64::try_from(n).ok(),
            _ => None,
        })
    }

    fn get<'v, T>(
        &'v self,
        key: &str,
        what: &str,
        take: impl Fn(&'v Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| format!("\"{key}\" is not {what}"))
    }

    fn array<T>(
        &self,
        key: &str,
        what: &str,
        take: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, String> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let wrong = || format!("\"{key}\" is not an array of {what}");
        let Value::Array { kind, count, bytes } = value else { return Err(wrong()) };
        let mut cursor = Cursor { bytes: &self.bytes[..bytes.end], at: bytes.start };
        let values = (0..*count).map(|_| take(cursor.value(*kind)?).ok_or_else(wrong));
        values.collect::<Result<_, _>>().map(Some)
    }
}
