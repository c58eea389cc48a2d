//! OpenMP's threads are told not to spin.
//!
//! libtorch's libgomp waits at barriers by spinning. Where cores are shared (containers, other
//! builds) two threads then decode in 50–100 ms a step what one does in 20. `GOMP_SPINCOUNT=0`
//! cures it and costs nothing, but libgomp reads it when it is loaded, which is before `main`: so
//! the process has to be started again.

use std::env;
use std::ffi::OsStr;

/// The variables by which a user decides this.
const DECIDED_BY: [&str; 2] = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"];

/// Replaces the process by itself with `GOMP_SPINCOUNT=0`, if more than one thread will compute
/// and the environment does not say how threads wait.
///
/// Call it before any thread, lock or file: nothing of the process is left. With one thread there
/// is no barrier, and nothing is done. Returns when nothing was to be done, or with the reason
/// why it could not: the run is then slower and no less right.
pub fn quiet_openmp(threads: usize) -> std::io::Result<()> {
    if threads < 2 || DECIDED_BY.iter().any(|name| env::var_os(name).is_some()) {
        return Ok(());
    }
    restart("GOMP_SPINCOUNT", "0".as_ref())
}

#[cfg(unix)]
fn restart(name: &str, value: &OsStr) -> std::io::Result<()> {
    use std::os::unix::process::CommandExt;

    let mut arguments = env::args_os();
    let shown_as = arguments.next().unwrap_or_default();
    Err(std::process::Command::new(env::current_exe()?)
        .arg0(shown_as)
        .args(arguments)
        .env(name, value)
        .exec())
}

#[cfg(not(unix))]
fn restart(_name: &str, _value: &OsStr) -> std::io::Result<()> {
    Ok(())
}
