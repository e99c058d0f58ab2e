use super::mixture::Mixture;
use super::windows::Windows;
use super::{Batch, Corpora};
use crate::train::TrainError;

/// The stream of training batches: windows of the corpora, mixed by their weights and shuffled. A batch depends on the
/// configuration and its number alone, so a resumed run sees what an undisturbed one sees.
pub struct Batches<'a> {
    corpora: Vec<Windows<'a>>,
    mixture: Mixture,
}

impl<'a> Batches<'a> {
    pub(super) fn new(corpora: &'a Corpora, windows: Vec<Windows<'a>>) -> Self {
        let weights: Vec<f64> = corpora.iter().map(|corpus| corpus.share()).collect();
        Self { corpora: windows, mixture: Mixture::new(&weights) }
    }

    /// How many different windows each corpus has.
    pub fn windows(&self) -> Vec<u64> {
        self.corpora.iter().map(Windows::count).collect()
    }

    /// How often each corpus has been gone through when the stream has given so many windows.
    pub fn epochs(&self, windows: u64) -> Vec<f64> {
        let taken = self.mixture.taken(windows);
        taken.iter().zip(&self.corpora).map(|(&taken, corpus)| taken as f64 / corpus.count() as f64).collect()
    }

    /// The `number`-th batch of `size` windows.
    ///
    /// # Errors
    /// Where a shard holds an impossible token.
    pub fn shuffled(&self, number: u64, size: usize) -> Result<Batch, TrainError> {
        let (mut batch, mut tokens) = (Batch::default(), Vec::new());
        for i in 0..size as u64 {
            let (corpus, at) = self.mixture.place(number * size as u64 + i);
            let corpus = &self.corpora[corpus];
            corpus.read(corpus.shuffled(at), &mut tokens, &mut batch)?;
        }
        Ok(batch)
    }
}
