use candle_core::{Result, Tensor, Var};

use super::{Batch, RowGradient};
use crate::model::ops::take_rows;

/// The token embeddings that a batch reads, each once: instead of a table the model is given these rows of it, and instead
/// of the table's gradient, of which most rows would be zero, the backward pass gives theirs.
pub(super) struct Lookup {
    /// The batch, its inputs the numbers of their tokens in `tokens`.
    pub(super) batch: Batch,
    /// The different tokens of the batch, ascending.
    tokens: Vec<u32>,
}

impl Lookup {
    /// Of a batch of tokens below `vocabulary`.
    ///
    /// # Errors
    /// Where one is not.
    pub(super) fn new(batch: &Batch, vocabulary: usize) -> Result<Self> {
        let mut numbers = vec![u32::MAX; vocabulary];
        for &token in &batch.inputs {
            let Some(number) = numbers.get_mut(token as usize) else {
                candle_core::bail!("token {token} of a vocabulary of {vocabulary}")
            };
            *number = 0;
        }
        let mut tokens = Vec::new();
        for (token, number) in numbers.iter_mut().enumerate().filter(|(_, number)| **number == 0) {
            *number = tokens.len() as u32;
            tokens.push(token as u32);
        }
        let inputs = batch.inputs.iter().map(|&token| numbers[token as usize]).collect();
        Ok(Self { batch: Batch { inputs, ..batch.clone() }, tokens })
    }

    /// The rows of a table that the batch reads: a leaf of the graph where the table is one.
    ///
    /// # Errors
    /// Where the table has fewer rows than the vocabulary.
    pub(super) fn rows_of(&self, table: &Tensor) -> Result<Tensor> {
        let rows = take_rows(&table.detach(), &std::sync::Arc::new(self.tokens.clone()))?;
        if table.is_variable() { Ok(Var::from_tensor(&rows)?.into_inner()) } else { Ok(rows) }
    }

    /// The gradient of a table, given that of its rows.
    ///
    /// # Errors
    /// Where they are not of this batch.
    pub(super) fn gradient(&self, table: &Tensor, rows: &Tensor) -> Result<RowGradient> {
        RowGradient::new(self.tokens.clone(), rows, table)
    }
}
