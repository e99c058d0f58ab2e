use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::BenchError;

/// What a server prints before its address, on a line of its own on standard output.
const ANNOUNCEMENT: &str = "listening on ";

/// Lines of a server's standard error that are kept.
const KEPT_LINES: usize = 30;

/// How long a server may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// A server that runs for as long as the measurement. Dropped without [`Server::stop`] it is killed.
#[derive(Debug)]
pub struct Server {
    name: String,
    url: String,
    child: Child,
    stderr: Stderr,
}

impl Server {
    /// Starts a server and waits until it has said where it listens and is healthy.
    ///
    /// # Errors
    /// Where it cannot be started, ends, or is not ready in time, with what it wrote to standard error.
    pub async fn start(name: &str, command: Command, patience: Duration) -> Result<Self, BenchError> {
        let (mut child, stdout, mut stderr) = launch(name, command)?;
        let ready = async {
            let url = announced(stdout).await.ok_or("it did not say where it listens")?;
            wait_until_healthy(&url).await.map(|()| url)
        };
        let outcome = tokio::select! {
            outcome = timeout(patience, ready) => {
                outcome.unwrap_or_else(|_| Err(format!("it was not ready after {patience:?}")))
            }
            status = child.wait() => {
                let status = status.map_err(|error| start_error(name, &error))?;
                return Err(stderr.died(name, status).await);
            }
        };
        match outcome {
            Ok(url) => Ok(Self { name: name.to_owned(), url, child, stderr }),
            Err(why) => {
                // Its output may end a moment before itself does, and how it ended says more.
                if let Ok(Ok(status)) = timeout(Duration::from_secs(1), child.wait()).await {
                    return Err(stderr.died(name, status).await);
                }
                Err(BenchError::Start { name: name.to_owned(), why, stderr: stderr.kept() })
            }
        }
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Makes sure that it still runs.
    ///
    /// # Errors
    /// Where it does not, with what it wrote to standard error.
    pub async fn check(&mut self) -> Result<(), BenchError> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(self.stderr.died(&self.name, status).await),
            Ok(None) => Ok(()),
            Err(error) => Err(start_error(&self.name, &error)),
        }
    }

    /// Ends it: SIGTERM, and SIGKILL if that is not enough.
    pub async fn stop(mut self) {
        terminate(&self.child);
        if timeout(GRACE, self.child.wait()).await.is_err() {
            // The only failure is that it has ended in the meantime.
            let _ = self.child.kill().await;
        }
    }
}

fn launch(name: &str, mut command: Command) -> Result<(Child, ChildStdout, Stderr), BenchError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| start_error(name, &error))?;
    let pipes = child.stdout.take().zip(child.stderr.take());
    let (stdout, stderr) = pipes.ok_or_else(|| start_error(name, &"it has no standard output"))?;
    Ok((child, stdout, Stderr::keep(stderr)))
}

fn start_error(name: &str, why: &dyn std::fmt::Display) -> BenchError {
    BenchError::Start { name: name.to_owned(), why: why.to_string(), stderr: String::new() }
}

/// The address that the server prints. The rest of its output is read and dropped, so that it never blocks.
async fn announced(stdout: ChildStdout) -> Option<String> {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(url) = line.trim().strip_prefix(ANNOUNCEMENT) {
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Some(url.trim_end_matches('/').to_owned());
        }
    }
    None
}

async fn wait_until_healthy(url: &str) -> Result<(), String> {
    let http = super::client::http_client(url)?;
    loop {
        let answer = http.get(format!("{url}/health")).timeout(Duration::from_secs(5)).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn terminate(child: &Child) {
    // Without an id it has ended and been waited for.
    if let Some(id) = child.id().and_then(|id| libc::pid_t::try_from(id).ok()) {
        // SAFETY: kill takes no pointers; the process is a child not waited for yet, so its id is not reused.
        unsafe {
            libc::kill(id, libc::SIGTERM);
        }
    }
}

/// The last lines of a server's standard error, read all the time so that it never blocks.
#[derive(Debug)]
struct Stderr {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

impl Stderr {
    fn keep(pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&lines);
        let reader = tokio::spawn(async move {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == KEPT_LINES {
                    kept.pop_front();
                }
                kept.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
        });
        Self { lines, reader }
    }

    fn kept(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// The error of a server that has ended, after what it wrote last has been read.
    async fn died(&mut self, name: &str, status: ExitStatus) -> BenchError {
        // Not for ever: a grandchild may hold the pipe open.
        let _ = timeout(Duration::from_millis(500), &mut self.reader).await;
        BenchError::Died { name: name.to_owned(), status, stderr: self.kept() }
    }
}
