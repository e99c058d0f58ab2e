//! Mining and tagging equal their brute-force twins, on random and on real text, whatever the number of threads.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use scone::corpus::{
    Dataset, DatasetWriter, Input, MineOptions, Mined, PrepareOptions, SHARD_TOKENS, Scan, Shard, SplitName,
    Tags, TokenizerSource, mine, prepare, tag,
};
use scone::fgram::{FgramSet, parquet, rank_order, twin};
use scone::tokenizer::{Tokenizer, train_bpe};
use tempfile::TempDir;

/// A special token besides EOS, which is 0.
const PAD: u32 = 257;

/// A tokenizer of single bytes, EOS and [`PAD`].
fn bytes_tokenizer(directory: &Path) -> PathBuf {
    let path = directory.join("tokenizer.json");
    train_bpe(std::iter::empty(), 257, &path).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    let mut pad = added[0].clone();
    pad["id"] = PAD.into();
    pad["content"] = "<|pad|>".into();
    added.push(pad);
    std::fs::write(&path, json.to_string()).unwrap();
    path
}

fn dataset(train: &[Vec<u32>], validation: &[Vec<u32>], shard_tokens: u64) -> (TempDir, Dataset) {
    let scratch = tempfile::tempdir().unwrap();
    let json = bytes_tokenizer(scratch.path());
    let tokenizer = Tokenizer::from_file(&json).unwrap();
    let output = scratch.path().join("dataset");
    let mut writer = DatasetWriter::create(&output, &tokenizer, &json, 0, shard_tokens).unwrap();
    for (split, documents) in [(SplitName::Train, train), (SplitName::Validation, validation)] {
        for document in documents {
            writer.append(split, document, document.len() as u64).unwrap();
            writer.end_document(split).unwrap();
        }
    }
    writer.finish().unwrap();
    let dataset = Dataset::open(output).unwrap();
    (scratch, dataset)
}

fn contents(shards: &[Shard]) -> Vec<Vec<u32>> {
    let read = |shard: &Shard| {
        let mut tokens = Vec::new();
        shard.read(0..shard.len(), &mut tokens).unwrap();
        tokens
    };
    shards.iter().map(read).collect()
}

type Ranked = Vec<(Vec<u32>, u64)>;

/// The rule of the paper, word for word: scan n counts the n-grams whose prefix and suffix survived.
fn naive(shards: &[Vec<u32>], special: &[u32], options: MineOptions) -> (Ranked, Vec<Scan>) {
    let tokens = shards.iter().flatten().filter(|token| !special.contains(token));
    let mut survived: HashSet<Vec<u32>> = tokens.map(|&token| vec![token]).collect();
    let mut all: Ranked = Vec::new();
    let mut scans = Vec::new();
    for n in 2..=options.max_n {
        let mut counts: HashMap<Vec<u32>, u64> = HashMap::new();
        for ngram in shards.iter().flat_map(|shard| shard.windows(n)) {
            if survived.contains(&ngram[..n - 1]) && survived.contains(&ngram[1..]) {
                *counts.entry(ngram.to_vec()).or_insert(0) += 1;
            }
        }
        let candidates = counts.len() as u64;
        counts.retain(|_, count| *count >= options.min_count);
        survived = counts.keys().cloned().collect();
        scans.push(Scan { n, candidates, survivors: counts.len() as u64, kept: 0, cutoff: None });
        all.extend(counts);
    }
    all.sort_by(|a, b| rank_order((&a.0, a.1), (&b.0, b.1)));
    all.truncate(options.size);
    for (tokens, count) in &all {
        let scan = &mut scans[tokens.len() - 2];
        scan.kept += 1;
        scan.cutoff = Some(*count);
    }
    (all, scans)
}

fn naive_tags(shard: &[u32], set: &HashSet<Vec<u32>>, special: &[u32], max_n: usize) -> Vec<u8> {
    let tag = |i: usize| {
        if special.contains(&shard[i]) {
            return 0;
        }
        // No f-gram is longer than K, so more tokens before would be tried in vain.
        twin::longest_match(set, &shard[(i + 1).saturating_sub(max_n)..=i]) as u8
    };
    (0..shard.len()).map(tag).collect()
}

fn ranked(set: &FgramSet) -> Ranked {
    (0..set.len() as u32).map(|rank| (set.tokens(rank).unwrap(), set.counts()[rank as usize])).collect()
}

fn mine_with(threads: usize, dataset: &Dataset, options: MineOptions) -> Option<Mined> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| mine(dataset, options, &|_, _| ()).ok())
}

/// Mines and tags; compares both with their twins.
fn check(dataset: &Dataset, options: MineOptions, threads: usize) {
    let special = dataset.special_tokens();
    let train = contents(&dataset.train().shards);
    let (expected, scans) = naive(&train, &special, options);
    let Some(mined) = mine_with(threads, dataset, options) else {
        assert!(expected.is_empty());
        return;
    };
    assert_eq!(ranked(&mined.set), expected);
    assert_eq!(mined.scans, scans);
    // Closed: `FgramSet` refuses what is not, and this says it once more.
    let set: HashSet<Vec<u32>> = expected.into_iter().map(|(tokens, _)| tokens).collect();
    let mut longer = set.iter().filter(|tokens| tokens.len() > 2);
    assert!(longer.all(|t| set.contains(&t[1..]) && set.contains(&t[..t.len() - 1])));

    let report = tag(dataset, &mined.set, &mut |_| ()).unwrap();
    assert_eq!(report.train, mined.matches);
    let tags = Tags::open(dataset, &mined.set.sha256()).unwrap();
    let validation = contents(&dataset.validation().shards);
    for (tags, shard) in tags.train().chain(tags.validation()).zip(train.iter().chain(&validation)) {
        assert_eq!(tags, naive_tags(shard, &set, &special, options.max_n));
    }
}

fn token() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 1u32..5, 1 => 5u32..30, 1 => Just(PAD)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn mining_and_tagging_equal_their_twins(
        train in prop::collection::vec(prop::collection::vec(token(), 0..60), 1..8),
        validation in prop::collection::vec(prop::collection::vec(token(), 0..30), 0..3),
        shard_tokens in 1u64..150,
        max_n in 2usize..7,
        size in prop_oneof![1usize..40, Just(100_000)],
        min_count in 1u64..5,
        threads in prop::sample::select(vec![1usize, 2, 4]),
    ) {
        let (_scratch, dataset) = dataset(&train, &validation, shard_tokens);
        check(&dataset, MineOptions { max_n, size, min_count }, threads);
    }
}

/// Long enough for many tasks a scan, so that n-grams lie across their edges.
#[test]
fn long_streams_equal_their_twins() {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = (state >> 40) as u32;
        // The lesser of two numbers: some tokens are far more frequent than others.
        1 + (uniform % 150).min(uniform / 150 % 150)
    };
    let mut document = |len| (0..len).map(|_| next()).collect::<Vec<u32>>();
    let train = [document(700_000), document(10), document(600_000)];
    let (_scratch, dataset) = dataset(&train, &[document(1000)], 650_000);
    assert_eq!(dataset.train().shards.len(), 2);
    let options = MineOptions { max_n: 4, size: 20_000, min_count: 5 };
    check(&dataset, options, 4);
    let hash = |threads| mine_with(threads, &dataset, options).unwrap().set.sha256();
    assert_eq!(hash(1), hash(2));
    assert_eq!(hash(1), hash(4));
}

#[test]
fn real_text_equals_its_twins() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("sotu");
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sotu/sotu-small.jsonl");
    let options = PrepareOptions {
        output: output.clone(),
        tokenizer: TokenizerSource::Train { vocab_size: 1024, sample_bytes: 1 << 20 },
        eos: None,
        validation: 0.1,
        shard_tokens: SHARD_TOKENS,
    };
    prepare(&Input::new(&[text]).unwrap(), &options, &mut |_| ()).unwrap();
    let dataset = Dataset::open(&output).unwrap();
    let options = MineOptions { max_n: 5, size: 5000, min_count: 5 };
    check(&dataset, options, 2);
    // The file that carries the set from `mine` to `tag` changes nothing.
    let mined = mine_with(2, &dataset, options).unwrap();
    let path = scratch.path().join("fgrams.parquet");
    parquet::write(&mined.set, &path).unwrap();
    assert_eq!(parquet::read(&path).unwrap().sha256(), mined.set.sha256());
}

#[test]
fn n_grams_longer_than_any_document_are_simply_not_there() {
    let (_scratch, dataset) = dataset(&vec![vec![1, 2, 3]; 10], &[], 1000);
    let mined = mine_with(1, &dataset, MineOptions { max_n: 8, size: 100, min_count: 5 }).unwrap();
    assert_eq!(ranked(&mined.set), [(vec![1, 2], 10), (vec![2, 3], 10), (vec![1, 2, 3], 10)]);
    assert_eq!(mined.scans.len(), 7);
    assert_eq!(mined.scans[6], Scan { n: 8, candidates: 0, survivors: 0, kept: 0, cutoff: None });
    assert_eq!(mined.set.policy().max_n, 8);
}

#[test]
fn what_cannot_be_mined_or_tagged_says_why() {
    let (_scratch, lonely) = dataset(&[vec![1]], &[], 1000);
    let options = MineOptions { max_n: 3, size: 100, min_count: 5 };
    let say = |options| mine(&lonely, options, &|_, _| ()).unwrap_err().to_string();
    assert!(say(options).contains("no two tokens stand together 5 times in the 2 training tokens"));
    assert!(say(MineOptions { max_n: 1, ..options }).contains("2 to 16 tokens, not 1"));
    assert!(say(MineOptions { size: 0, ..options }).contains("at least 1"));

    let (_scratch, dataset) = dataset(&vec![vec![1, 2, 3]; 10], &[], 1000);
    let set = mine(&dataset, options, &|_, _| ()).unwrap().set;
    let mut policy = set.policy().clone();
    policy.tokenizer_sha256 = "another".to_owned();
    let other = FgramSet::from_ranked(policy, std::iter::empty()).unwrap();
    assert!(tag(&dataset, &other, &mut |_| ()).unwrap_err().to_string().contains("tokenizer another"));
    let mut policy = set.policy().clone();
    policy.special_tokens = vec![0];
    let other = FgramSet::from_ranked(policy, std::iter::empty()).unwrap();
    assert!(tag(&dataset, &other, &mut |_| ()).unwrap_err().to_string().contains("special tokens"));

    assert!(Tags::open(&dataset, &set.sha256()).unwrap_err().to_string().contains("run `tag` first"));
    tag(&dataset, &set, &mut |_| ()).unwrap();
    Tags::open(&dataset, &set.sha256()).unwrap();
    assert!(Tags::open(&dataset, "x").unwrap_err().to_string().contains("tag it again"));
    let tags = dataset.directory().join("train-00000.tags");
    std::fs::write(tags, [1]).unwrap();
    assert!(Tags::open(&dataset, &set.sha256()).unwrap_err().to_string().contains("1 tags for 40 tokens"));
}
