//! Mining in any memory, in parts, and after a kill gives the very file that mining at once gives.

// The helpers of tests may fail as tests do; clippy.toml allows it in the test functions only.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use scone::corpus::{
    Dataset, DatasetWriter, Effort, JoinOptions, MineOptions, Mined, PartOptions, SplitName, count_part,
    join, mine, mine_in, mine_work, part_work,
};
use scone::fgram::{FgramSet, Policy, parquet};
use scone::tokenizer::{Tokenizer, train_bpe};
use serde_json::Value;
use tempfile::TempDir;

/// So little that every limit is at its least: buffers of a thousand keys, all runs in files, four merged at once.
const NO_MEMORY: u64 = 0;
const PLENTY: u64 = 64 << 30;

fn dataset(scratch: &Path, documents: &[Vec<u32>], shard_tokens: u64) -> PathBuf {
    let json = scratch.join("tokenizer.json");
    train_bpe(std::iter::empty(), 257, &json).unwrap();
    let tokenizer = Tokenizer::from_file(&json).unwrap();
    let output = scratch.join("dataset");
    let mut writer = DatasetWriter::create(&output, &tokenizer, &json, 0, shard_tokens).unwrap();
    for document in documents {
        writer.append(SplitName::Train, document, document.len() as u64).unwrap();
        writer.end_document(SplitName::Train).unwrap();
    }
    writer.finish().unwrap();
    output
}

/// Documents in which some n-grams come again and again, of different lengths.
fn documents(tokens: usize) -> Vec<Vec<u32>> {
    let mut state = 7u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    let phrases: Vec<Vec<u32>> =
        (0..3000).map(|_| (0..2 + next() % 5).map(|_| 1 + next() % 200).collect()).collect();
    let (mut documents, mut total) = (Vec::new(), 0);
    while total < tokens {
        let mut document = Vec::new();
        for _ in 0..50 + next() % 2000 {
            // The lesser of two numbers: some phrases are far more frequent than others.
            document.extend_from_slice(&phrases[(next() % 3000).min(next() % 3000) as usize]);
        }
        total += document.len() + 1;
        documents.push(document);
    }
    documents
}

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

fn mine_with(dataset: &Dataset, options: MineOptions, memory: u64, threads: usize) -> Option<Mined> {
    let directory = tempfile::tempdir().unwrap();
    let mut work = mine_work(directory.path(), dataset, options).unwrap();
    let mined = with_threads(threads, || mine_in(&mut work, dataset, options, memory, &|_| ()));
    work.remove().unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    mined.ok()
}

fn same(a: &FgramSet, b: &FgramSet) {
    assert_eq!((a.policy(), a.len(), a.sha256()), (b.policy(), b.len(), b.sha256()));
    // Too long to be printed.
    assert!(a.counts() == b.counts());
}

/// `mine` itself is held against brute force in tests/mining.rs.
#[test]
fn memory_and_threads_change_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let dataset = Dataset::open(dataset(scratch.path(), &documents(400_000), 150_000)).unwrap();
    let options = MineOptions { max_n: 5, size: 20_000, min_count: 3 };
    let plenty = mine_with(&dataset, options, PLENTY, 2).unwrap();
    assert_eq!(plenty.set.len(), options.size);
    assert!(plenty.efforts.iter().all(|effort| effort.spilled_bytes == 0 && effort.merges == 1));
    for threads in [1, 3] {
        let little = mine_with(&dataset, options, NO_MEMORY, threads).unwrap();
        same(&little.set, &plenty.set);
        assert_eq!((&little.scans, &little.matches), (&plenty.scans, &plenty.matches));
        let efforts = &little.efforts;
        let runs = |effort: &Effort| effort.runs > 16 && effort.merges > 1 && effort.spilled_bytes > 0;
        assert!(efforts.iter().all(runs), "{efforts:?}");
        assert!(efforts[..3].iter().all(|effort| effort.passes > 2), "{efforts:?}");
    }
}

/// Counts every part into a file.
fn count_parts(
    dataset: &Dataset,
    parts: u64,
    scan: Option<(usize, Option<&FgramSet>)>,
    max_n: usize,
    to: &Path,
) -> Vec<PathBuf> {
    let (last_only, max_n, survivors) = match scan {
        Some((n, survivors)) => (true, n, survivors),
        None => (false, max_n, None),
    };
    let count = |part| {
        let options = PartOptions { part: (part, parts), max_n, survivors, last_only };
        let output = to.join(format!("counts-{max_n}-{part}-{parts}.parquet"));
        let mut work = part_work(to, dataset, options).unwrap();
        count_part(&mut work, dataset, options, NO_MEMORY, &output, &|_| ()).unwrap();
        work.remove().unwrap();
        output
    };
    (1..=parts).map(count).collect()
}

fn join_all(counts: &[PathBuf], survivors: Option<&FgramSet>, min_count: u64, size: u64) -> Option<FgramSet> {
    let directory = tempfile::tempdir().unwrap();
    let options = JoinOptions { counts, survivors, default: None, min_count, size };
    join(&options, directory.path()).ok().map(|joined| joined.set)
}

/// Parts joined at once, and in rounds, where each scan is pruned by what survived the one before in the whole.
fn check_parts(dataset: &Dataset, options: MineOptions, parts: u64) {
    let scratch = tempfile::tempdir().unwrap();
    let Ok(whole) = mine(dataset, options, &|_, _| ()) else { return };
    let MineOptions { max_n, size, min_count } = options;
    let counts = count_parts(dataset, parts, None, max_n, scratch.path());
    let joined = join_all(&counts, None, min_count, size as u64).unwrap();
    same(&joined, &whole.set);

    let mut survivors: Option<FgramSet> = None;
    for n in 2..=max_n {
        let counts = count_parts(dataset, parts, Some((n, survivors.as_ref())), n, scratch.path());
        let size = if n == max_n { size as u64 } else { u64::MAX };
        survivors = join_all(&counts, survivors.as_ref(), min_count, size);
    }
    let last = survivors.unwrap();
    same(&last, &whole.set);
    // Not the set alone: the file is the same, to the byte.
    let file = |set, name| {
        let path = scratch.path().join(name);
        parquet::write(set, &path).unwrap();
        std::fs::read(path).unwrap()
    };
    assert!(file(&last, "rounds") == file(&whole.set, "whole"));
}

#[test]
fn parts_join_to_the_set_of_the_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let dataset = Dataset::open(dataset(scratch.path(), &documents(100_000), 30_000)).unwrap();
    for parts in [1, 2, 5] {
        check_parts(&dataset, MineOptions { max_n: 5, size: 8_000, min_count: 4 }, parts);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn small_corpora_too(
        train in prop::collection::vec(prop::collection::vec(1u32..6, 0..40), 1..8),
        shard_tokens in 1u64..100,
        max_n in 2usize..6,
        size in prop_oneof![1usize..40, Just(100_000)],
        min_count in 1u64..4,
        parts in prop::sample::select(vec![1u64, 2, 5, 20]),
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let dataset = Dataset::open(dataset(scratch.path(), &train, shard_tokens)).unwrap();
        let options = MineOptions { max_n, size, min_count };
        check_parts(&dataset, options, parts);
        let plain = mine(&dataset, options, &|_, _| ()).ok();
        let little = mine_with(&dataset, options, NO_MEMORY, 2);
        prop_assert_eq!(plain.map(|mined| mined.set.sha256()), little.map(|mined| mined.set.sha256()));
    }
}

/// `scone-train mine ARGUMENTS`, whatever the environment of the test says.
fn command(directory: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scone-train"));
    command.current_dir(directory).arg("mine").args(arguments.split_whitespace());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    command
}

fn run(directory: &Path, arguments: &str) -> Output {
    let output = command(directory, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn fails(directory: &Path, arguments: &str) -> String {
    let output = command(directory, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments}");
    String::from_utf8(output.stderr).unwrap()
}

fn small() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    dataset(scratch.path(), &documents(60_000), 25_000);
    scratch
}

/// The names in a directory that mining left.
fn left(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with("scone-m")).collect()
}

#[test]
fn the_program_counts_parts_and_joins_them() {
    let scratch = small();
    let at = scratch.path();
    let whole =
        run(at, "dataset --output whole.parquet --size 5000 --min-count 3 --max-n 4 --memory 300MiB --json");
    let whole: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert!(whole["peak_rss_bytes"].as_u64().is_none_or(|bytes| bytes > 1 << 20));
    for part in ["1/3", "2/3", "3/3"] {
        let output =
            format!("dataset --shard {part} --max-n 4 --output {}.parquet --json", part.replace('/', "-"));
        let counted: Value = serde_json::from_slice(&run(at, &output).stdout).unwrap();
        assert_eq!(counted["scans"].as_array().unwrap().len(), 3);
    }
    let joined = run(
        at,
        "--merge 1-3.parquet 2-3.parquet 3-3.parquet --output joined.parquet --size 5000 --min-count 3 --json",
    );
    let joined: Value = serde_json::from_slice(&joined.stdout).unwrap();
    assert_eq!(joined["fgrams_sha256"], whole["fgrams_sha256"]);
    let read = |name: &str| std::fs::read(at.join(name)).unwrap();
    assert!(read("joined.parquet") == read("whole.parquet"));
    assert_eq!(left(at), Vec::<String>::new());

    assert!(fails(at, "--merge 1-3.parquet nowhere.parquet --output x.parquet").contains("nowhere.parquet"));
    assert!(fails(at, "dataset --shard 1/3 --scan 3 --output x.parquet").contains("--survivors"));
    let twice = "--merge 1-3.parquet --survivors whole.parquet --output x.parquet";
    assert!(fails(at, twice).contains("in the counts and in the survivors"));
    // A set is in the order of ranks: no file of counts.
    assert!(fails(at, "--merge whole.parquet --output x.parquet").contains("sort by length, then tokens"));
    assert!(!at.join("x.parquet").exists());
}

/// Counts that lack the bigrams cannot make a set.
#[test]
fn missing_counts_are_noticed() {
    let scratch = tempfile::tempdir().unwrap();
    let policy = Policy { max_n: 3, special_tokens: vec![0], tokenizer_sha256: "a tokenizer".to_owned() };
    let say = |rows: &[(&[u32], u64)]| {
        let path = scratch.path().join("counts.parquet");
        let mut writer = parquet::Writer::create(&path, &policy).unwrap();
        rows.iter().for_each(|(tokens, count)| writer.push(tokens, *count).unwrap());
        writer.finish().unwrap();
        let options = JoinOptions { counts: &[path], survivors: None, default: None, min_count: 2, size: 10 };
        join(&options, scratch.path()).map(|joined| joined.set.len()).map_err(|error| error.to_string())
    };
    assert_eq!(say(&[(&[1, 2], 5), (&[2, 3], 5), (&[1, 2, 3], 4)]), Ok(3));
    let says = |rows: &[(&[u32], u64)], part: &str| {
        let error = say(rows).unwrap_err();
        assert!(error.contains(part), "{error}");
    };
    says(&[(&[2, 3], 5), (&[1, 2, 3], 4)], "its first 2 tokens are not as frequent");
    says(&[(&[1, 2], 5), (&[1, 2, 3], 4)], "has a suffix that is not frequent");
    says(&[(&[1, 2], 1)], "has a count of 2");
    says(&[(&[1, 2], 5), (&[1, 2], 5)], "sort by length");
    says(&[(&[0, 2], 5)], "token 0 is special");
    says(&[(&[1, 2], 5), (&[1, 2, 3, 4], 4)], "it has 4 tokens");
    says(&[(&[1], 5)], "sort by length");
}

/// Killed at random moments (SCONE_KILLS of them, 5 if that is not set), then left to finish.
#[test]
fn after_kills_the_same_file() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    dataset(at, &documents(1_500_000), 1_000_000);
    let start = Instant::now();
    run(at, "dataset --output whole.parquet --size 20000 --min-count 2");
    let whole = start.elapsed();
    let kills: u32 = std::env::var("SCONE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(5);
    let (mut killed, mut went_on, mut state) = (0, 0, 1u64);
    while killed < kills {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        let moment = whole.mul_f64((state >> 40) as f64 / f64::from(1 << 24));
        let mut child = command(at, "dataset --output resumed.parquet --size 20000 --min-count 2")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            killed += 1;
            continue;
        }
        // It was done before; the next one begins anew.
        compare(at);
    }
    let last = run(at, "dataset --output resumed.parquet --size 20000 --min-count 2");
    went_on += u32::from(String::from_utf8_lossy(&last.stderr).contains("going on after"));
    compare(at);
    eprintln!("{killed} kills in runs of up to {whole:?}; the last run went on: {went_on}");
    assert_eq!(left(at), Vec::<String>::new());
}

fn compare(at: &Path) {
    assert!(
        std::fs::read(at.join("resumed.parquet")).unwrap()
            == std::fs::read(at.join("whole.parquet")).unwrap()
    );
    std::fs::remove_file(at.join("resumed.parquet")).unwrap();
}

/// Kills the program when its work directory holds a file; gives the directory.
fn killed_with(at: &Path, arguments: &str, name: &str) -> PathBuf {
    let mut child = command(at, arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let directory = loop {
        let there =
            left(at).into_iter().map(|directory| at.join(directory)).find(|path| path.join(name).exists());
        if let Some(directory) = there {
            break directory;
        }
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline, "no {name}");
    };
    child.kill().unwrap();
    child.wait().unwrap();
    directory
}

#[test]
fn a_work_directory_that_cannot_be_trusted_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    dataset(at, &documents(1_500_000), 1_000_000);
    let arguments = "dataset --output out.parquet --min-count 2";
    let work = killed_with(at, arguments, "ends-3");
    let damage = |name: &str| {
        let path = work.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = fails(at, arguments);
        assert!(error.contains("remove the directory"), "{name}: {error}");
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    damage("survivors-2-0");
    std::fs::write(work.join("letter.txt"), "mine").unwrap();
    assert!(fails(at, arguments).contains("letter.txt in it is not of mining"));
    std::fs::remove_file(work.join("letter.txt")).unwrap();
    let state = std::fs::read(work.join("state.json")).unwrap();
    std::fs::write(work.join("state.json"), "{").unwrap();
    assert!(fails(at, arguments).contains("state.json is damaged"));
    std::fs::write(work.join("state.json"), state).unwrap();
    // Another process in it.
    let lock = std::fs::File::open(work.join("lock")).unwrap();
    lock.lock().unwrap();
    assert!(fails(at, arguments).contains("another process"));
    drop(lock);
    run(at, arguments);
    assert_eq!(left(at), Vec::<String>::new());
}

/// A disk without room, here a limit on the size of files (in KiB): an error that says so, and a run with room goes on.
#[test]
fn a_full_disk_is_an_error() {
    let scratch = small();
    let at = scratch.path();
    let arguments = "dataset --output out.parquet --min-count 2 --memory 1";
    run(at, arguments);
    let expected = std::fs::read(at.join("out.parquet")).unwrap();
    std::fs::remove_file(at.join("out.parquet")).unwrap();
    for limit in ["8", "150"] {
        // With the signal ignored, a write past the limit fails as one to a full disk does.
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" mine {arguments}");
        let result = Command::new("bash")
            .current_dir(at)
            .args(["-c", &script, env!("CARGO_BIN_EXE_scone-train")])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&result.stderr);
        assert_eq!(result.status.code(), Some(1), "{limit}: {error}");
        assert!(error.contains("cannot write") && error.contains("too large"), "{limit}: {error}");
        assert!(!at.join("out.parquet").exists());
    }
    run(at, arguments);
    assert!(std::fs::read(at.join("out.parquet")).unwrap() == expected);
    assert_eq!(left(at), Vec::<String>::new());
}
