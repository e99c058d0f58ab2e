//! `prepare`, as a library and as a program: what it writes, and what it says of bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scone::corpus::{
    Dataset, Dtype, Error, Input, Manifest, PrepareOptions, SHARD_TOKENS, Split, TokenizerSource, prepare,
};
use scone::tokenizer::{Tokenizer, train_bpe};

fn small() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sotu/sotu-small.jsonl")
}

fn options(output: &Path, vocab_size: usize) -> PrepareOptions {
    PrepareOptions {
        output: output.to_owned(),
        tokenizer: TokenizerSource::Train { vocab_size, sample_bytes: 1 << 20 },
        eos: None,
        validation: 0.1,
        shard_tokens: SHARD_TOKENS,
    }
}

fn run(inputs: &[PathBuf], options: &PrepareOptions) -> Result<Manifest, Error> {
    prepare(&Input::new(inputs)?, options, &mut |_| ())
}

/// The documents of a split, decoded.
fn texts(dataset: &Dataset, split: &Split) -> Vec<String> {
    let mut texts = Vec::new();
    let mut tokens = Vec::new();
    for shard in &split.shards {
        shard.read(0..shard.len(), &mut tokens).unwrap();
        assert_eq!(tokens.last(), Some(&dataset.eos()), "a shard ends with a document");
        let documents = tokens.split(|&token| token == dataset.eos());
        texts.extend(documents.map(|document| dataset.tokenizer().decode(document)));
        texts.pop();
    }
    texts
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_text_comes_back_in_one_of_the_splits() {
    let scratch = tempfile::tempdir().unwrap();
    let lines = std::fs::read_to_string(small()).unwrap();
    let lines: Vec<&str> = lines.lines().take(18).collect();
    let text = |line: &&str| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        json["text"].as_str().unwrap().to_owned()
    };
    let mut expected: Vec<String> = lines.iter().map(text).collect();

    // In every form that is read: lines, lines compressed, a file, a file compressed.
    let inputs = scratch.path().join("inputs");
    std::fs::create_dir_all(inputs.join("deep")).unwrap();
    let compress = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
    std::fs::write(inputs.join("a.jsonl"), lines[..8].join("\n")).unwrap();
    std::fs::write(inputs.join("b.ndjson.zst"), compress(&lines[8..16].join("\r\n"))).unwrap();
    std::fs::write(inputs.join("deep/c.txt"), &expected[16]).unwrap();
    std::fs::write(inputs.join("deep/d.md.zst"), compress(&expected[17])).unwrap();
    std::fs::write(inputs.join("deep/ignored.bin"), b"\xff\xff").unwrap();

    let output = scratch.path().join("dataset");
    let options = PrepareOptions { shard_tokens: 50_000, ..options(&output, 512) };
    let manifest = run(&[inputs], &options).unwrap();
    let dataset = Dataset::open(&output).unwrap();
    assert_eq!((manifest.documents, manifest.dtype), (18, Dtype::U16));
    assert!(manifest.train.shards.len() > 1, "documents fill several shards");
    let (train, validation) = (texts(&dataset, dataset.train()), texts(&dataset, dataset.validation()));
    assert!(!validation.is_empty());
    for (texts, entry) in [(&train, &manifest.train), (&validation, &manifest.validation)] {
        assert_eq!(texts.len() as u64, entry.documents);
        assert_eq!(texts.iter().map(String::len).sum::<usize>() as u64, entry.bytes);
    }
    let mut all = [train, validation].concat();
    all.sort();
    expected.sort();
    assert!(all == expected, "texts differ");
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let scratch = tempfile::tempdir().unwrap();
    let mut made = Vec::new();
    for threads in [1, 2, 4] {
        let output = scratch.path().join(threads.to_string());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&[small()], &options(&output, 1000))).unwrap();
        let read = |name: String| (std::fs::read(output.join(&name)).unwrap(), name);
        made.push(names(&output).into_iter().map(read).collect::<Vec<_>>());
    }
    assert_eq!(made[0].len(), 4);
    assert!(made[0] == made[1] && made[0] == made[2], "datasets differ");
}

#[test]
fn a_document_is_held_out_where_there_are_two() {
    let scratch = tempfile::tempdir().unwrap();
    let input = scratch.path().join("two.jsonl");
    std::fs::write(&input, "{\"text\":\"the first\"}\n{\"text\":\"the second\"}\n").unwrap();
    for (name, shard_tokens) in [("same shard", SHARD_TOKENS), ("a shard each", 1)] {
        let output = scratch.path().join(name);
        let options = PrepareOptions { validation: 0.0001, shard_tokens, ..options(&output, 257) };
        run(std::slice::from_ref(&input), &options).unwrap();
        let dataset = Dataset::open(&output).unwrap();
        assert_eq!(texts(&dataset, dataset.train()), ["the first"]);
        assert_eq!(texts(&dataset, dataset.validation()), ["the second"]);
        assert_eq!((dataset.train().bytes, dataset.validation().bytes), (9, 10));
    }
    let output = scratch.path().join("none");
    let options = PrepareOptions { validation: 0.0, ..options(&output, 257) };
    assert_eq!(run(&[input], &options).unwrap().validation.documents, 0);
}

#[test]
fn large_vocabularies_take_four_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let json = scratch.path().join("tokenizer.json");
    let mut vocabulary: serde_json::Map<String, serde_json::Value> =
        (0..70_000).map(|id| (format!("w{id}"), id.into())).collect();
    vocabulary.insert("</s>".to_owned(), 70_000.into());
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "pre_tokenizer": { "type": "WhitespaceSplit" }, "added_tokens": [],
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    });
    std::fs::write(&json, tokenizer.to_string()).unwrap();
    let input = scratch.path().join("words.txt");
    std::fs::write(&input, "w1 w65536 w69999").unwrap();
    let output = scratch.path().join("dataset");
    let options = PrepareOptions { tokenizer: TokenizerSource::File(json), ..options(&output, 0) };
    assert_eq!(run(&[input], &options).unwrap().dtype, Dtype::U32);
    let dataset = Dataset::open(&output).unwrap();
    let shard = &dataset.train().shards[0];
    let tokens: Vec<u32> = (0..5).filter_map(|i| shard.get(i)).collect();
    assert_eq!(tokens, [1, 65_536, 69_999, 70_000]);
    let mut read = Vec::new();
    shard.read(0..4, &mut read).unwrap();
    assert_eq!(read, tokens);
    // EOS is not marked special in this tokenizer, and is in no f-gram all the same.
    assert_eq!(dataset.special_tokens(), [70_000]);
}

#[test]
fn a_damaged_dataset_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("dataset");
    run(&[small()], &options(&output, 300)).unwrap();
    let shard = output.join("train-00000.bin");
    let good = std::fs::read(&shard).unwrap();

    std::fs::write(&shard, &good[..good.len() - 2]).unwrap();
    assert!(Dataset::open(&output).unwrap_err().to_string().contains("train-00000.bin is damaged"));

    let mut bad = good.clone();
    bad[2001] = 0xff;
    std::fs::write(&shard, &bad).unwrap();
    let dataset = Dataset::open(&output).unwrap();
    let read = |range| dataset.train().shards[0].read(range, &mut Vec::new());
    assert!(read(900..1100).unwrap_err().to_string().contains("token 1000 is 65"));
    assert!(read(0..1000).is_ok() && read(good.len()..good.len() + 1).is_err());
    std::fs::write(&shard, &good).unwrap();

    let tokenizer = output.join("tokenizer.json");
    let json = std::fs::read_to_string(&tokenizer).unwrap();
    std::fs::write(&tokenizer, json + "\n").unwrap();
    assert!(Dataset::open(&output).unwrap_err().to_string().contains("tokenizer.json is another than"));
}

/// Runs the program; its exit code, standard output and standard error.
fn program(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_scone-train")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn bad_input_is_an_error_and_leaves_nothing() {
    let half_a_file = zstd::encode_all(&b"some text. ".repeat(10_000)[..], 3).unwrap();
    let half_a_file = &half_a_file[..half_a_file.len() / 2];
    let cases: [(&str, Option<&[u8]>, &str); 9] = [
        ("empty.txt", Some(b""), "the corpus is empty"),
        ("empty.jsonl", Some(b"\n{\"text\":\"\"}\n"), "the corpus is empty"),
        ("latin.txt", Some(b"caf\xe9"), "latin.txt, byte 3: this is not UTF-8"),
        ("bad.jsonl", Some(b"{\"text\":\"a\"}\n{\"text\":"), "bad.jsonl, line 2: EOF while parsing"),
        ("other.jsonl", Some(b"{\"content\":\"a\"}\n"), "other.jsonl, line 1: the object has no \"text\""),
        ("not.txt.zst", Some(b"plain"), "cannot decompress"),
        ("cut.txt.zst", Some(half_a_file), "cannot decompress"),
        ("one-token.txt", Some(b"a"), "gives 257 tokens and no more"),
        ("missing.txt", None, "cannot open"),
    ];
    for (name, bytes, expected) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let input = scratch.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&input, bytes).unwrap();
        }
        let (input, output) = (input.to_str().unwrap(), scratch.path().join("dataset"));
        let arguments = ["prepare", input, "--output", output.to_str().unwrap(), "--vocab-size", "300"];
        let (code, stdout, stderr) = program(&arguments);
        assert_eq!((code, stdout.as_str()), (1, ""), "{name}: {stderr}");
        assert!(stderr.contains("error: ") && stderr.contains(expected), "{name}: {stderr}");
        let left = names(scratch.path());
        assert_eq!(left.len(), usize::from(bytes.is_some()), "{name} left {left:?}");
    }
}

/// A disk without room, here a limit on the size of files: an error that says so, and nothing under the final name.
#[test]
fn a_full_disk_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("dataset");
    // With the signal ignored, a write past the limit fails as one to a full disk does. The limit is in KiB.
    let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" prepare \"$1\" --output \"$2\" --vocab-size 300";
    let result = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_scone-train")])
        .args([&small(), &output])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: cannot write") && stderr.contains("train-00000.bin"), "{stderr}");
    assert_eq!(names(scratch.path()), Vec::<String>::new());
}

#[test]
fn outputs_and_tokenizers_are_checked() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let small = small().to_str().unwrap().to_owned();
    std::fs::create_dir(path("taken")).unwrap();
    std::fs::write(path("taken/file"), "mine").unwrap();
    let (code, _, stderr) = program(&["prepare", &small, "--output", &path("taken"), "--vocab-size", "300"]);
    assert!(code == 1 && stderr.contains("taken exists and is not empty"), "{stderr}");
    assert_eq!(names(Path::new(&path("taken"))), ["file"]);

    // A tokenizer whose end-of-text token has an unusual name.
    let no_eos = path("renamed.json");
    train_bpe(std::iter::empty(), 257, Path::new(&no_eos)).unwrap();
    let json = std::fs::read_to_string(&no_eos).unwrap().replace("<|endoftext|>", "<the end>");
    std::fs::write(&no_eos, json).unwrap();
    assert_eq!(Tokenizer::from_file(&no_eos).unwrap().eos(), None);
    let with = |extra: &[&str]| {
        let output = path("dataset");
        program(&[&["prepare", &small, "--output", &output, "--tokenizer", &no_eos], extra].concat())
    };
    assert!(with(&[]).2.contains("no end-of-text token by a usual name"));
    assert!(with(&["--eos", "<nothing>"]).2.contains("has no token \"<nothing>\""));
    assert_eq!(with(&["--eos", "<the end>"]).0, 0);

    let usage = |extra: &[&str]| program(&[&["prepare", &small, "--output", "x"], extra].concat()).0;
    assert_eq!(usage(&[]), 2, "no tokenizer");
    assert_eq!(usage(&["--vocab-size", "9", "--tokenizer", "y"]), 2, "both");
    assert_eq!(usage(&["--vocab-size", "many"]), 2);
}

#[test]
fn the_three_commands_work_together() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (dataset, fgrams, other) = (path("dataset"), path("fgrams.parquet"), path("other"));
    let small = small().to_str().unwrap().to_owned();
    let json = |arguments: &[&str]| -> serde_json::Value {
        let (code, stdout, stderr) = program(arguments);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    };
    let prepared =
        json(&["prepare", &small, "-o", &dataset, "--vocab-size", "512", "--json", "--threads", "2"]);
    assert_eq!(prepared["documents"], 25);
    let mined = json(&["mine", &dataset, "-o", &fgrams, "--size", "1000", "--max-n", "3", "--json"]);
    assert_eq!((&mined["fgrams"], mined["scans"].as_array().unwrap().len()), (&1000.into(), 2));
    let tagged = json(&["tag", &dataset, "--fgrams", &fgrams, "--json"]);
    assert_eq!(tagged["fgrams_sha256"], mined["fgrams_sha256"]);
    assert_eq!(tagged["train"]["hit_rate"], mined["hit_rate"]);
    let (code, table, stderr) = program(&["tag", &dataset, "--fgrams", &fgrams]);
    assert!(code == 0 && table.contains("hit rate") && table.lines().count() == 4, "{table}{stderr}");

    // A set of another tokenizer is refused.
    json(&["prepare", &small, "-o", &other, "--vocab-size", "300", "--json"]);
    let (code, _, stderr) = program(&["tag", &other, "--fgrams", &fgrams]);
    assert!(code == 1 && stderr.contains("the f-gram set was made with tokenizer"), "{stderr}");
}

/// As under `| head`, which closes its end early.
#[test]
fn a_closed_pipe_is_silent() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("dataset");
    run(&[small()], &options(&output, 300)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_scone-train"))
        .args(["mine", output.to_str().unwrap(), "--size", "10", "-o"])
        .arg(scratch.path().join("fgrams.parquet"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let result = child.wait_with_output().unwrap();
    assert!(result.status.success());
    assert_eq!(String::from_utf8_lossy(&result.stderr), "");
}
