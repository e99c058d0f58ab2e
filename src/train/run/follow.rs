use super::{State, Trainer};
use crate::fgram::FgramSet;
use crate::train::parallel::{Group, checksum, share_parameters};
use crate::train::{Corpora, RunConfig, TrainError};

const SAME_FILES: &str = "configuration, dataset or f-gram set: start all processes with the same files";
const SAME_WEIGHTS: &str =
    "the weights that they have come to: CPUs of another kind round otherwise, so use machines of one kind";

/// Fails in all processes of a group if they are not about to train the same, or one of them cannot.
pub(super) fn agree_on_files(
    group: &mut dyn Group,
    config: &RunConfig,
    corpora: &Corpora,
) -> Result<(), TrainError> {
    let mut identity = format!("{}\n{:?}", config.to_toml(), corpora.set().map(FgramSet::sha256));
    for corpus in corpora.iter() {
        let (tokenizer, tokens) = (corpus.dataset().tokenizer().sha256(), corpus.dataset().train().tokens);
        identity.push_str(&format!("\n{tokenizer} {tokens} {}", corpus.dataset().validation().tokens));
    }
    Ok(group.agree(SAME_FILES, crc32fast::hash(identity.as_bytes()))?)
}

impl Trainer {
    /// Brings all processes of a group to where rank 0 is.
    pub(super) fn follow(&mut self) -> Result<(), TrainError> {
        if self.group.is_alone() {
            return Ok(());
        }
        let broken = |e: serde_json::Error| TrainError::Data(format!("the state of the run: {e}"));
        let mut text =
            if self.leads() { serde_json::to_vec(&self.state).map_err(broken)? } else { Vec::new() };
        // All others have none, so the sum is rank 0's.
        let mut length = [text.len() as f64];
        self.group.sum_f64(&mut length)?;
        text.resize(length[0] as usize, 0);
        self.group.broadcast(&mut text)?;
        self.state = serde_json::from_slice::<State>(&text).map_err(broken)?;
        self.checkpoint_step = self.state.step;
        share_parameters(&mut *self.group, &self.parameters, &mut self.optimizer)
    }

    /// Fails in all processes if their weights are no longer the same, which would otherwise stay unseen.
    pub(super) fn check_group(&mut self) -> Result<(), TrainError> {
        if self.group.is_alone() {
            return Ok(());
        }
        let checksum = checksum(&self.parameters)?;
        Ok(self.group.agree(SAME_WEIGHTS, checksum)?)
    }
}
