use std::sync::Arc;

use tokio::sync::watch;

/// The requests that are answered at a time.
#[derive(Debug)]
pub(super) struct Places {
    taken: Arc<watch::Sender<usize>>,
    most: usize,
}

/// A request's place, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    taken: Arc<watch::Sender<usize>>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { taken: Arc::new(watch::Sender::new(0)), most }
    }

    /// A place, if there is one.
    pub(super) fn take(&self) -> Option<Place> {
        let mut is_free = false;
        self.taken.send_if_modified(|taken| {
            is_free = *taken < self.most;
            *taken += usize::from(is_free);
            is_free
        });
        is_free.then(|| Place { taken: Arc::clone(&self.taken) })
    }

    /// How many there are.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Waits until no place is taken.
    pub(super) async fn all_free(&self) {
        // It fails only if the sender is gone, which this borrows.
        let _ = self.taken.subscribe().wait_for(|taken| *taken == 0).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.send_modify(|taken| *taken -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn as_many_as_there_are() {
        let places = Places::new(2);
        let (first, second) = (places.take().unwrap(), places.take());
        assert!(second.is_some() && places.take().is_none());
        drop(first);
        let third = places.take();
        assert!(third.is_some() && places.take().is_none());
        drop((second, third));
        places.all_free().await;
    }
}
