//! A server on a port of its own, over a tiny model whose logits anyone can compute.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a program of its own and uses a part of this"
)]

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use scone::engine::{Config, Engine, EngineHandle, Forward, ForwardError, Piece, Sampler, Sampling};
use scone::model::{NO_TOKEN, Pass, TokenizerInfo};
use scone::server::{self, App, Chat, Guard, ModelCard, Observe};
use scone::tokenizer::{Tokenizer, train_bpe};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

/// Three more than the tokenizer has.
pub const VOCAB: usize = 303;
pub const CONTEXT: usize = 256;
pub const MODEL: &str = "tiny";

/// The model panics when it reads this token, fails when it reads the next, and gives no numbers after the third. It never
/// generates them.
pub const PANIC: u32 = 300;
pub const FAIL: u32 = 301;
pub const NAN: u32 = 302;

/// The logits after a text, which depend on its last three tokens only.
pub fn logits(tokens: &[u32]) -> Vec<f32> {
    let last = &tokens[tokens.len().saturating_sub(3)..];
    let seed = last.iter().fold(17u64, |hash, &token| mix(hash ^ u64::from(token)));
    let logit = |id: u64| (mix(seed ^ (id << 32)) >> 40) as f32 / (1 << 24) as f32 * 9.0;
    (0..VOCAB as u32).map(|id| if id < PANIC { logit(u64::from(id)) } else { -40.0 }).collect()
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

/// Log-probabilities from logits, as the definition has it.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - sum.ln()).collect()
}

/// What greedy decoding gives, up to and with the first end of text.
pub fn greedy(prompt: &[u32], max_tokens: usize, eos: Option<u32>) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..max_tokens {
        let row = logits(&tokens);
        let best = (0..VOCAB).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
        tokens.push(best);
        if Some(best) == eos {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

/// Positions of a block of [`HashModel`].
pub const BLOCK: usize = 4;

/// A model made of [`logits`]. Its blocks keep of each position what the model read there, and it computes from them and from
/// nothing else; it fails where they do not hold what they should. A wrong, stale or wrongly shared block cannot go unseen.
pub struct HashModel {
    cells: Vec<Option<Cell>>,
    sequences: usize,
    epoch: Arc<AtomicU64>,
    step: Duration,
    panics_after: usize,
    /// What the next pass is said to read: the tokens of a sequence, and from where on they are new.
    ahead: Vec<(Vec<u32>, usize)>,
    foreseen: Arc<AtomicU64>,
    told: Arc<AtomicU64>,
}

/// What stands for keys and values: they depend on the token, on all before it, and on the table that was read.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Cell {
    token: u32,
    prefix: u64,
}

impl HashModel {
    /// With room for so many sequences of the whole context.
    pub fn new(sequences: usize) -> Self {
        Self { sequences, ..Self::with_blocks(sequences * CONTEXT.div_ceil(BLOCK)) }
    }

    /// With so many blocks.
    pub fn with_blocks(blocks: usize) -> Self {
        Self {
            cells: vec![None; blocks * BLOCK],
            sequences: blocks,
            epoch: Arc::default(),
            step: Duration::ZERO,
            panics_after: usize::MAX,
            ahead: Vec::new(),
            foreseen: Arc::default(),
            told: Arc::default(),
        }
    }

    /// Each pass takes at least so long.
    pub fn slow(sequences: usize, step: Duration) -> Self {
        Self::new(sequences).paced(step)
    }

    /// Each pass takes at least so long.
    pub fn paced(self, step: Duration) -> Self {
        Self { step, ..self }
    }

    /// Panics at a sequence of more than so many tokens.
    pub fn panics_after(sequences: usize, tokens: usize) -> Self {
        Self { panics_after: tokens, ..Self::new(sequences) }
    }

    /// Setting it to another number makes what the blocks hold worthless, as another table does.
    pub fn epoch(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.epoch)
    }

    /// Counts the tokens of which the pass before theirs was told, and those that passes were told of.
    pub fn foreseen(&self) -> [Arc<AtomicU64>; 2] {
        [Arc::clone(&self.foreseen), Arc::clone(&self.told)]
    }

    /// How many sequences of the whole context there is room for.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    fn expect(&mut self, pass: &Pass<'_>) {
        for piece in pass.pieces {
            let is_foreseen = |end: &usize| {
                let mut ahead = self.ahead.iter();
                ahead.any(|(all, past)| *end > *past && all.get(..*end) == Some(&piece.tokens[..*end]))
            };
            let count = (piece.past + 1..=piece.tokens.len()).filter(is_foreseen).count();
            self.foreseen.fetch_add(count as u64, Ordering::Relaxed);
        }
        assert!(pass.ahead.iter().all(|piece| piece.new_tokens() > 0), "{:?}", pass.ahead);
        let told: usize = pass.ahead.iter().map(Piece::new_tokens).sum();
        self.told.fetch_add(told as u64, Ordering::Relaxed);
        self.ahead = pass.ahead.iter().map(|piece| (piece.tokens.to_vec(), piece.past)).collect();
    }

    fn write(&mut self, piece: &Piece<'_>) -> Result<(), ForwardError> {
        let at = |position: usize| piece.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
        let mut prefix = 0;
        for (position, &token) in piece.tokens.iter().enumerate() {
            prefix = mix(prefix ^ (u64::from(token) << 1 | 1));
            let cell = Some(Cell { token, prefix });
            if position >= piece.past {
                self.cells[at(position)] = cell;
            } else if self.cells[at(position)] != cell {
                return Err(format!(
                    "position {position} holds {:?}, not {cell:?}",
                    self.cells[at(position)]
                )
                .into());
            }
        }
        Ok(())
    }

    /// The tokens before `end` as the blocks hold them.
    fn read(&self, piece: &Piece<'_>, end: usize) -> Vec<u32> {
        let cell =
            |position: usize| self.cells[piece.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK];
        (0..end).map(|position| cell(position).unwrap().token).collect()
    }
}

/// Fails where a block that one piece writes to is in another.
fn check_blocks(batch: &[Piece<'_>]) -> Result<(), ForwardError> {
    for (i, piece) in batch.iter().enumerate() {
        for block in &piece.blocks[piece.past / BLOCK..piece.tokens.len().div_ceil(BLOCK)] {
            let others = batch.iter().enumerate().filter(|(other, _)| *other != i);
            if others.flat_map(|(_, piece)| piece.blocks).any(|other| other == block) {
                return Err(format!("block {block} is written to and read by another").into());
            }
        }
    }
    Ok(())
}

impl Forward for HashModel {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context(&self) -> usize {
        CONTEXT
    }

    fn block_tokens(&self) -> usize {
        BLOCK
    }

    fn blocks(&self) -> usize {
        self.cells.len() / BLOCK
    }

    fn forward(&mut self, batch: &[Piece<'_>], rows: &mut Vec<f32>) -> Result<(), ForwardError> {
        std::thread::sleep(self.step);
        rows.clear();
        check_blocks(batch)?;
        for piece in batch {
            assert!(piece.past < piece.tokens.len() && piece.wanted <= piece.new_tokens(), "{piece:?}");
            self.write(piece)?;
            let is_fine = piece.tokens.len() <= self.panics_after && !piece.tokens.contains(&PANIC);
            assert!(is_fine, "this is not for me");
            if piece.tokens[piece.past..].contains(&FAIL) {
                return Err("this token cannot be computed".into());
            }
            let end = piece.tokens.len();
            for end in end - piece.wanted + 1..=end {
                let read = self.read(piece, end);
                let row = logits(&read);
                rows.extend(row.iter().map(|&x| if read.contains(&NAN) { f32::NAN } else { x }));
            }
        }
        Ok(())
    }

    /// Unless it has a multiple of three blocks: so both ways are tried.
    fn chooses(&self) -> bool {
        !self.blocks().is_multiple_of(3)
    }

    fn forward_choosing(
        &mut self,
        pass: &Pass<'_>,
        rows: &mut Vec<f32>,
        chosen: &mut Vec<u32>,
    ) -> Result<(), ForwardError> {
        let Pass { pieces: batch, draws, .. } = *pass;
        self.expect(pass);
        let mut all = Vec::new();
        self.forward(batch, &mut all)?;
        rows.clear();
        chosen.clear();
        let mut sampler = Sampler::new(Sampling::GREEDY, &[]);
        let mut left = all.chunks_exact(VOCAB);
        for (piece, draws) in batch.iter().zip(draws) {
            assert!(draws.as_ref().is_none_or(|draws| draws.len() == piece.wanted));
            for (i, row) in left.by_ref().take(piece.wanted).enumerate() {
                match draws {
                    None => rows.extend_from_slice(row),
                    Some(draws) => chosen.push(sampler.pick(row, draws[i]).unwrap_or(NO_TOKEN)),
                }
            }
        }
        Ok(())
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }
}

/// A byte-level tokenizer with a few merges; token 0 is the end of text.
pub fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        train_bpe((0..50).map(|i| format!("the naïve café {i} 日本語 the theme of the thing, once upon a time there was a king who had no bread")), 300, &path).unwrap();
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        assert_eq!(tokenizer.eos(), Some(0));
        Arc::new(tokenizer)
    });
    Arc::clone(&TOKENIZER)
}

pub struct Server {
    pub url: String,
    pub client: Client,
    pub engine: EngineHandle,
    owner: Option<Engine>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

pub async fn start(slots: usize) -> Server {
    start_with(HashModel::new(slots), 256).await
}

pub async fn start_with(model: HashModel, max_queue: usize) -> Server {
    start_guarded(model, Config { max_queue, ..Config::default() }, Guard::default()).await
}

/// A server whose model says this of its tokenizer.
pub async fn start_as(model: HashModel, max_queue: usize, info: TokenizerInfo) -> Server {
    start_whole(model, Config { max_queue, ..Config::default() }, Guard::default(), info).await
}

/// A server that lets in and stops as `guard` says, with what of `config` is not the model's.
pub async fn start_guarded(model: HashModel, config: Config, guard: Guard) -> Server {
    start_whole(model, config, guard, TokenizerInfo::default()).await
}

async fn start_whole(model: HashModel, config: Config, guard: Guard, info: TokenizerInfo) -> Server {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config { max_sequences: model.sequences(), max_batch_tokens: 24, ..config };
    let owner = Engine::start(Box::new(model), config).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if guard.is_encrypted() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let app = App {
        engine: owner.handle(),
        tokenizer: tokenizer(),
        chat: Chat::new(info),
        card: ModelCard { id: MODEL.into(), created: 1 },
        table: None,
        stop_tokens: vec![0],
        observe: Observe::new(),
        guard: Arc::new(guard),
    };
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(server::run(listener, app, async move {
        let _ = stopped.await;
    }));
    Server { url, client: Client::new(), engine: owner.handle(), owner: Some(owner), stop, task }
}

impl Server {
    pub async fn post(&self, body: &Value) -> (StatusCode, Value) {
        let response = self.send(body).await;
        (response.status(), response.json().await.unwrap())
    }

    pub async fn send(&self, body: &Value) -> reqwest::Response {
        self.client.post(format!("{}/v1/completions", self.url)).json(body).send().await.unwrap()
    }

    /// The answer to a request that must succeed.
    pub async fn complete(&self, body: &Value) -> Value {
        let (status, answer) = self.post(body).await;
        assert_eq!(status, StatusCode::OK, "{body} {answer}");
        answer
    }

    /// The text of the first choice.
    pub async fn text(&self, body: &Value) -> String {
        self.complete(body).await["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// The chunks of a streamed answer, which must be whole.
    pub async fn stream(&self, body: &Value) -> Vec<Value> {
        let (chunks, is_done) = self.stream_any(body).await;
        assert!(is_done, "the stream of {body} ended without [DONE]");
        chunks
    }

    /// The chunks of a streamed answer, and whether `[DONE]` came last.
    pub async fn stream_any(&self, body: &Value) -> (Vec<Value>, bool) {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = self.send(&body).await;
        let status = response.status();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let text = response.text().await.unwrap();
        assert!(status.is_success() && kind.starts_with("text/event-stream"), "{status} {text}");
        let mut lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let is_done = lines.pop_if(|line| *line == "[DONE]").is_some();
        (lines.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect(), is_done)
    }

    /// Stops the engine but not the server.
    pub fn stop_engine(&mut self) {
        self.owner = None;
    }

    /// Asks the server to stop, and waits until it has.
    pub fn stop(self) -> impl Future<Output = Result<(), JoinError>> {
        let Self { stop, task, owner, .. } = self;
        stop.send(()).unwrap();
        async move {
            let result = task.await;
            drop(owner);
            result
        }
    }

    /// Waits until the engine runs and queues so many sequences.
    pub async fn wait_for(&self, running: usize, waiting: usize) {
        let start = Instant::now();
        while (self.engine.running(), self.engine.waiting()) != (running, waiting) {
            let now = (self.engine.running(), self.engine.waiting());
            assert!(start.elapsed() < Duration::from_secs(5), "{now:?} instead of {:?}", (running, waiting));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
