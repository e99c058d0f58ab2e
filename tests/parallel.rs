//! Processes that train one model together: real ones, which end with the bits of one process, and are stopped, killed,
//! held up and continued.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/small_corpus.rs"]
mod small_corpus;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use scone::train::parallel::{Alone, Group, GroupError};
use scone::train::{Progress, Run, RunConfig, TrainError};
use small_corpus::Data;

const TRAIN: &str = env!("CARGO_BIN_EXE_scone-train");

/// The program, in an environment that says nothing of a launcher.
fn program() -> Command {
    let mut command = Command::new(TRAIN);
    clear(&mut command);
    command
}

fn clear(command: &mut Command) {
    let starts = ["SCONE_", "SLURM_", "MASTER_", "TORCHELASTIC_"];
    for (name, _) in std::env::vars() {
        if starts.iter().any(|start| name.starts_with(start)) || ["RANK", "WORLD_SIZE"].contains(&&*name) {
            command.env_remove(name);
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs on a small corpus.
struct Runs(Data);

impl Runs {
    fn make() -> Self {
        Self(Data::make())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// A configuration whose updates are of `accumulate` batches.
    fn config(&self, name: &str, steps: u64, accumulate: usize) -> PathBuf {
        let mut config = self.0.config(true);
        (config.train.steps, config.train.warmup_steps) = (steps, 3);
        (config.train.batch, config.train.accumulate) = (2, accumulate);
        (config.validation.every, config.validation.tokens) = (4, 400);
        config.checkpoint.every = 5;
        let path = self.path(name);
        std::fs::write(&path, config.to_toml()).unwrap();
        path
    }

    fn fit(&self, config: &Path, output: &str) -> Command {
        let mut command = program();
        command
            .args(["fit", "--threads", "1", "--config"])
            .arg(config)
            .arg("--output")
            .arg(self.path(output));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts all processes of a run, each in its own way of saying which it is. Only rank 0 is given `output`.
    fn group(&self, config: &Path, output: &str, world_size: usize, arguments: &[&str]) -> Vec<Child> {
        let port = port().to_string();
        let coordinator = format!("127.0.0.1:{port}");
        let (world, mut children) = (world_size.to_string(), Vec::new());
        for rank in 0..world_size {
            let mut command = self.fit(config, if rank == 0 { output } else { "not-mine" });
            let number = rank.to_string();
            let variables = [
                [("SCONE_RANK", &number), ("SCONE_WORLD_SIZE", &world), ("SCONE_COORDINATOR", &coordinator)]
                    .to_vec(),
                vec![
                    ("SLURM_PROCID", &number),
                    ("SLURM_NTASKS", &world),
                    ("SCONE_COORDINATOR", &coordinator),
                ],
                vec![("RANK", &number), ("WORLD_SIZE", &world), ("MASTER_PORT", &port)],
            ];
            command.args(arguments).env("MASTER_ADDR", "localhost").envs(variables[rank % 3].clone());
            children.push(command.spawn().unwrap());
        }
        children
    }

    fn read(&self, run: &str, file: &str) -> Vec<u8> {
        std::fs::read(self.path(run).join(file)).unwrap()
    }

    /// Everything that a run computes.
    fn results(&self, run: &str) -> Vec<(String, Vec<u8>)> {
        let names = std::fs::read_dir(self.path(run)).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let newest = names.filter(|name| name.starts_with("step-")).max().unwrap();
        let files =
            ["best.safetensors", "model/model.safetensors", "model/fgram_model/model.safetensors", &newest];
        files.into_iter().map(|file| (file.to_owned(), self.read(run, file))).collect()
    }

    /// Steps and losses of the log.
    fn losses(&self, run: &str) -> Vec<(u64, Option<f64>, Option<f64>, f64)> {
        let lines = text(&self.read(run, "metrics.jsonl"));
        let lines = lines.lines().map(|line| serde_json::from_str::<Progress>(line).unwrap());
        lines.map(|p| (p.step, p.loss, p.validation_loss, p.gradient_norm)).collect()
    }

    /// Waits until a run has logged so many steps.
    fn wait_for_steps(&self, run: &str, steps: usize) {
        let start = Instant::now();
        while std::fs::read_to_string(self.path(run).join("metrics.jsonl"))
            .map_or(0, |log| log.lines().count())
            < steps
        {
            assert!(start.elapsed() < Duration::from_secs(60), "the run does not begin");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A port that nobody listens at.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn finish(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn succeed(children: Vec<Child>) {
    for (rank, output) in finish(children).iter().enumerate() {
        assert!(output.status.success(), "rank {rank}: {}", text(&output.stderr));
        assert_eq!(rank == 0, !output.stdout.is_empty(), "rank 0 alone says where the model is");
    }
}

#[test]
fn the_number_of_processes_changes_no_bit() {
    let data = Runs::make();
    let config = data.config("run.toml", 9, 4);
    let alone = data.fit(&config, "alone").output().unwrap();
    assert!(alone.status.success(), "{}", text(&alone.stderr));
    for world_size in [2, 4] {
        let run = format!("of-{world_size}");
        succeed(data.group(&config, &run, world_size, &[]));
        assert_eq!(data.losses(&run), data.losses("alone"), "{world_size} processes");
        for ((file, ours), (_, theirs)) in data.results(&run).iter().zip(data.results("alone")) {
            assert!(*ours == theirs, "{file} differs with {world_size} processes");
        }
    }
    assert!(!data.path("not-mine").exists(), "rank 0 alone writes");
    // A run goes on with any number of processes.
    succeed(data.group(&config, "changed", 4, &["--stop-after", "3"]));
    succeed(data.group(&config, "changed", 2, &["--resume", "--stop-after", "4"]));
    assert!(data.fit(&config, "changed").arg("--resume").status().unwrap().success());
    assert_eq!(data.losses("changed"), data.losses("alone"));
    assert!(data.results("changed") == data.results("alone"));
}

#[test]
fn a_process_that_is_killed_ends_the_others_and_nothing_is_lost() {
    let data = Runs::make();
    let config = data.config("run.toml", 80, 2);
    succeed(data.group(&config, "whole", 2, &[]));
    let mut children = data.group(&config, "killed", 2, &[]);
    data.wait_for_steps("killed", 7);
    children[1].kill().unwrap();
    let outputs = finish(children);
    let message = text(&outputs[0].stderr);
    assert_eq!(outputs[0].status.code(), Some(1), "{message}");
    assert!(message.contains("rank 1 is lost") && message.contains("--resume"), "{message}");
    succeed(data.group(&config, "killed", 2, &["--resume"]));
    assert_eq!(data.losses("killed"), data.losses("whole"));
    assert!(data.results("killed") == data.results("whole"));

    // Rank 0 writes the files, so its loss takes back to its last checkpoint; it is no less named.
    let mut children = data.group(&config, "headless", 2, &[]);
    data.wait_for_steps("headless", 7);
    children[0].kill().unwrap();
    let outputs = finish(children);
    let message = text(&outputs[1].stderr);
    assert!(outputs[1].status.code() == Some(1) && message.contains("rank 0 is lost"), "{message}");
    succeed(data.group(&config, "headless", 2, &["--resume"]));
    assert!(data.results("headless") == data.results("whole"));
}

/// A group of one process, that is told after so many exchanges that another is lost.
struct Lost {
    exchanges: usize,
}

impl Group for Lost {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn sum(&mut self, _: &mut [f32]) -> Result<(), GroupError> {
        self.exchange()
    }

    fn sum_f64(&mut self, _: &mut [f64]) -> Result<(), GroupError> {
        self.exchange()
    }

    fn broadcast(&mut self, _: &mut [u8]) -> Result<(), GroupError> {
        self.exchange()
    }
}

impl Lost {
    fn exchange(&mut self) -> Result<(), GroupError> {
        self.exchanges =
            self.exchanges.checked_sub(1).ok_or(GroupError::Lost { rank: 1, why: "gone".into() })?;
        Ok(())
    }
}

#[test]
fn whenever_a_process_is_lost_no_update_is() {
    let data = Runs::make();
    let mut config = data.0.config(true);
    (config.train.steps, config.validation.every, config.checkpoint.every) = (6, 3, 4);
    let go_on = |name: &str, group: Box<dyn Group>| {
        let mut run = Run::open_in(&config, &data.path(name), true, group, &candle_core::Device::Cpu)?;
        run.train(None, &AtomicBool::new(false), &mut |_| {})
    };
    go_on("whole", Box::new(Alone)).unwrap();
    let (losses, results) = (data.losses("whole"), data.results("whole"));
    let mut updates = std::collections::BTreeSet::new();
    for exchanges in 0.. {
        let name = format!("lost-{exchanges}");
        match go_on(&name, Box::new(Lost { exchanges })) {
            Ok(_) => break,
            Err(TrainError::Group(GroupError::Lost { .. })) => {}
            Err(error) => panic!("after {exchanges} exchanges: {error}"),
        }
        if data.path(&name).exists() {
            let done = Run::open(&config, &data.path(&name), true).unwrap().step();
            let log = std::fs::read_to_string(data.path(&name).join("metrics.jsonl")).unwrap_or_default();
            assert_eq!(log.lines().count() as u64, done, "after {exchanges} exchanges");
            updates.insert(done);
        } else {
            assert!(updates.is_empty(), "only a run that cannot begin leaves nothing");
        }
        go_on(&name, Box::new(Alone)).unwrap();
        assert_eq!(data.losses(&name), losses, "after {exchanges} exchanges");
        assert!(data.results(&name) == results, "after {exchanges} exchanges");
        std::fs::remove_dir_all(data.path(&name)).unwrap();
    }
    assert_eq!(updates, (0..=6).collect());
}

#[test]
fn a_process_that_hangs_is_given_up_and_one_that_is_stopped_stops_all() {
    let data = Runs::make();
    let config = data.config("run.toml", 100_000, 2);
    let signal = |child: &Child, signal: &str| {
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    };
    let mut children = data.group(&config, "hung", 2, &["--peer-timeout", "2s"]);
    data.wait_for_steps("hung", 3);
    signal(&children[1], "-STOP");
    let mut hung = children.pop().unwrap();
    let output = finish(children).remove(0);
    let message = text(&output.stderr);
    assert!(message.contains("rank 1 is lost: nothing was heard of it for 2 s"), "{message}");
    hung.kill().unwrap();
    hung.wait().unwrap();

    let children = data.group(&config, "hung", 2, &["--resume", "--stopped-exit-code", "75"]);
    data.wait_for_steps("hung", 30);
    signal(&children[1], "-TERM");
    let outputs = finish(children);
    assert!(outputs.iter().all(|output| output.status.code() == Some(75)), "{}", text(&outputs[1].stderr));
    assert!(text(&outputs[0].stdout).contains("stopped after step"), "{}", text(&outputs[0].stdout));
}

#[test]
fn a_group_that_does_not_fit_together_is_refused() {
    let data = Runs::make();
    let (config, other) = (data.config("run.toml", 9, 4), data.config("other.toml", 9, 2));
    for output in finish(data.group(&config, "three", 3, &[])) {
        let message = text(&output.stderr);
        assert!(message.contains("accumulate = 4") && message.contains("3 processes"), "{message}");
    }
    let coordinator = format!("127.0.0.1:{}", port());
    let place = |rank| ["--rank", rank, "--world-size", "2", "--coordinator", &coordinator];
    let first = data.fit(&config, "mixed").args(place("0")).spawn().unwrap();
    let second = data.fit(&other, "mixed").args(place("1")).spawn().unwrap();
    let messages: Vec<_> = finish(vec![first, second]).iter().map(|output| text(&output.stderr)).collect();
    assert!(
        messages.iter().any(|message| message.contains("rank 1 and rank 0 differ in configuration")),
        "{messages:?}"
    );
    assert!(
        !data.path("mixed").exists(),
        "what cannot be trained leaves nothing that is in the way of the next start"
    );
    let lost = data.fit(&config, "lost").args(place("1")).args(["--peer-timeout", "300ms"]).output().unwrap();
    assert!(text(&lost.stderr).contains("no answer from rank 0"), "{}", text(&lost.stderr));
    let nccl =
        data.fit(&config, "nccl").args(["--collectives", "nccl", "--device", "cuda:0"]).output().unwrap();
    assert!(text(&nccl.stderr).contains("NCCL"), "{}", text(&nccl.stderr));
}

/// The batch script of `deploy/`, with stand-ins for Slurm's two programs that start its tasks on this machine.
#[test]
fn the_batch_script_starts_all_processes_and_takes_a_run_up() {
    let data = Runs::make();
    let config = data.config("run.toml", 6, 2);
    let write = |name: &str, script: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(data.path(name), script).unwrap();
        std::fs::set_permissions(data.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    std::fs::create_dir(data.path("bin")).unwrap();
    write(
        "bin/scontrol",
        "#!/bin/sh\n[ \"$1 $2 $3\" = 'show hostnames here,there' ] && echo 127.0.0.1 && echo there\n",
    );
    write(
        "bin/srun",
        "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexport SLURM_NTASKS=2\nSLURM_PROCID=1 \"$@\" &\n\
         SLURM_PROCID=0 \"$@\" && wait $!\n",
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/fit.sbatch");
    let usual = std::env::var_os("PATH").unwrap();
    let programs = [data.path("bin"), Path::new(TRAIN).parent().unwrap().to_owned()];
    let paths = programs.into_iter().chain(std::env::split_paths(&usual));
    let paths = std::env::join_paths(paths).unwrap();
    // The script makes a port of the job's number; this is the number of one that nobody listens at.
    let mut jobs = 30_000 + std::process::id() % 1000..;
    let job =
        jobs.find(|job| TcpListener::bind(("127.0.0.1", (20_000 + job % 10_000) as u16)).is_ok()).unwrap();
    for _ in 0..2 {
        let mut command = Command::new("bash");
        clear(&mut command);
        let output = command
            .arg(&script)
            .args([&config, &data.path("run")])
            .env("PATH", &paths)
            .env("SLURM_JOB_NODELIST", "here,there")
            .env("SLURM_JOB_ID", job.to_string())
            .env("SLURM_CPUS_PER_TASK", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("rank 1 of 2"), "{}", text(&output.stderr));
    }
    assert_eq!(data.losses("run").len(), 6);
}

/// The manifest of `deploy/`: its pods find each other, are as many as they think, and start the program with flags it has.
#[test]
fn the_job_fits_together_and_starts_the_program() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/fit-job.yaml");
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(&std::fs::read_to_string(manifest).unwrap()).unwrap();
    let [service, policy, job] = &documents[..] else { panic!("{documents:?}") };
    let (name, pod) = (job["metadata"]["name"].as_str().unwrap(), &job["spec"]["template"]["spec"]);
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&service["spec"]["selector"], labels);
    assert_eq!(&policy["spec"]["podSelector"]["matchLabels"], labels);
    assert_eq!(&policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"], labels);
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(pod["subdomain"], service["metadata"]["name"]);

    let container = &pod["containers"][0];
    let variables = container["env"].as_array().unwrap();
    let variable = |name| variables.iter().find(|variable| variable["name"] == name).unwrap();
    let processes: u64 = variable("SCONE_WORLD_SIZE")["value"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        (&job["spec"]["completions"], &job["spec"]["parallelism"]),
        (&processes.into(), &processes.into())
    );
    let index = &variable("SCONE_RANK")["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(index, "metadata.annotations['batch.kubernetes.io/job-completion-index']");
    assert_eq!(job["spec"]["completionMode"], "Indexed");
    let (subdomain, port) = (pod["subdomain"].as_str().unwrap(), &service["spec"]["ports"][0]["port"]);
    assert_eq!(variable("SCONE_COORDINATOR")["value"], format!("{name}-0.{subdomain}:{port}"));

    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("run.toml"), RunConfig::example().to_toml()).unwrap();
    assert_eq!(container["command"], serde_json::json!(["scone-train"]));
    let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    let arguments = arguments.iter().map(|argument| argument.replace("/data", data.path().to_str().unwrap()));
    let output = program().args(arguments).arg("--print-config").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}
