//! With the feature `cuda`: compiles `src/gpu/kernels` with nvcc into a PTX text that is built into the program. The driver
//! makes it fit the GPU at hand when it is loaded, so one build serves every GPU from compute capability 8.0 on.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The lowest capability: tensor cores for bf16.
const CAPABILITY: &str = "compute_80";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=src/gpu/kernels");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let toolkit = std::env::var_os("CUDA_HOME").map(PathBuf::from);
    let nvcc = toolkit.as_deref().map_or(PathBuf::from("nvcc"), |toolkit| toolkit.join("bin/nvcc"));
    let output = Path::new(&std::env::var_os("OUT_DIR").unwrap_or_default()).join("kernels.ptx");
    let status = Command::new(&nvcc)
        .args(["--ptx", "-O3", "-std=c++17", "-arch", CAPABILITY, "-o"])
        .arg(&output)
        .arg("src/gpu/kernels/all.cu")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("{} could not compile src/gpu/kernels ({status})", nvcc.display())),
        Err(error) => fail(&format!(
            "{} does not start ({error}): the feature `cuda` needs NVIDIA's compiler, of CUDA 12 or 13, in PATH or under CUDA_HOME; \
             see docs/cuda.md",
            nvcc.display()
        )),
    }
}

fn fail(why: &str) -> ! {
    println!("cargo:warning={why}");
    std::process::exit(1)
}
