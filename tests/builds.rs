//! `scone table build`, `merge` and `quantize` as programs: killed and taken up, in parts, in other formats.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "common/tiny.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
mod tiny;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use scone::table::RowType;

fn table(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scone"));
    command.arg("table").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    let output = table(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Kills builds of a tenth of the table in the repository with SIGKILL, SCONE_KILLS of them (4 unless told otherwise), each time
/// after another while; the last build is let be.
#[test]
fn a_build_that_is_killed_again_and_again_ends_with_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, killed) = (directory.path().join("whole"), directory.path().join("killed"));
    let start = Instant::now();
    let build = |output| ["build", "model_cards/default", "--shard", "1/10", "--output", text(output)];
    run(&build(&whole));
    let all = start.elapsed();
    let kills: u32 = std::env::var("SCONE_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let mut seed = 12_345_u32;
    let mut finished = 0;
    for _ in 0..kills {
        let mut child = table(&build(&killed)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_secs_f64(
            all.as_secs_f64() * f64::from(seed >> 16) / 65_536.0 * 0.6,
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        if killed.exists() {
            assert!(fs::read(&killed).unwrap() == fs::read(&whole).unwrap());
            fs::remove_file(&killed).unwrap();
            finished += 1;
        }
    }
    println!("{kills} kills, {finished} of them after the end");
    run(&build(&killed));
    assert!(fs::read(&killed).unwrap() == fs::read(&whole).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn parts_and_other_formats() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    tiny::write(&at("model"), 4, RowType::F32);
    let (model, whole, merged) = (at("model"), at("whole"), at("merged"));
    for (dtype, align) in [("f32", "1"), ("int4", "1"), ("int8", "64")] {
        let format = ["--dtype", dtype, "--row-align", align];
        let build = |output: &Path, more: &[&str]| {
            run(&[&["build", text(&model), "--output", text(output)], &format[..], more].concat());
        };
        build(&whole, &[]);
        let parts: Vec<_> = (1..=3).map(|i| at(&format!("part-{i}"))).collect();
        for (i, part) in (1..).zip(&parts) {
            build(part, &["--shard", &format!("{i}/3")]);
        }
        run(&["merge", text(&parts[2]), text(&parts[0]), text(&parts[1]), "--output", text(&merged)]);
        assert!(fs::read(&merged).unwrap() == fs::read(&whole).unwrap(), "{dtype}");
        run(&["verify", text(&model), "--table", text(&merged), "--all"]);
        let quantized = at("quantized");
        run(&[&["quantize", text(&model), "--output", text(&quantized)], &format[..]].concat());
        assert!(fs::read(&quantized).unwrap() == fs::read(&whole).unwrap(), "{dtype}");
        let missing = table(&["merge", text(&parts[0]), "--output", text(&at("none"))]).output().unwrap();
        assert!(!missing.status.success() && !at("none").exists());
    }
    let same = table(&["quantize", text(&model), "--output", text(&at("model/table.safetensors"))])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&same.stderr).contains("is the table itself"), "{same:?}");
}

#[test]
fn a_plan_is_made_before_anything_is_spent() {
    let plan = run(&[
        "plan",
        "--rows",
        "1e9",
        "--dim",
        "2048",
        "--dtype",
        "int8",
        "--fgram-params",
        "1.8e9",
        "--json",
    ]);
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["bytes"]["rows"], 2_048_000_000_000_u64);
    assert!(plan["bytes"]["index"].as_u64().unwrap() < 20_000_000_000, "{plan}");
    assert!(plan["build_seconds"].as_f64().unwrap() > 3600.0, "{plan}");
    let refused = table(&["plan", "--rows", "0.5", "--dim", "8"]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("whole number"), "{refused:?}");
}
