use serde_json::Value;

/// What is in a tree of objects and lists and is none itself, with its path.
pub(in crate::train) fn leaves(value: &Value) -> Vec<(String, &Value)> {
    let fields: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(i, item)| (i.to_string(), item)).collect(),
        _ => return vec![(String::new(), value)],
    };
    let inner = |(key, value): (String, _)| {
        let below = leaves(value).into_iter();
        below.map(move |(path, value)| {
            (if path.is_empty() { key.clone() } else { format!("{key}.{path}") }, value)
        })
    };
    fields.into_iter().flat_map(inner).collect()
}
