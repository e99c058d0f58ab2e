//! The files of `deploy/` are true of the program: each flag, value and probe that they name is one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::StatusCode;
use serde_json::Value;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// The configuration of `scone serve` with these arguments, which it must understand.
fn configuration(arguments: &[String]) -> toml::Table {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scone"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    let output = command.arg("serve").args(arguments).arg("--print-config").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    toml::from_str(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
}

/// A time as all of these files write it, in seconds.
fn seconds(text: &str) -> f64 {
    let unit = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    let factor = match &text[unit..] {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        unit => panic!("{unit}"),
    };
    text[..unit].parse::<f64>().unwrap() * factor
}

/// How long stopping takes at most.
fn stop_seconds(config: &toml::Table) -> f64 {
    ["shutdown-delay", "drain-timeout"].iter().map(|key| seconds(config[*key].as_str().unwrap())).sum()
}

#[test]
fn the_unit_starts_the_program_and_gives_it_time_to_stop() {
    let unit = std::fs::read_to_string(deploy("scone.service")).unwrap();
    let value = |key: &str| {
        let mut lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.next().unwrap_or_else(|| panic!("no {key}"))
    };
    let mut words = value("ExecStart").split_whitespace();
    assert_eq!((words.next(), words.next()), (Some("/usr/local/bin/scone"), Some("serve")));
    let installed = deploy("scone.toml").to_str().unwrap().to_owned();
    let arguments: Vec<_> = words.map(|word| word.replace("/etc/scone/scone.toml", &installed)).collect();
    assert!(arguments.contains(&installed), "{arguments:?}");
    let config = configuration(&arguments);
    assert!(seconds(value("TimeoutStopSec")) > stop_seconds(&config) + 5.0);
    assert_eq!((value("Type"), value("User")), ("notify", "scone"));
}

#[test]
fn what_is_commented_out_in_the_configuration_is_right_too() {
    let text = std::fs::read_to_string(deploy("scone.toml")).unwrap();
    let is_setting = |line: &&str| line.strip_prefix("# ").is_some_and(|line| line.contains(" = "));
    let settings: Vec<_> = text.lines().filter(is_setting).map(|line| &line[2..]).collect();
    assert!(settings.len() >= 3, "{settings:?}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scone.toml");
    std::fs::write(&path, text.clone() + "\n" + &settings.join("\n")).unwrap();
    let config = configuration(&["--config".to_owned(), path.to_str().unwrap().to_owned()]);
    assert_eq!(config["tls-key"].as_str(), Some("/etc/scone/tls.key"));
}

/// The documents of the manifest.
fn manifest() -> Vec<Value> {
    let text = std::fs::read_to_string(deploy("kubernetes.yaml")).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn deployment() -> Value {
    manifest().into_iter().find(|document| document["kind"] == "Deployment").unwrap()
}

#[test]
fn the_manifest_starts_the_program_and_gives_it_time_to_stop() {
    let pod = deployment()["spec"]["template"]["spec"].clone();
    let container = &pod["containers"][0];
    assert_eq!(container["command"], serde_json::json!(["scone", "serve"]));
    let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    let config = configuration(&arguments);
    let grace = pod["terminationGracePeriodSeconds"].as_f64().unwrap();
    assert!(grace > stop_seconds(&config) + 5.0, "{grace}");
    let port = container["ports"][0]["containerPort"].as_u64().unwrap();
    assert!(config["listen"].as_str().unwrap().ends_with(&format!(":{port}")));
    // What it reads is mounted, read-only, from a volume that there is.
    for path in ["model-dir", "api-keys-file"] {
        let path = Path::new(config[path].as_str().unwrap());
        let mounts = container["volumeMounts"].as_array().unwrap();
        let mount =
            mounts.iter().find(|mount| path.starts_with(mount["mountPath"].as_str().unwrap())).unwrap();
        assert_eq!(mount["readOnly"], true);
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{mount}");
    }
}

#[test]
fn the_manifest_fits_together() {
    let documents = manifest();
    let kinds: Vec<_> = documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Service", "PodDisruptionBudget", "Deployment"]);
    let labels = &deployment()["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&documents[0]["spec"]["selector"], labels);
    for document in &documents[1..] {
        assert_eq!(&document["spec"]["selector"]["matchLabels"], labels);
    }
    let port = &deployment()["spec"]["template"]["spec"]["containers"][0]["ports"][0];
    assert_eq!(documents[0]["spec"]["ports"][0]["targetPort"], port["name"]);
}

#[tokio::test]
async fn the_probes_ask_what_is_answered() {
    let server = common::start(1).await;
    let container = deployment()["spec"]["template"]["spec"]["containers"][0].clone();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        let answer = server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{probe} {path}");
    }
}
