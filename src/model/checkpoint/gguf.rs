//! The header of a GGUF file (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): what it says of the model,
//! and where its tensors are. Nothing in it is trusted: all that is read lies within the file.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::{Entry, Kind};
use crate::kernels::Encoding;

/// Arrays within arrays; more are a crafted file.
const DEPTH: usize = 4;

/// A value of the header. Arrays are left where they are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Array { kind: u32, count: usize, bytes: Range<usize> },
}

/// What a file's header says.
pub(super) struct Header {
    pub(super) values: HashMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Entry>,
}

/// Reads bytes one after the other.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err("the file ends within its header: it is cut off or damaged".into());
        };
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, String> {
        let number = self.u64()?;
        usize::try_from(number).map_err(|_| format!("{number} is no size that this machine has"))
    }

    /// Text that is no UTF-8 shows U+FFFD for what is wrong: some tokenizers' files have such tokens.
    pub(super) fn text(&mut self) -> Result<String, String> {
        let len = self.size()?;
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    /// A value of the type that GGUF has at this number.
    pub(super) fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Integer(self.array::<1>()?[0].into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, count) = (self.u32()?, self.size()?);
                let start = self.at;
                self.skip(kind, count, DEPTH)?;
                Value::Array { kind, count, bytes: start..self.at }
            }
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("its header has a value of the unknown type {other}")),
        })
    }

    /// Passes over the values of an array.
    fn skip(&mut self, kind: u32, count: usize, depth: usize) -> Result<(), String> {
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..count {
                    let len = self.size()?;
                    self.take(len)?;
                }
                return Ok(());
            }
            9 if depth > 0 => {
                for _ in 0..count {
                    let (kind, count) = (self.u32()?, self.size()?);
                    self.skip(kind, count, depth - 1)?;
                }
                return Ok(());
            }
            other => return Err(format!("its header has an array of the unknown type {other}")),
        };
        self.take(count.checked_mul(width).ok_or("an array in its header has no size")?)?;
        Ok(())
    }
}

/// A tensor as the header lists it, before it is known where the data begins.
struct Listed {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: usize,
}

/// Reads the header at the beginning of `bytes`, which are the whole file.
pub(super) fn read(bytes: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != b"GGUF" {
        return Err("it is no GGUF file: it does not begin with \"GGUF\"".into());
    }
    match cursor.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => {
            return Err("it is written for big-endian machines, which is not supported".into());
        }
        version => return Err(format!("GGUF of version {version} is not supported (only 2 and 3)")),
    }
    let (tensors, values) = (cursor.size()?, cursor.size()?);
    let mut header = Header { values: HashMap::new(), tensors: BTreeMap::new() };
    for _ in 0..values {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind).map_err(|why| format!("\"{key}\": {why}"))?;
        header.values.insert(key, value);
    }
    let mut listed = Vec::new();
    for _ in 0..tensors {
        listed.push(listed_tensor(&mut cursor)?);
    }
    let alignment = match header.values.get("general.alignment") {
        None => 32,
        Some(Value::Integer(n)) if (1..1 << 20).contains(n) => *n as usize,
        Some(other) => return Err(format!("\"general.alignment\": {other:?} is out of range")),
    };
    let data = cursor.at.next_multiple_of(alignment);
    for tensor in listed {
        let name = tensor.name.clone();
        let entry = tensor.entry(data, bytes.len())?;
        if header.tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("the tensor \"{name}\" is there twice"));
        }
    }
    Ok(header)
}

fn listed_tensor(cursor: &mut Cursor<'_>) -> Result<Listed, String> {
    let name = cursor.text()?;
    let dimensions = cursor.u32()?;
    if dimensions > 4 {
        return Err(format!("the tensor \"{name}\" has {dimensions} dimensions; GGUF has 4 at most"));
    }
    let mut shape = (0..dimensions).map(|_| cursor.size()).collect::<Result<Vec<_>, _>>()?;
    // GGUF counts from the innermost dimension.
    shape.reverse();
    Ok(Listed { name, shape, kind: cursor.u32()?, offset: cursor.size()? })
}

impl Listed {
    /// The tensor's place in a file of `len` bytes whose data begins at `data`.
    fn entry(self, data: usize, len: usize) -> Result<Entry, String> {
        let Self { name, shape, kind, offset } = self;
        let (kind_name, encoding) = type_of(kind);
        let Some(encoding) = encoding else {
            return Ok(Entry { file: 0, kind: Kind::Other(kind_name), shape, bytes: 0..0 });
        };
        let numbers = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let whole_rows = shape.last().is_none_or(|row| row.is_multiple_of(encoding.block()));
        let size = numbers.filter(|_| whole_rows).and_then(|numbers| encoding.bytes(numbers));
        let Some(size) = size else {
            return Err(format!("the tensor \"{name}\" of shape {shape:?} cannot be stored as {kind_name}"));
        };
        let start = data.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(size));
        match (start, end) {
            (Some(start), Some(end)) if end <= len => {
                Ok(Entry { file: 0, kind: Kind::Numbers(encoding), shape, bytes: start..end })
            }
            _ => Err(format!(
                "the tensor \"{name}\" lies beyond the file's {len} bytes: the file is cut off or damaged; download it again"
            )),
        }
    }
}

/// A type of ggml by its number (`enum ggml_type` in `ggml.h`).
fn type_of(number: u32) -> (String, Option<Encoding>) {
    let encoding = match number {
        0 => Encoding::F32,
        1 => Encoding::F16,
        2 => Encoding::Q4_0,
        3 => Encoding::Q4_1,
        8 => Encoding::Q8_0,
        12 => Encoding::Q4K,
        14 => Encoding::Q6K,
        30 => Encoding::Bf16,
        other => {
            let name = match other {
                6 => "Q5_0",
                7 => "Q5_1",
                9 => "Q8_1",
                10 => "Q2_K",
                11 => "Q3_K",
                13 => "Q5_K",
                15 => "Q8_K",
                16 => "IQ2_XXS",
                17 => "IQ2_XS",
                18 => "IQ3_XXS",
                19 => "IQ1_S",
                20 => "IQ4_NL",
                21 => "IQ3_S",
                22 => "IQ2_S",
                23 => "IQ4_XS",
                24 => "I8",
                25 => "I16",
                26 => "I32",
                27 => "I64",
                28 => "F64",
                29 => "IQ1_M",
                34 => "TQ1_0",
                35 => "TQ2_0",
                39 => "MXFP4",
                _ => return (format!("of ggml's type {other}, which"), None),
            };
            return (name.to_owned(), None);
        }
    };
    (encoding.name().to_uppercase(), Some(encoding))
}
