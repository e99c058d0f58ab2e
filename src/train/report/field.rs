use super::chart::short;

/// What a figure is called in a table or on an axis.
pub(super) fn label(path: &str) -> String {
    let known = match path {
        "parameters.main" => "parameters",
        "parameters.non_embedding" => "non-embedding parameters",
        "parameters.fgram" => "A_f parameters",
        "fgrams" => "f-grams",
        "max_n" => "K",
        "tokens" => "tokens trained on",
        "tokens_per_second" => "tokens/s",
        "best.loss" => "best validation loss",
        "best.perplexity" => "best validation perplexity",
        "best.step" => "best step",
        "costs.inference_flops" => "FLOPs a token",
        "costs.training_flops" => "training FLOPs",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let words = path.strip_prefix("texts.").or_else(|| path.strip_prefix("costs.")).unwrap_or(path);
    let is_setting = words == path && !path.starts_with("validation.");
    if is_setting { path.to_owned() } else { words.replace(['.', '_'], " ") }
}

/// A figure as a table has it.
pub(super) fn cell(path: &str, value: f64) -> String {
    let last = path.rsplit('.').next().unwrap_or(path);
    match last {
        "hit_rate" => format!("{:.1} %", 100.0 * value),
        "loss" | "bits_per_byte" => format!("{value:.4}"),
        "perplexity" | "word_perplexity" if value < 1e4 => format!("{value:.2}"),
        _ => short(value, if value.abs() < 1e4 { 4 } else { 3 }),
    }
}

/// Whether only a run with f-grams has this figure.
pub(super) fn is_of_fgrams(path: &str) -> bool {
    let first = path.split('.').next().unwrap_or(path);
    let last = path.rsplit('.').next().unwrap_or(path);
    ["fgram", "fgrams", "max_n"].contains(&first)
        || last.starts_with("fgram")
        || ["hit_rate", "mean_match", "table_bytes"].contains(&last)
}
