//! What an update is made of: the gradient of each parameter.

mod rows;
mod squares;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};

pub use rows::RowGradient;
pub use squares::square_sums;

/// The gradient of a parameter.
#[derive(Debug)]
pub enum Gradient {
    /// A number for each of the parameter's.
    Whole(Tensor),
    /// Of a table of which a batch reads some rows: all others are zero, and are not there.
    Rows(RowGradient),
}

/// Gradients by their parameters' names.
pub type Gradients = BTreeMap<String, Gradient>;

impl Gradient {
    /// Adds another of the same parameter.
    ///
    /// # Errors
    /// Where they differ in shape.
    pub fn plus(self, other: Self) -> Result<Self> {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Ok(Self::Whole((a + b)?)),
            (Self::Rows(a), Self::Rows(b)) => Ok(Self::Rows(a.plus(&b)?)),
            (Self::Whole(whole), Self::Rows(rows)) | (Self::Rows(rows), Self::Whole(whole)) => {
                rows.add_to(&whole)?;
                Ok(Self::Whole(whole))
            }
        }
    }

    /// With its zeros.
    ///
    /// # Errors
    /// Where there is not enough memory.
    pub fn whole(&self) -> Result<Tensor> {
        match self {
            Self::Whole(whole) => Ok(whole.clone()),
            Self::Rows(rows) => rows.whole(),
        }
    }
}

/// Adds up gradients of the same parameters.
///
/// # Errors
/// As [`Gradient::plus`], and where one has a parameter that the other has not.
pub fn add_gradients(sum: Gradients, mut gradients: Gradients) -> Result<Gradients> {
    let mut together = Gradients::new();
    for (name, gradient) in sum {
        let Some(other) = gradients.remove(&name) else { bail!("one batch gives {name} no gradient") };
        together.insert(name, gradient.plus(other)?);
    }
    if let Some(name) = gradients.into_keys().next() {
        bail!("one batch gives {name} no gradient");
    }
    Ok(together)
}
