use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::WeightType;
use super::{
    Checkpoint, Config, FgramConfig, FgramModel, Fgrams, LiveTable, Model, ModelError, Runtime, TableFit,
    TokenizerInfo, stop_tokens,
};
use crate::kernels::{Encoding, KvShape, KvType};
use crate::table::{Identity, Placement, Table};
use crate::tokenizer::Tokenizer;

/// `scone.json`: what makes a model directory a SCONE model. A baseline has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SconeConfig {
    /// K: the longest f-gram.
    pub max_n: usize,
    /// The identity of the f-gram set that the model was trained with.
    pub fgrams_sha256: String,
    /// The table, relative to the directory.
    pub table: PathBuf,
    /// The baseline's directory, relative to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<PathBuf>,
    /// Directories, relative to this one, of models that have this one's main model and tables of their own: whoever
    /// serves this directory takes those tables too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<PathBuf>,
}

/// A model in Hugging Face's layout: `config.json`, `model.safetensors` or its shards, `tokenizer.json`, and for a SCONE
/// model `scone.json`, the table and `fgram_model/`. Or a GGUF file, which holds all that a baseline needs.
pub struct ModelDirectory {
    path: PathBuf,
    config: Config,
    scone: Option<SconeConfig>,
    weights: Checkpoint,
    tokenizer: Tokenizer,
}

fn read(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(ModelError::io(path))
}

impl ModelDirectory {
    /// Reads configuration and tokenizer, and maps the weights, of a directory or a GGUF file.
    ///
    /// # Errors
    /// Where a file is missing or wrong; the message names it.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_file() { Self::open_gguf(path) } else { Self::open_directory(path) }
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let weights = Checkpoint::open(path)?;
        if !weights.is_gguf() {
            let why = "weights alone are no model: name the directory that holds them, or a GGUF file";
            return Err(ModelError::config(path, why));
        }
        let config = Config::from_gguf(&weights)?;
        let tokenizer = weights.tokenizer()?;
        Self { path: path.to_owned(), config, scone: None, weights, tokenizer }.checked(path)
    }

    fn open_directory(path: &Path) -> Result<Self, ModelError> {
        let file = path.join("config.json");
        if !file.exists() {
            let why = "no model here: a model directory holds config.json, model.safetensors and tokenizer.json; \
                       a GGUF file is named itself";
            return Err(ModelError::config(path, why));
        }
        let config = Config::parse(&read(&file)?).map_err(|why| ModelError::config(&file, why))?;
        let file = path.join("scone.json");
        let scone = if file.exists() {
            let parsed = serde_json::from_str(&read(&file)?);
            Some(parsed.map_err(|e| ModelError::config(&file, e.to_string()))?)
        } else {
            None
        };
        let tokenizer = Tokenizer::from_file(path.join("tokenizer.json"))?;
        let weights = Checkpoint::open(path)?;
        Self { path: path.to_owned(), config, scone, weights, tokenizer }.checked(&path.join("config.json"))
    }

    /// Itself, unless the tokenizer has more tokens than the model; `file` is where the model's number is.
    fn checked(self, file: &Path) -> Result<Self, ModelError> {
        let (model, tokenizer) = (self.config.vocab_size, self.tokenizer.vocab_size());
        if tokenizer > model {
            let why = format!(
                "\"vocab_size\": {model} is less than the tokenizer's {tokenizer}: they belong to different models"
            );
            return Err(ModelError::config(file, why));
        }
        Ok(self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The main model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What `scone.json` says; `None` for a baseline.
    pub fn scone(&self) -> Option<&SconeConfig> {
        self.scone.as_ref()
    }

    /// The weights as they are stored.
    pub fn weights(&self) -> &Checkpoint {
        &self.weights
    }

    /// How the weights are stored; `None` for blocks.
    pub fn weight_type(&self) -> Option<WeightType> {
        WeightType::of(self.weights.encoding("model.embed_tokens.weight")?)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens that end a text: those of `generation_config.json` or of the GGUF file, else the tokenizer's own.
    ///
    /// # Errors
    /// Where the file is there and wrong.
    pub fn stop_tokens(&self) -> Result<Vec<u32>, ModelError> {
        if let Some(tokens) = stop_tokens::of_directory(&self.path)? {
            return Ok(tokens);
        }
        let tokens = self.weights.stop_tokens()?;
        Ok(if tokens.is_empty() { self.tokenizer.eos().into_iter().collect() } else { tokens })
    }

    /// What the model says of its tokenizer beside the tokenizer itself.
    ///
    /// # Errors
    /// Where a file is there and wrong.
    pub fn tokenizer_info(&self) -> Result<TokenizerInfo, ModelError> {
        let mut info = match self.weights.metadata() {
            Some(metadata) => TokenizerInfo::of_gguf(&metadata, |id| self.tokenizer.id_to_token(id))
                .map_err(|why| ModelError::config(&self.path, why))?,
            None => TokenizerInfo::of_directory(&self.path)?,
        };
        if info.eos.is_none() {
            info.eos = self.tokenizer.eos().and_then(|id| self.tokenizer.id_to_token(id));
        }
        Ok(info)
    }

    /// Gives up the tokenizer.
    pub fn into_tokenizer(self) -> Tokenizer {
        self.tokenizer
    }

    /// Where the table is, or will be.
    pub fn table_path(&self) -> Option<PathBuf> {
        self.scone.as_ref().map(|scone| self.path.join(&scone.table))
    }

    /// `T`, in f32.
    ///
    /// # Errors
    /// Where it is missing.
    pub fn token_embedding(&self, device: &Device) -> Result<Tensor, ModelError> {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        self.weights.tensor("model.embed_tokens.weight", &shape, device)
    }

    /// The f-gram model in `fgram_model/`, in f32, its weights [fixed](FgramModel::fixed).
    ///
    /// # Errors
    /// Where there is none, or its output is not of the main model's width.
    pub fn fgram_model(&self, device: &Device) -> Result<FgramModel, ModelError> {
        let (config, weights) = self.fgram_files()?;
        let model = FgramModel::new(&config, &mut |name, shape| weights.tensor(name, shape, device))?;
        Ok(model.fixed()?)
    }

    /// The shape and the weights of the f-gram model in `fgram_model/`.
    ///
    /// # Errors
    /// Where there is none, or its output is not of the main model's width.
    pub fn fgram_files(&self) -> Result<(FgramConfig, Checkpoint), ModelError> {
        let directory = self.path.join("fgram_model");
        let file = directory.join("config.json");
        if !file.exists() {
            return Err(ModelError::NoFgramModel(self.path.clone()));
        }
        let text = read(&file)?;
        let decoder = Config::parse(&text).map_err(|why| ModelError::config(&file, why))?;
        #[derive(Deserialize)]
        struct Output {
            #[serde(default)]
            residual_output: bool,
            #[serde(default)]
            own_embedding: bool,
            output_size: Option<usize>,
        }
        let Output { residual_output, own_embedding, output_size } =
            serde_json::from_str(&text).map_err(|e| ModelError::config(&file, e.to_string()))?;
        let width = output_size.unwrap_or(decoder.hidden_size);
        if width != self.config.hidden_size {
            let why = format!("its width {width} is not the main model's {}", self.config.hidden_size);
            return Err(ModelError::config(&file, why));
        }
        let config = FgramConfig { decoder, residual_output, own_embedding, output_size };
        Ok((config, Checkpoint::open(&directory)?))
    }

    /// The identity that a table of this model must have; `fgrams` is that of the set.
    ///
    /// # Errors
    /// Where there is no f-gram model.
    pub fn identity(&self, fgrams: String) -> Result<Identity, ModelError> {
        let (config, weights) = self.fgram_files()?;
        let c = &config.decoder;
        let mut shape = format!(
            "scone f-gram model 1: {} {} {} {} {} {} {} {} {}\0",
            c.hidden_size,
            c.intermediate_size,
            c.num_hidden_layers,
            c.num_attention_heads,
            c.kv_heads(),
            c.head(),
            c.rms_norm_eps,
            c.rope_theta,
            config.residual_output
        );
        if config.own_embedding {
            shape.push_str(&format!(
                "own embedding, output {}\0",
                config.output_size.unwrap_or(c.hidden_size)
            ));
        }
        Ok(Identity {
            tokenizer: self.tokenizer.sha256().to_owned(),
            token_embedding: self.weights.tensor_sha256("model.embed_tokens.weight")?,
            fgram_model: weights.sha256(&shape),
            fgrams,
        })
    }

    /// What a table must be to fit this model. Reads all of the weights once, for their hashes.
    ///
    /// # Errors
    /// Where this is a baseline, which takes no table.
    pub fn table_fit(&self) -> Result<TableFit, ModelError> {
        let Some(scone) = &self.scone else {
            let why = "a baseline takes no table: it has no scone.json";
            return Err(ModelError::config(&self.path, why));
        };
        let (identity, has_fgram_model) = match self.identity(scone.fgrams_sha256.clone()) {
            Ok(identity) => (identity, true),
            Err(ModelError::NoFgramModel(_)) => {
                let identity = Identity {
                    tokenizer: self.tokenizer.sha256().to_owned(),
                    token_embedding: self.weights.tensor_sha256("model.embed_tokens.weight")?,
                    fgram_model: String::new(),
                    fgrams: scone.fgrams_sha256.clone(),
                };
                (identity, false)
            }
            Err(other) => return Err(other),
        };
        let adapters = scone.adapters.iter().map(|path| self.adapter(path, &identity));
        let adapters = adapters.collect::<Result<_, _>>()?;
        let dim = self.config.hidden_size;
        Ok(TableFit { model: self.path.clone(), identity, adapters, has_fgram_model, dim })
    }

    /// The identity of the tables of an adapter, which must be one of this model.
    fn adapter(&self, path: &Path, ours: &Identity) -> Result<Identity, ModelError> {
        let path = self.path.join(path);
        let file = self.path.join("scone.json");
        let adapter = Self::open(&path)?;
        let Some(scone) = &adapter.scone else {
            let why = format!("the adapter {} has no scone.json: it is a baseline", path.display());
            return Err(ModelError::config(&file, why));
        };
        let theirs = adapter.identity(scone.fgrams_sha256.clone())?;
        if (&theirs.token_embedding, &theirs.tokenizer) != (&ours.token_embedding, &ours.tokenizer) {
            let why = format!("the adapter {} has another main model", path.display());
            return Err(ModelError::config(&file, why));
        }
        Ok(theirs)
    }

    /// Opens a table and refuses it unless it was made for this model. Where `fgram_model/` was left out, as serving
    /// allows, everything but the f-gram model is compared.
    ///
    /// # Errors
    /// Where it is damaged, or belongs to another tokenizer, token embedding, f-gram model or f-gram set.
    pub fn open_table(&self, path: &Path) -> Result<Table, ModelError> {
        let fit = self.table_fit()?;
        let table = fit.open_plain(path)?;
        fit.check(&table)?;
        Ok(table)
    }

    /// The model's own table or the one given, to serve from; a baseline has none. `progress` is told of the bytes read,
    /// as by [`Table::open_with`].
    ///
    /// # Errors
    /// As [`ModelDirectory::open_table`].
    pub fn live_table(
        &self,
        table: Option<&Path>,
        placement: Placement,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<Arc<LiveTable>>, ModelError> {
        let Some(path) = table.map(Path::to_owned).or_else(|| self.table_path()) else { return Ok(None) };
        let live = LiveTable::open(&path, self.table_fit()?, placement, progress)?;
        Ok(Some(Arc::new(live)))
    }

    /// What a position's keys and values take.
    pub fn kv_shape(&self) -> KvShape {
        let config = &self.config;
        KvShape { layers: config.num_hidden_layers, heads: config.kv_heads(), head: config.head() }
    }

    /// How its matrices are stored, going by the first.
    pub fn encoding(&self) -> Option<Encoding> {
        self.weights.encoding("model.layers.0.self_attn.q_proj.weight")
    }

    /// How keys and values are best held beside weights that are converted to `dtype`, or kept as they are stored: exactly
    /// beside exact ones, in half the memory beside all others.
    pub fn kv_type(&self, dtype: Option<Encoding>) -> KvType {
        match dtype.or_else(|| self.encoding()) {
            Some(Encoding::F32) => KvType::F32,
            _ => KvType::F16,
        }
    }

    /// The model, ready to serve, with its own table or the one given. A baseline has none.
    ///
    /// # Errors
    /// Where a file is missing, wrong or does not fit.
    pub fn load(&self, table: Option<&Path>, runtime: &Runtime) -> Result<Model, ModelError> {
        let table = self.live_table(table, Placement::default(), &mut |_, _| ())?;
        self.load_with(table, runtime)
    }

    /// The model, ready to serve, with what [`ModelDirectory::live_table`] gave.
    ///
    /// # Errors
    /// Where a file is missing or wrong.
    pub fn load_with(&self, table: Option<Arc<LiveTable>>, runtime: &Runtime) -> Result<Model, ModelError> {
        let fgrams = table.map_or(Fgrams::None, Fgrams::Table);
        Model::new(self.config.clone(), &self.weights, fgrams, runtime)
    }

    /// The model with the f-grams' embeddings computed on the spot instead of read from the table.
    ///
    /// # Errors
    /// As [`ModelDirectory::load`], and where there is no f-gram model.
    pub fn load_without_rows(&self, table: Option<&Path>, runtime: &Runtime) -> Result<Model, ModelError> {
        let Some(path) = table.map(Path::to_owned).or_else(|| self.table_path()) else {
            return Err(ModelError::config(&self.path, "a baseline has no f-grams to embed"));
        };
        let table = Arc::new(self.open_table(&path)?);
        let device = Device::Cpu;
        let fgrams = Fgrams::Model(table, self.fgram_model(&device)?, self.token_embedding(&device)?);
        Model::new(self.config.clone(), &self.weights, fgrams, runtime)
    }
}
