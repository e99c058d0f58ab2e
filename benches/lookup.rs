//! Longest matches of a token stream, on one thread, against other indexes over the same keys.
//!
//! `cargo bench --bench lookup -- --fgrams FGRAMS.parquet --dataset DATASET`. Everything is warm. The rounds take turns, and
//! medians are printed with their ratio to ours. The bound is the machine's rate of independent random reads of cache
//! lines: a match costs two or three searches, and a search one line of slots and, if it hits, one of keys, as far as
//! these are not in a cache.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use scone::corpus::Dataset;
use scone::fgram::{FgramSet, Index, Key, parquet};
use scone::table::{RowFormat, RowType, plan};

#[derive(Debug, Parser)]
struct Args {
    /// The f-gram set
    #[arg(long)]
    fgrams: PathBuf,
    /// The dataset whose tokens are matched
    #[arg(long)]
    dataset: PathBuf,
    /// Tokens matched in one round, from the middle of the first shard
    #[arg(long, default_value_t = 2_000_000)]
    tokens: usize,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// An index that finds ranks by keys, one at a time.
trait Find {
    fn find(&self, key: Key) -> Option<u32>;
}

type Database = heed::Database<heed::types::Bytes, heed::types::Bytes>;

struct Lmdb<'a> {
    database: Database,
    transaction: heed::RoTxn<'a, heed::WithTls>,
}

impl Find for Lmdb<'_> {
    fn find(&self, key: Key) -> Option<u32> {
        let found = self.database.get(&self.transaction, bytemuck::bytes_of(&key)).expect("LMDB reads")?;
        Some(u32::from_le_bytes(found.try_into().expect("four bytes")))
    }
}

impl Find for hashbrown::HashMap<Key, u32> {
    fn find(&self, key: Key) -> Option<u32> {
        self.get(&key).copied()
    }
}

impl Find for Index<'_> {
    fn find(&self, key: Key) -> Option<u32> {
        Index::find(self, key)
    }
}

/// The sum of all matches' lengths and ranks, by growing each until the first miss.
fn one_by_one(index: &impl Find, tokens: &[u32], max_n: usize) -> u64 {
    let mut sum = 0;
    for end in 2..=tokens.len() {
        let tokens = &tokens[end.saturating_sub(max_n)..end];
        let (last, mut before) = (tokens[tokens.len() - 1], tokens[..tokens.len() - 1].iter().rev());
        let mut found = before.next().and_then(|&token| index.find(Key::of_bigram(token, last)));
        let mut n = 2;
        while let Some(rank) = found {
            let longer = before.next().and_then(|&token| index.find(Key::of_longer(token, rank)));
            if longer.is_none() {
                sum += u64::from(rank) + n;
            }
            n += 1;
            found = longer;
        }
    }
    sum
}

fn batched(index: Index<'_>, tokens: &[u32]) -> u64 {
    let matches = tokens.chunks(1 << 15).enumerate().flat_map(|(i, _)| {
        let (start, end) = (i << 15, tokens.len().min((i + 1) << 15));
        let context = start.min(index.max_n() - 1);
        index.matches(&tokens[start - context..end], context)
    });
    matches.flatten().map(|found| u64::from(found.rank) + u64::from(found.n)).sum()
}

/// Independent reads of random cache lines, a second, of an array as large as keys and slots.
fn random_reads(bytes: usize) -> f64 {
    let lines = vec![[1_u64; 8]; bytes / 64];
    let mut random = 1_u64;
    let start = Instant::now();
    let reads = 20_000_000;
    let mut sum = 0;
    for _ in 0..reads {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        sum += lines[((u128::from(random) * lines.len() as u128) >> 64) as usize][0];
    }
    black_box(sum);
    f64::from(reads) / start.elapsed().as_secs_f64()
}

fn lmdb(set: &FgramSet, directory: &std::path::Path) -> (heed::Env, Database) {
    // SAFETY: the directory is new and nobody else opens it.
    let environment =
        unsafe { heed::EnvOpenOptions::new().map_size(64 << 30).open(directory) }.expect("LMDB opens");
    let mut transaction = environment.write_txn().expect("a transaction");
    let database: Database = environment.create_database(&mut transaction, None).expect("a database");
    let mut order: Vec<u32> = (0..set.len() as u32).collect();
    let keys = set.index().keys();
    order.sort_unstable_by_key(|&rank| bytemuck::cast::<Key, [u8; 8]>(keys[rank as usize]));
    for rank in order {
        let key = bytemuck::bytes_of(&keys[rank as usize]);
        let flags = heed::PutFlags::APPEND;
        database.put_with_flags(&mut transaction, flags, key, &rank.to_le_bytes()).expect("a put");
    }
    transaction.commit().expect("a commit");
    (environment, database)
}

/// Bytes a row of `bytes` bytes takes beside its key in LMDB, and in a table, index included.
fn bytes_with_rows(set: &FgramSet, bytes: usize) -> (f64, f64) {
    let rows = set.len().min(100_000);
    let directory = tempfile::tempdir().expect("a temporary directory");
    // SAFETY: the directory is new and nobody else opens it.
    let environment =
        unsafe { heed::EnvOpenOptions::new().map_size(64 << 30).open(directory.path()) }.expect("LMDB opens");
    let mut transaction = environment.write_txn().expect("a transaction");
    let database: Database = environment.create_database(&mut transaction, None).expect("a database");
    let mut keys: Vec<[u8; 8]> = set.index().keys()[..rows].iter().map(|&key| bytemuck::cast(key)).collect();
    keys.sort_unstable();
    let row = vec![7; bytes];
    for key in keys {
        database.put_with_flags(&mut transaction, heed::PutFlags::APPEND, &key, &row).expect("a put");
    }
    transaction.commit().expect("a commit");
    let lmdb = environment.real_disk_size().expect("LMDB's size") as f64 / rows as f64;
    let table = plan(rows, RowFormat::packed(RowType::Int8, bytes)).expect("a table").disk;
    (lmdb, table as f64 / rows as f64)
}

fn main() {
    let args = Args::parse();
    let dataset = Dataset::open(&args.dataset).expect("a dataset");
    let shard = &dataset.train().shards[0];
    let middle = shard.len() / 2;
    let mut tokens = Vec::new();
    shard.read(middle..shard.len().min(middle + args.tokens), &mut tokens).expect("the shard's tokens");
    let set = parquet::read(&args.fgrams).expect("an f-gram set");
    let (index, n) = (set.index(), set.len());
    println!("{n} f-grams, {} tokens of {}", tokens.len(), shard.path().display());

    let map: hashbrown::HashMap<Key, u32> = index.keys().iter().copied().zip(0..).collect();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (environment, database) = lmdb(&set, directory.path());
    let lmdb = Lmdb { database, transaction: environment.read_txn().expect("a transaction") };
    let lmdb_bytes = environment.real_disk_size().expect("LMDB's size");

    let size = index.keys().len() * 8 + index.buckets().len() * 64;
    println!(
        "bytes a key: ours {:.2}, hashbrown {:.2}, LMDB {:.2}",
        size as f64 / n as f64,
        (map.capacity() as f64 * 8.0 / 7.0).log2().ceil().exp2() * 13.0 / n as f64,
        lmdb_bytes as f64 / n as f64
    );

    for bytes in [128, 1024, 4096] {
        let (lmdb, table) = bytes_with_rows(&set, bytes);
        println!("bytes a row of {bytes} with key and index: LMDB {lmdb:.0}, table {table:.0}");
    }

    let peers: [(&str, &dyn Fn() -> u64); 4] = [
        ("batch", &|| batched(index, &tokens)),
        ("one by one", &|| one_by_one(&index, &tokens, index.max_n())),
        ("hashbrown", &|| one_by_one(&map, &tokens, index.max_n())),
        ("LMDB", &|| one_by_one(&lmdb, &tokens, index.max_n())),
    ];
    let expected = one_by_one(&index, &tokens, index.max_n());
    let mut seconds = vec![Vec::new(); peers.len()];
    let mut reads = Vec::new();
    for _ in 0..args.rounds {
        reads.push(random_reads(size));
        for ((name, run), seconds) in peers.iter().zip(&mut seconds) {
            let start = Instant::now();
            assert_eq!(black_box(run()), expected, "{name} matches something else");
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!("random reads of a line: {:.1} M/s", median(&mut reads) / 1e6);
    let ours = median(&mut seconds[0]);
    for ((name, _), seconds) in peers.iter().zip(&mut seconds) {
        let time = median(seconds);
        println!(
            "{name:<11} {:>8.2} M tokens/s   1/{:.1} of ours",
            tokens.len() as f64 / time / 1e6,
            time / ours
        );
    }
}
