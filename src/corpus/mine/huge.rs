//! Large arrays that are read and written all over the place.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::corpus::Error;

/// An array of zeros in huge pages, where the system has them: with small ones, most reads would have to look up their
/// page's address in memory first.
pub(super) struct Huge<T> {
    map: MmapMut,
    kind: PhantomData<T>,
}

impl<T: Pod> Huge<T> {
    pub(super) fn new(len: usize) -> Result<Self, Error> {
        let bytes = len * size_of::<T>();
        let no_memory = |error| Error::Option(format!("cannot have {bytes} bytes of memory: {error}"));
        // A map of nothing is refused.
        let map = MmapMut::map_anon(bytes.max(size_of::<T>())).map_err(no_memory)?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!("no huge pages: {error}");
        }
        Ok(Self { map, kind: PhantomData })
    }
}

impl<T: Pod> Deref for Huge<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map)
    }
}

impl<T: Pod> DerefMut for Huge<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}
