//! Weights as they are stored: the safetensors of a Hugging Face directory, sharded or not, or a GGUF file. Mapped, never
//! read whole, and known by Hugging Face's names whatever the form.

mod gguf;
mod huggingface;
mod metadata;
mod names;
mod vocabulary;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::ModelError;
use crate::kernels::Encoding;
pub(crate) use metadata::Metadata;

/// A tensor's numbers as a file has them, by rows; a vector is one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<'a> {
    /// How the numbers are stored. A row is whole blocks.
    pub encoding: Encoding,
    /// Rows: outputs of a product, tokens of an embedding.
    pub rows: usize,
    /// Numbers in a row.
    pub columns: usize,
    /// The rows, one after the other: mapped, or put in Hugging Face's order.
    pub bytes: Cow<'a, [u8]>,
}

impl Stored<'_> {
    /// The numbers, all rows one after the other.
    pub fn decode(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.rows * self.columns];
        self.encoding.decode(&self.bytes, &mut numbers);
        numbers
    }
}

/// How a file stores a tensor.
#[derive(Clone, Debug)]
enum Kind {
    Numbers(Encoding),
    /// The name of a type that is not supported.
    Other(String),
}

/// A tensor's place.
#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    kind: Kind,
    shape: Vec<usize>,
    /// Within the file; checked against its length, and against shape and kind.
    bytes: Range<usize>,
}

struct File {
    path: PathBuf,
    map: Mmap,
}

impl File {
    fn open(path: &Path) -> Result<Self, ModelError> {
        let file = std::fs::File::open(path).map_err(ModelError::io(path))?;
        // SAFETY: a mapped file must not be changed by others while it is in use. Weights are written under a temporary
        // name and renamed, here as by those who download them; every place in them is checked against the length.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))?;
        // Tensors are read from end to end; a system that knows of no such advice reads them all the same.
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(Self { path: path.to_owned(), map })
    }
}

/// What only a GGUF file has.
struct Gguf {
    values: HashMap<String, gguf::Value>,
    /// Rows of a head of queries and of keys, where their order is GGUF's own.
    paired: Option<usize>,
}

/// A model's weights, mapped.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<File>,
    tensors: BTreeMap<String, Entry>,
    gguf: Option<Gguf>,
}

impl Checkpoint {
    /// Opens a directory with `model.safetensors` or `model.safetensors.index.json`, a safetensors file, or a GGUF file.
    ///
    /// # Errors
    /// Where a file is missing, cut off or damaged.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            let (files, tensors) = huggingface::open(path)?;
            return Ok(Self { path: path.to_owned(), files, tensors, gguf: None });
        }
        let file = File::open(path)?;
        let (tensors, gguf) = if file.map.starts_with(b"GGUF") {
            let header = gguf::read(&file.map).map_err(|why| ModelError::weights(path, why))?;
            let metadata = Metadata { values: &header.values, bytes: &file.map };
            let paired = paired(&metadata).map_err(|why| ModelError::config(path, why))?;
            (header.tensors, Some(Gguf { values: header.values, paired }))
        } else {
            (huggingface::tensors(path, &file.map, 0)?, None)
        };
        Ok(Self { path: path.to_owned(), files: vec![file], tensors, gguf })
    }

    /// The directory or the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold them.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Whether it is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.gguf.is_some()
    }

    /// What a GGUF file says of its model; None for safetensors.
    pub(crate) fn metadata(&self) -> Option<Metadata<'_>> {
        let values = &self.gguf.as_ref()?.values;
        Some(Metadata { values, bytes: &self.files.first()?.map })
    }

    /// Whether there is a tensor of this name (Hugging Face's).
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(&*self.own_name(name))
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(&*self.own_name(name)).map(|entry| &*entry.shape)
    }

    /// How a tensor is stored, if it is there and in a way that is supported.
    pub fn encoding(&self, name: &str) -> Option<Encoding> {
        match self.tensors.get(&*self.own_name(name))?.kind {
            Kind::Numbers(encoding) => Some(encoding),
            Kind::Other(_) => None,
        }
    }

    /// What the files call the tensor that Hugging Face calls `name`.
    fn own_name<'n>(&self, name: &'n str) -> Cow<'n, str> {
        if self.gguf.is_some() { names::in_gguf(name).into() } else { name.into() }
    }

    fn entry(&self, name: &str) -> Result<(Cow<'_, str>, &Entry, &File), ModelError> {
        let own = self.own_name(name);
        match self.tensors.get_key_value(&*own) {
            Some((own, entry)) => Ok((own.into(), entry, &self.files[entry.file])),
            None => Err(ModelError::weights(self.weights_path(), format!("the tensor \"{own}\" is missing"))),
        }
    }

    /// What to call the weights in a message: the file where there is only one.
    fn weights_path(&self) -> &Path {
        if let [file] = &*self.files { &file.path } else { &self.path }
    }

    /// A tensor of the given shape as it is stored, its rows in Hugging Face's order. `name` is Hugging Face's in both
    /// forms.
    ///
    /// # Errors
    /// Where it is not there, or has another shape or an unsupported type; the message names it.
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>, ModelError> {
        let (own, entry, file) = self.entry(name)?;
        let wrong = |why: String| Err(ModelError::weights(&file.path, why));
        if entry.shape != shape {
            let who = if self.gguf.is_some() { "its metadata" } else { "config.json" };
            return wrong(format!("\"{own}\" has shape {:?}, {who} asks for {shape:?}", entry.shape));
        }
        let encoding = match &entry.kind {
            Kind::Numbers(encoding) => *encoding,
            Kind::Other(kind) if self.gguf.is_some() => {
                return wrong(format!(
                    "\"{own}\" is {kind}, not supported; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K are"
                ));
            }
            Kind::Other(kind) => {
                return wrong(format!("\"{own}\" is {kind}, not supported; F32, F16 and BF16 are"));
            }
        };
        let columns = shape.last().copied().unwrap_or(1);
        let rows = shape.split_last().map_or(1, |(_, rows)| rows.iter().product());
        let mut bytes = Cow::Borrowed(&file.map[entry.bytes.clone()]);
        if let Some(head) = self.rows_of_a_head(name) {
            let row = if shape.len() > 1 { encoding.bytes(columns) } else { Some(encoding.block_bytes()) };
            let whole = row.zip(row.and_then(|row| row.checked_mul(head)));
            match whole {
                Some((row, all)) if all > 0 && bytes.len().is_multiple_of(all) => {
                    bytes = names::halves_from_pairs(&bytes, head, row).into();
                }
                _ => return wrong(format!("\"{own}\" of shape {shape:?} is not whole heads of {head} rows")),
            }
        }
        Ok(Stored { encoding, rows, columns, bytes })
    }

    /// Rows of a head where the rows of this tensor are in GGUF's order.
    fn rows_of_a_head(&self, name: &str) -> Option<usize> {
        let paired = self.gguf.as_ref()?.paired?;
        let (stem, _) = name.rsplit_once('.')?;
        (stem.ends_with(".self_attn.q_proj") || stem.ends_with(".self_attn.k_proj")).then_some(paired)
    }

    /// A tensor of the given shape, as f32.
    ///
    /// # Errors
    /// Those of [`Checkpoint::stored`].
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, ModelError> {
        Ok(Tensor::from_vec(self.stored(name, shape)?.decode(), shape, device)?)
    }

    /// SHA-256 of one tensor as it is stored: type, shape and bytes.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn tensor_sha256(&self, name: &str) -> Result<String, ModelError> {
        let mut hash = Sha256::new();
        let (_, entry, file) = self.entry(name)?;
        hash_entry(&mut hash, entry, file);
        Ok(hex(hash))
    }

    /// SHA-256 of `preamble` and of all tensors by name, each as it is stored.
    pub fn sha256(&self, preamble: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(preamble);
        for (name, entry) in &self.tensors {
            hash.update(name);
            hash.update([0]);
            hash_entry(&mut hash, entry, &self.files[entry.file]);
        }
        hex(hash)
    }
}

/// Rows of a head of queries and keys if this file keeps them in GGUF's order, as those of the architecture `llama` do.
fn paired(metadata: &Metadata<'_>) -> Result<Option<usize>, String> {
    if metadata.text("general.architecture")? != Some("llama") {
        return Ok(None);
    }
    let integer = |key: &str| metadata.integer(&format!("llama.{key}"));
    let head = match (integer("attention.key_length")?, integer("embedding_length")?) {
        (Some(head), _) => head,
        (None, Some(width)) => width.checked_div(integer("attention.head_count")?.unwrap_or(0)).unwrap_or(0),
        (None, None) => 0,
    };
    match usize::try_from(head) {
        Ok(head) if head > 0 && head % 2 == 0 && head < 1 << 24 => Ok(Some(head)),
        _ => {
            Err("\"llama.embedding_length\" and \"llama.attention.head_count\" do not give an even head"
                .into())
        }
    }
}

fn hash_entry(hash: &mut Sha256, entry: &Entry, file: &File) {
    let kind = match &entry.kind {
        Kind::Numbers(encoding) => encoding.name().to_uppercase(),
        Kind::Other(kind) => kind.clone(),
    };
    hash.update(format!("{kind} {:?}\0", entry.shape));
    hash.update(&file.map[entry.bytes.clone()]);
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
