//! Rows from where they live: cold from the disk against page faults and fio, warm against a plain copy.
//!
//! `cargo bench --bench rows -- [--file FILE] [--gigabytes 2] [--batch 64] [--batches 200] [--repeats 5]`
//!
//! The table has rows of 4096 bytes. It is written to FILE (default: in the temporary directory, and removed) unless it
//! is there. Before each cold run the page cache is dropped, of this file, and as root of all. The ways are run in turn,
//! so that what the machine does meanwhile falls on all of them; figures are medians over the repeats. fio is compared if
//! it is installed. What the disk itself caches is not in our hands: say what disk it was.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rayon::prelude::*;
use scone::fgram::{FgramSet, Policy};
use scone::table::{Contents, DirectReads, Identity, Placement, RowFormat, RowType, Table, TableWriter};

const DIM: usize = 1024;
const ROW: usize = DIM * 4;

struct Options {
    file: Option<PathBuf>,
    gigabytes: f64,
    batch: usize,
    batches: usize,
    repeats: usize,
}

fn main() {
    let options = options();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = options.file.clone().unwrap_or_else(|| directory.path().join("rows.safetensors"));
    if !path.exists() {
        let start = Instant::now();
        write(&path, (options.gigabytes * 1e9) as usize / ROW);
        println!("written in {:.1} s", start.elapsed().as_secs_f64());
    }
    let rows = Table::open(&path).expect("a table").len();
    println!("{rows} rows of {ROW} bytes; batches of {}, medians of {}", options.batch, options.repeats);
    first_lookup(&path, rows, &options);
    cold(&path, rows, &options);
    warm(&path, rows, &options);
}

fn options() -> Options {
    let mut options = Options { file: None, gigabytes: 2.0, batch: 64, batches: 200, repeats: 5 };
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(flag) = arguments.next() {
        let value = arguments.next().unwrap_or_else(|| panic!("{flag} takes a value"));
        let number = || value.parse().unwrap_or_else(|_| panic!("{flag} takes a number"));
        match flag.as_str() {
            "--file" => options.file = Some(value.into()),
            "--gigabytes" => options.gigabytes = value.parse().expect("--gigabytes takes a number"),
            "--batch" => options.batch = number(),
            "--batches" => options.batches = number(),
            "--repeats" => options.repeats = number(),
            _ => panic!("{flag} is not a flag of this benchmark"),
        }
    }
    options
}

/// A table of `rows` bigrams, which are a closed set by themselves, all of one count.
fn write(path: &Path, rows: usize) {
    let policy = Policy { max_n: 2, special_tokens: vec![0], tokenizer_sha256: "0".repeat(64) };
    let bigrams: Vec<[u32; 2]> = (0..rows as u32).map(|i| [1 + i / 4096, 1 + i % 4096]).collect();
    let set = FgramSet::from_ranked(policy, bigrams.iter().map(|gram| (gram.as_slice(), 5))).expect("a set");
    let hash = || "0".repeat(64);
    let identity =
        Identity { tokenizer: hash(), token_embedding: hash(), fgram_model: hash(), fgrams: set.sha256() };
    let mut writer =
        TableWriter::open(path, RowFormat::packed(RowType::F32, DIM), Contents::of_set(&set), &identity)
            .expect("a new table");
    let mut numbers = vec![0.0_f32; DIM * 4096];
    for first in (0..rows).step_by(4096) {
        let some = &mut numbers[..DIM * 4096.min(rows - first)];
        some.par_chunks_mut(DIM).enumerate().for_each(|(i, row)| {
            let mut random = Random::new((first + i) as u64);
            row.iter_mut().for_each(|x| *x = random.below(1 << 20) as f32);
        });
        writer.push(some).expect("rows");
    }
    writer.finish().expect("the table's end");
}

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.0) * limit as u128) >> 64) as usize
    }

    fn ranks(&mut self, count: usize, rows: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(rows) as u32).collect()
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Gives up what is cached of the file.
fn drop_caches(path: &Path) {
    let file = File::open(path).expect("the table");
    file.sync_all().expect("the table on the disk");
    // SAFETY: a hint about a file that is open, without pointers.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    // Only root may; else the line above has to do.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
}

/// A way to gather a batch.
type Way = fn(&Table, &[u32], &mut [f32]);

fn batched(table: &Table, ranks: &[u32], out: &mut [f32]) {
    table.gather(ranks, out).expect("rows of the table");
}

/// One row after the other, so one fault after the other.
fn singly(table: &Table, ranks: &[u32], out: &mut [f32]) {
    for (rank, out) in ranks.iter().zip(out.chunks_exact_mut(DIM)) {
        table.gather(&[*rank], out).expect("a row of the table");
    }
}

fn cold(path: &Path, rows: usize, options: &Options) {
    let direct = |reads| Some(Placement::Direct { cache: 0, queue_depth: options.batch, reads });
    let ways: [(&str, Option<Placement>, Way); 5] = [
        ("page faults, MADV_RANDOM", None, singly),
        ("page faults, a batch on all threads", None, batched),
        ("mmap: batched readahead", Some(Placement::Mmap { prefault: 0 }), batched),
        ("direct: io_uring", direct(DirectReads::Ring), batched),
        ("direct: threads", direct(DirectReads::Threads), batched),
    ];
    let mut figures = vec![Vec::new(); ways.len() + 1];
    let mut out = vec![0.0; options.batch * DIM];
    for repeat in 0..options.repeats {
        for (i, (_, placement, way)) in ways.iter().enumerate() {
            let mut random = Random::new((repeat * ways.len() + i) as u64);
            drop_caches(path);
            let table = match placement {
                None => Table::open(path),
                Some(placement) => Table::open_with(path, *placement, &mut |_, _| ()),
            };
            let table = table.expect("the table");
            let start = Instant::now();
            for _ in 0..options.batches {
                way(&table, &random.ranks(options.batch, rows), &mut out);
            }
            figures[i].push((options.batches * options.batch) as f64 / start.elapsed().as_secs_f64());
        }
        figures[ways.len()].extend(fio(path, rows, options.batch));
    }
    println!("\n| cold rows | rows/s | us a row | of the faults | of fio |\n|---|---|---|---|---|");
    let peer = (!figures[ways.len()].is_empty()).then(|| median(figures[ways.len()].clone()));
    let faults = median(figures[0].clone());
    let names = ways.iter().map(|way| way.0).chain(["fio, the same depth"]);
    for (name, figures) in names.zip(figures).filter(|(_, figures)| !figures.is_empty()) {
        let rate = median(figures);
        let of_fio = peer.map_or_else(|| "-".to_owned(), |peer| format!("{:.2}", rate / peer));
        println!("| {name} | {rate:.0} | {:.1} | {:.2} | {of_fio} |", 1e6 / rate, rate / faults);
    }
}

/// What fio reads of the same file, in reads a second.
fn fio(path: &Path, rows: usize, depth: usize) -> Option<f64> {
    let output = Command::new("fio")
        .args(["--name=rows", "--readonly", "--rw=randread", "--ioengine=io_uring", "--direct=1", "--bs=4k"])
        .args(["--time_based", "--runtime=3", "--norandommap", "--randrepeat=0", "--minimal"])
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--size={}", rows * ROW))
        .arg(format!("--filename={}", path.display()))
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.split(';').nth(7)?.parse().ok()
}

/// From nothing but the file to the first row, its f-gram found in the index: all of it read from the disk.
fn first_lookup(path: &Path, rows: usize, options: &Options) {
    let (mut opened, mut found) = (Vec::new(), Vec::new());
    for repeat in 0..options.repeats.max(5) {
        let rank = Random::new(repeat as u64).below(rows) as u32;
        drop_caches(path);
        let start = Instant::now();
        let table = Table::open(path).expect("the table");
        opened.push(start.elapsed().as_secs_f64() * 1e3);
        let tokens = [1 + rank / 4096, 1 + rank % 4096];
        let first = table.index().longest_match(&tokens).expect("a bigram of the table");
        table.gather(&[first.rank], &mut [0.0; DIM]).expect("its row");
        found.push(start.elapsed().as_secs_f64() * 1e3);
    }
    println!("\ncold: opened after {:.2} ms, first row after {:.2} ms", median(opened), median(found));
}

fn warm(path: &Path, rows: usize, options: &Options) {
    // As much of the table as surely stays in memory.
    let rows = rows.min((2 << 30) / ROW);
    let open = |placement| Table::open_with(path, placement, &mut |_, _| ()).expect("the table");
    let ram = open(Placement::Mmap { prefault: (rows * ROW) as u64 });
    // A copy of all of a larger one might not fit beside the rest.
    let small = ram.len() <= (4 << 30) / ROW;
    let huge =
        open(if small { Placement::Ram { lock: false, huge_pages: true } } else { Placement::default() });
    println!("\nshared: {}; huge: {}", ram.residence(), huge.residence());
    println!("\n| warm rows, GB/s | memcpy | shared | huge pages | shared of memcpy | huge of memcpy |");
    println!("|---|---|---|---|---|---|");
    let source: Vec<f32> = vec![1.5; rows * DIM];
    for batch in [64, 512, 4096, 16384] {
        let mut out = vec![0.0_f32; batch * DIM];
        let mut figures = [const { Vec::new() }; 3];
        let rounds = (65536 / batch).max(4);
        for repeat in 0..options.repeats.max(5) {
            let mut random = Random::new(repeat as u64);
            let mut measure = |figures: &mut Vec<f64>, way: &mut dyn FnMut(&[u32], &mut [f32])| {
                let ranks: Vec<_> = (0..rounds).map(|_| random.ranks(batch, rows)).collect();
                let start = Instant::now();
                ranks.iter().for_each(|ranks| way(ranks, &mut out));
                figures.push((rounds * batch * ROW) as f64 / start.elapsed().as_secs_f64() / 1e9);
            };
            let mut at = 0;
            measure(&mut figures[0], &mut |_, out| {
                at = if at + 2 * out.len() > source.len() { 0 } else { at + out.len() };
                copy(&source[at..at + out.len()], out);
            });
            measure(&mut figures[1], &mut |ranks, out| batched(&ram, ranks, out));
            measure(&mut figures[2], &mut |ranks, out| batched(&huge, ranks, out));
        }
        let [memcpy, shared, huge] = figures.map(median);
        let (of_shared, of_huge) = (shared / memcpy, huge / memcpy);
        println!("| {batch} rows | {memcpy:.2} | {shared:.2} | {huge:.2} | {of_shared:.2} | {of_huge:.2} |");
    }
}

/// A plain copy by all threads.
fn copy(from: &[f32], to: &mut [f32]) {
    let part = to.len().div_ceil(rayon::current_num_threads());
    to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
}
