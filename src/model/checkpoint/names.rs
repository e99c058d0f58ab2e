//! GGUF's names of tensors, and its order of the rows that are rotated.

/// Beside the blocks, `(Hugging Face, GGUF)`. Both write the suffix the same: `.weight` or `.bias`.
const OUTSIDE: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Within a block: `model.layers.N.` and `blk.N.` before them.
const BLOCK: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// What GGUF calls the tensor that Hugging Face calls `name`. Names that it does not rename are returned as they are.
pub(super) fn in_gguf(name: &str) -> String {
    let renamed = || {
        let (stem, suffix) = name.rsplit_once('.')?;
        let find = |names: &[(&str, &'static str)], stem: &str| {
            names.iter().find(|(theirs, _)| *theirs == stem).map(|(_, gguf)| *gguf)
        };
        if let Some(gguf) = find(&OUTSIDE, stem) {
            return Some(format!("{gguf}.{suffix}"));
        }
        let (block, stem) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        Some(format!("blk.{block}.{}.{suffix}", find(&BLOCK, stem)?))
    };
    renamed().unwrap_or_else(|| name.to_owned())
}

/// The rows of queries or keys, from GGUF's order to Hugging Face's, in heads of `head` rows of `row` bytes.
///
/// For the architecture `llama`, GGUF rotates neighbouring features, `2i` and `2i + 1`, where Hugging Face rotates `i`
/// and `i + head / 2`; its converter (`LlamaModel.permute` in llama.cpp's `convert_hf_to_gguf.py`) moved the rows to
/// make up for that. Whole rows move, so this is exact in every encoding.
///
/// `bytes` are whole heads, of an even number of rows.
pub(super) fn halves_from_pairs(bytes: &[u8], head: usize, row: usize) -> Vec<u8> {
    let mut moved = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(head * row) {
        for odd in [0, 1] {
            head.chunks_exact(row).skip(odd).step_by(2).for_each(|row| moved.extend_from_slice(row));
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_published_files() {
        for (theirs, gguf) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("model.layers.17.self_attn.q_proj.bias", "blk.17.attn_q.bias"),
            ("model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight"),
            ("model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
            ("model.layers.3.unknown.weight", "model.layers.3.unknown.weight"),
            ("model.layers.3", "model.layers.3"),
            ("", ""),
        ] {
            assert_eq!(in_gguf(theirs), gguf);
        }
    }

    /// The converter's own words: `reshape(heads, 2, head / 2, row).swapaxes(1, 2)`.
    fn converted(rows: &[u8], head: usize, row: usize) -> Vec<u8> {
        let mut moved = vec![0; rows.len()];
        let half = head / 2;
        for h in 0..rows.len() / (head * row) {
            for side in 0..2 {
                for i in 0..half {
                    for byte in 0..row {
                        moved[((h * half + i) * 2 + side) * row + byte] =
                            rows[((h * 2 + side) * half + i) * row + byte];
                    }
                }
            }
        }
        moved
    }

    #[test]
    fn rows_come_back_to_where_they_were() {
        for (heads, head, row) in [(1, 2, 1), (3, 8, 5), (2, 64, 18), (5, 6, 34)] {
            let rows: Vec<u8> = (0..heads * head * row).map(|i| (i * 31 % 251) as u8).collect();
            assert_eq!(halves_from_pairs(&converted(&rows, head, row), head, row), rows);
        }
    }
}
