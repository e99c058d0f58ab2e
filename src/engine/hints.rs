use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use super::{Prefetch, Request};

/// Prompts that may wait to be looked at. Beyond them hints are dropped: they come too late to be of use.
const WAITING: usize = 256;

/// Where the prompts of requests go while they wait for their turn: to a thread that lets the model prepare for them.
#[derive(Clone, Debug)]
pub(super) struct Hints {
    prompts: SyncSender<Vec<u32>>,
}

impl Hints {
    /// Starts the thread. It ends when the last handle is gone.
    pub(super) fn start(prefetch: Prefetch) -> std::io::Result<Self> {
        let (prompts, waiting) = sync_channel::<Vec<u32>>(WAITING);
        thread::Builder::new().name("prefetch".into()).spawn(move || {
            for prompt in waiting {
                prefetch(&prompt);
            }
        })?;
        Ok(Self { prompts })
    }

    /// The prompts of `requests`, those of several samples once.
    pub(super) fn prompts(requests: &[Request]) -> Vec<Vec<u32>> {
        requests.chunk_by(|a, b| a.prompt == b.prompt).map(|samples| samples[0].prompt.clone()).collect()
    }

    pub(super) fn give(&self, prompts: Vec<Vec<u32>>) {
        for prompt in prompts {
            let _ = self.prompts.try_send(prompt);
        }
    }
}
