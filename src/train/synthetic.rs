use std::path::{Path, PathBuf};

use candle_core::Device;

use super::export::Export;
use super::{JointModel, Parameters, RunConfig, TrainError};
use crate::corpus::Dataset;
use crate::fgram::{FgramSet, parquet};
use crate::model::{ModelDirectory, ModelError};
use crate::table::{Contents, RowFormat, RowType, TableWriter};

/// Rows written at a time.
const CHUNK: usize = 8192;

/// Writes what a run of `config` would start from, for benchmarks: `directory/baseline`, whose weights are random, and
/// `directory/scone`, the same main model with an f-gram model and the table of the configured set. Training is left
/// out, and so is the pass of the f-gram model over the set: with a gain of 0, where every run starts, its output is the
/// embedding of the f-gram's last token. So identities fit, and each row is the one that the f-gram model gives.
///
/// Returns the two directories, the baseline's first.
///
/// # Errors
/// Where the configuration is a baseline's or its f-gram model not of the residual form, the set was mined with another
/// tokenizer, or a file cannot be read or written.
pub fn synthesize(
    config: &RunConfig,
    row_type: RowType,
    directory: &Path,
) -> Result<[PathBuf; 2], TrainError> {
    let Some(fgram) = &config.fgram else {
        return Err(TrainError::Data("without an [fgram] section there is no table to make".to_owned()));
    };
    if !fgram.residual_output {
        let why = "only with residual_output = true are the rows known without running the f-gram model";
        return Err(TrainError::Data(why.to_owned()));
    }
    let dataset = Dataset::open(&config.data.dataset)?;
    let set = parquet::read(&fgram.set)?;
    let mut parameters = Parameters::new(config.seed, config.model.init_std, &Device::Cpu);
    JointModel::create(config, dataset.tokenizer().vocab_size(), set.policy().max_n, &mut parameters)?;
    std::fs::create_dir_all(directory).map_err(TrainError::io(directory))?;
    let [baseline, scone] = ["baseline", "scone"].map(|name| directory.join(name));
    let plain = RunConfig { fgram: None, ..config.clone() };
    for (config, set, directory) in [(&plain, None, &baseline), (config, Some(&set), &scone)] {
        let export = Export { config, settings: None, dataset: &dataset, set, parameters: &parameters };
        export.write(directory, |_| CARD.to_owned())?;
    }
    write_table(&ModelDirectory::open(&scone)?, &set, row_type)?;
    Ok([baseline, scone])
}

const CARD: &str = "# Synthetic model\n\nRandom weights, made by `scone-train synthesize` to measure speed: it has \
                    learned nothing.\n";

/// The table whose rows are the embeddings of the f-grams' last tokens, as the directory's file holds them.
fn write_table(directory: &ModelDirectory, set: &FgramSet, row_type: RowType) -> Result<(), ModelError> {
    let Some(path) = directory.table_path() else { return Ok(()) };
    let dim = directory.config().hidden_size;
    let embedding = directory.token_embedding(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let identity = directory.identity(set.sha256())?;
    let format = RowFormat::packed(row_type, dim);
    let mut writer = TableWriter::open(&path, format, Contents::of_set(set), &identity)?;
    // A table that was begun and stopped is taken up.
    while writer.rows() < set.len() {
        let ranks = writer.rows()..set.len().min(writer.rows() + CHUNK);
        let last = ranks.filter_map(|rank| set.tokens(rank as u32)?.last().copied());
        let rows: Vec<f32> =
            last.flat_map(|token| &embedding[token as usize * dim..][..dim]).copied().collect();
        writer.push(&rows)?;
    }
    Ok(writer.finish()?)
}
