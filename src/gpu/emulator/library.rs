use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::gpu::Launch;

type Call =
    unsafe extern "C" fn(*const c_char, *const c_uint, c_uint, c_uint, *mut *mut c_void, c_int) -> c_int;

/// The kernels, compiled by the machine's C++ compiler into a library that is loaded for good.
pub(super) struct Library {
    call: Call,
    /// Threads of a block are fibers of one scheduler: one launch at a time.
    busy: Mutex<()>,
}

impl Library {
    pub(super) fn get() -> &'static Self {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        LIBRARY.get_or_init(|| Self { call: load(), busy: Mutex::new(()) })
    }

    pub(super) fn launch(&self, launch: &Launch<'_>, backwards: bool) -> Result<(), String> {
        let _one = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = CString::new(launch.kernel).unwrap();
        let mut arguments: Vec<*mut c_void> =
            launch.arguments.iter().map(|argument| std::ptr::from_ref(argument).cast_mut().cast()).collect();
        // One more than there are, so that a kernel that takes more fails for certain.
        arguments.push(std::ptr::null_mut());
        // SAFETY: the signature is that of the function in `source`; the arguments live until it returns.
        let status = unsafe {
            (self.call)(
                kernel.as_ptr(),
                launch.grid.as_ptr(),
                launch.block,
                launch.shared,
                arguments.as_mut_ptr(),
                c_int::from(backwards),
            )
        };
        match status {
            0 => Ok(()),
            1 => Err("not all threads reached a barrier, or an operand of a warp's product is misaligned"
                .to_owned()),
            2 => Err("there is no such kernel".to_owned()),
            _ => Err(format!("takes another number of arguments than {}", launch.arguments.len())),
        }
    }
}

fn load() -> Call {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu/kernels");
    let all = std::fs::read_dir(&sources).unwrap().map(|file| file.unwrap().path());
    let kernels: BTreeSet<String> =
        names(&compiler(&["-E".into(), sources.join("all.cu").display().to_string()]));
    assert!(all.count() > 3 && kernels.len() > 10, "no kernels in {}", sources.display());
    let directory = tempfile::tempdir().unwrap();
    let (source, library) = (directory.path().join("kernels.cpp"), directory.path().join("kernels.so"));
    std::fs::write(&source, registry(&sources.join("all.cu"), &kernels)).unwrap();
    let [source, output] = [&source, &library].map(|path| path.display().to_string());
    compiler(&["-O1".into(), "-shared".into(), "-fPIC".into(), "-o".into(), output.clone(), source]);
    let (path, name) = (CString::new(output).unwrap(), c"scone_launch");
    // SAFETY: the library was just made of our own sources; loading it runs the constructors of its registry only.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
        let call = libc::dlsym(library, name.as_ptr());
        assert!(!call.is_null(), "the library has no launch");
        std::mem::transmute::<*mut c_void, Call>(call)
    }
}

/// Runs the C++ compiler, and returns what it printed.
fn compiler(arguments: &[String]) -> String {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-x", "c++", "-DSCONE_EMULATED", "-U_FORTIFY_SOURCE", "-w"])
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{compiler}, with which the kernels are tested, does not start: {e}"));
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The kernels of a preprocessed source.
fn names(source: &str) -> BTreeSet<String> {
    let after = |part: &str| part.trim_start().split('(').next().map(str::to_owned);
    source.split("extern \"C\" void").skip(1).filter_map(after).collect()
}

/// All of the sources, and a way to call each kernel by its name.
fn registry(sources: &Path, kernels: &BTreeSet<String>) -> String {
    let mut text = format!("#include \"{}\"\n", sources.display());
    for kernel in kernels {
        let _ = writeln!(text, "static bool has_{kernel} = emulator::add(\"{kernel}\", {kernel});");
    }
    text + "extern \"C\" int scone_launch(const char *name, const unsigned *grid, unsigned block, unsigned shared,
                                 void **arguments, int backwards) {
    auto kernel = emulator::kernels().find(name);
    if (kernel == emulator::kernels().end()) return 2;
    return kernel->second({grid[0], grid[1], grid[2]}, block, shared, arguments, backwards);
}
"
}
