//! The process is started again where something has to be so before libtorch is loaded, which is
//! before `main`.
//!
//! *OpenMP's threads are told not to spin.* libtorch's libgomp waits at barriers by spinning. Where
//! cores are shared (containers, other builds) two threads then decode in 50–100 ms a step what one
//! does in 20. `GOMP_SPINCOUNT=0` cures it and costs nothing, but libgomp reads it when it is loaded.
//!
//! *Memory that libtorch gives back is kept for what it takes next.* Tensors come and go by the
//! gigabyte in a step of a training. The C library returns large ones to the system, which clears
//! every page before it lends it again: 3 % of an update of PPO. The process keeps what it once had.
//!
//! *CUDA is loaded where it is there.* What is linked is the part of libtorch for CPUs. The part for
//! GPUs makes itself known when it is loaded, and lies beside the other if libtorch has it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variables by which a user decides how threads wait.
const WAIT: [&str; 2] = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"];

/// How glibc is told to keep memory: what is smaller than a GiB comes from its heap, which does not
/// shrink and grows by 64 MiB.
const KEEP_MEMORY: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
    ("MALLOC_TRIM_THRESHOLD_", "1099511627776"),
    ("MALLOC_TOP_PAD_", "67108864"),
];

const PRELOAD: &str = "LD_PRELOAD";
const CPU_LIBRARY: &str = "libtorch_cpu.so";
const GPU_LIBRARY: &str = "libtorch_cuda.so";

/// Replaces the process by itself if it has to be otherwise, once: what it sets is there then.
///
/// With one thread there is no barrier, and nobody spins. Call it before any thread, lock or file:
/// nothing of the process is left but its `arguments`, the name first. Returns when nothing was to be done, or with the reason why it
/// could not: the run is then slower, or on the CPU, and no less right.
pub fn prepare_process(threads: usize, arguments: &[OsString]) -> std::io::Result<()> {
    let mut variables: Vec<(&str, OsString)> = Vec::new();
    if threads > 1 && WAIT.iter().all(|name| env::var_os(name).is_none()) {
        variables.push(("GOMP_SPINCOUNT", "0".into()));
    }
    if KEEP_MEMORY.iter().all(|(name, _)| env::var_os(name).is_none()) {
        variables.extend(KEEP_MEMORY.map(|(name, value)| (name, value.into())));
    }
    let preloaded = env::var_os(PRELOAD).unwrap_or_default();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    if let Some(library) = gpu_library(&maps, &preloaded).filter(|library| library.is_file()) {
        variables.push((PRELOAD, [preloaded.as_os_str(), library.as_os_str()].join(":".as_ref())));
    }
    if variables.is_empty() { Ok(()) } else { restart(arguments, &variables) }
}

/// Where the part of libtorch for GPUs would lie, if it is neither mapped nor was asked for in vain.
fn gpu_library(maps: &str, preloaded: &OsStr) -> Option<PathBuf> {
    if maps.contains(GPU_LIBRARY) || preloaded.to_string_lossy().contains(GPU_LIBRARY) {
        return None;
    }
    let mut mapped =
        maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let of_cpu = mapped.find(|path| path.ends_with(CPU_LIBRARY))?;
    Some(of_cpu.with_file_name(GPU_LIBRARY))
}

/// Keeps the library for GPUs from a program that this process starts, which may have a libtorch of
/// its own, and what was decided about memory here.
pub fn clean_child(command: &mut Command) {
    for (name, value) in KEEP_MEMORY {
        if env::var_os(name).is_some_and(|set| set == value) {
            command.env_remove(name);
        }
    }
    let Some(preloaded) = env::var_os(PRELOAD) else { return };
    let preloaded = preloaded.to_string_lossy().into_owned();
    let kept: Vec<&str> =
        preloaded.split(':').filter(|path| !path.ends_with(GPU_LIBRARY)).collect();
    match kept.join(":") {
        kept if kept.is_empty() => command.env_remove(PRELOAD),
        kept => command.env(PRELOAD, kept),
    };
}

#[cfg(unix)]
fn restart(arguments: &[OsString], variables: &[(&str, OsString)]) -> std::io::Result<()> {
    use std::os::unix::process::CommandExt;

    let Some((shown_as, arguments)) = arguments.split_first() else { return Ok(()) };
    let variables = variables.iter().map(|(name, value)| (name, value));
    Err(Command::new(env::current_exe()?).arg0(shown_as).args(arguments).envs(variables).exec())
}

#[cfg(not(unix))]
fn restart(_arguments: &[OsString], _variables: &[(&str, OsString)]) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f10-7f20 r-xp 00000000 fe:00 11  /usr/lib/libc.so.6
7f30-7f40 r-xp 00000000 fe:00 12                         /opt/my libtorch/lib/libtorch_cpu.so
7f50-7f60 rw-p 00000000 00:00 0
";

    #[test]
    fn what_is_for_gpus_is_looked_for_beside_what_is_loaded_and_once() {
        let beside = PathBuf::from("/opt/my libtorch/lib/libtorch_cuda.so");
        assert_eq!(gpu_library(MAPS, "/lib/other.so".as_ref()), Some(beside.clone()));
        assert_eq!(gpu_library(MAPS, beside.as_os_str()), None, "it could not be loaded");
        let loaded = MAPS.replace("libc.so.6", "libtorch_cuda.so");
        assert_eq!(gpu_library(&loaded, "".as_ref()), None);
        assert_eq!(gpu_library("", "".as_ref()), None, "where nothing is known nothing is done");
    }
}
