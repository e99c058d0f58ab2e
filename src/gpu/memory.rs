use std::marker::PhantomData;

use super::GpuError;

/// What a piece of memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    F32,
    Bf16,
    F16,
    U32,
    U8,
}

impl Type {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

/// Owns a piece of a GPU's memory; dropped, it is given back when all that was asked for before is done.
pub(crate) trait Memory: Send + Sync {
    /// Where it is.
    fn address(&self) -> u64;
}

/// Memory of the host that a GPU reads by itself: exactly as much as was asked for, locked where it is.
pub(crate) trait Locked: Send + Sync {
    fn bytes(&mut self) -> &mut [u8];

    /// Where a GPU finds it.
    fn address(&self) -> u64;
}

/// Where what goes to a GPU is put together.
pub(crate) type Staging = Box<dyn Locked>;

/// A piece of a GPU's memory.
pub(crate) struct Buffer {
    memory: Box<dyn Memory>,
    bytes: usize,
}

impl Buffer {
    /// Takes over `memory` of so many bytes.
    pub(crate) fn new(memory: Box<dyn Memory>, bytes: usize) -> Self {
        Self { memory, bytes }
    }

    /// Takes over memory of the host, which a GPU reads over the bus from now on and nobody writes.
    pub(crate) fn of_host(mut memory: Staging) -> Self {
        let bytes = memory.bytes().len();
        Self { memory: Box::new(Host(memory)), bytes }
    }

    /// All of it, as elements of a type.
    pub(crate) fn of(&self, kind: Type) -> Slice<'_> {
        Slice { at: self.memory.address(), len: self.bytes / kind.bytes(), kind, memory: PhantomData }
    }
}

struct Host(Staging);

impl Memory for Host {
    fn address(&self) -> u64 {
        self.0.address()
    }
}

/// Elements in a GPU's memory. It is no Rust memory: who holds a slice can neither read nor write there but by asking the
/// GPU, which does one thing after the other; so slices may overlap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice<'a> {
    at: u64,
    len: usize,
    kind: Type,
    memory: PhantomData<&'a ()>,
}

impl<'a> Slice<'a> {
    /// # Safety
    /// There must be so many elements at `at` as long as the slice lives.
    pub(crate) unsafe fn new(at: u64, len: usize, kind: Type) -> Self {
        Self { at, len, kind, memory: PhantomData }
    }

    /// What stands for an operand that is left out.
    pub(crate) fn none(kind: Type) -> Self {
        Self { at: 0, len: 0, kind, memory: PhantomData }
    }

    pub(crate) fn is_none(self) -> bool {
        self.at == 0
    }

    pub(crate) fn at(self) -> u64 {
        self.at
    }

    /// How many elements.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    pub(crate) fn bytes(self) -> usize {
        self.len * self.kind.bytes()
    }

    pub(crate) fn kind(self) -> Type {
        self.kind
    }

    /// `len` elements of it.
    ///
    /// # Errors
    /// Where it has not so many.
    pub(crate) fn part(self, from: usize, len: usize) -> Result<Slice<'a>, GpuError> {
        if from.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(GpuError::operands("a part", format!("{from} and {len} more of {}", self.len)));
        }
        Ok(Self { at: self.at + (from * self.kind.bytes()) as u64, len, ..self })
    }
}

/// How many bytes there are to be in place of `there` where `bytes` are needed: exactly so many, or twice what there was if that is
/// more, so that what grows again and again is not exchanged each time.
pub(crate) fn grown(there: usize, bytes: usize) -> usize {
    match there < bytes {
        true => bytes.max((2 * there).min(bytes + (64 << 20))),
        false => there,
    }
}
