//! Processes by id: ours or not, alive or not, and their end.

use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a process is looked at while its end is waited for.
const POLL: Duration = Duration::from_millis(20);
/// How long a process that was killed may take to be gone.
const KILL_MAX: Duration = Duration::from_secs(10);
/// How often a command line that is still empty is looked at, 1 ms apart.
const EXEC_LOOKS: u32 = 50;

/// Sends a signal; a process that is gone is fine.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 1) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process runs. One that has ended and waits to be collected does not.
pub fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // the name may hold anything, parentheses too: the state follows the last one
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Words of a process's command line; none when it is gone. A process that was started this moment has an empty one until
/// the kernel has set up its program: that is waited for.
fn command_line(pid: i32) -> Vec<Vec<u8>> {
    for _ in 0..EXEC_LOOKS {
        let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !text.is_empty() {
            return text.split(|b| *b == 0).map(<[u8]>::to_vec).collect();
        }
        if !is_alive(pid) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Vec::new()
}

/// Whether a process runs this program, by its name: ids are given again.
pub fn is_program(pid: i32, name: &str) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let words = command_line(pid);
    words
        .first()
        .map(|w| Path::new(std::ffi::OsStr::from_bytes(w)))
        .and_then(Path::file_name)
        .is_some_and(|n| n == name)
}

/// Whether a process is this plane of this node: the program, and the node's socket among its words.
pub fn is_plane(pid: i32, name: &str, socket: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let socket = socket.as_os_str().as_bytes();
    is_alive(pid)
        && is_program(pid, name)
        && command_line(pid)
            .iter()
            .any(|w| w == socket || w.strip_prefix(b"--socket=").is_some_and(|s| s == socket))
}

/// Asks a process to end, waits, and kills it after `bound`. Whether it ended by itself.
pub async fn terminate(pid: i32, bound: Duration) -> bool {
    signal(pid, Signal::TERM);
    if gone(pid, bound).await {
        return true;
    }
    kill(pid).await;
    false
}

/// Kills a process. Whether it is gone after a bounded wait.
pub async fn kill(pid: i32) -> bool {
    signal(pid, Signal::KILL);
    gone(pid, KILL_MAX).await
}

/// Waits until no thread is left of a process that has died, by its name. Whether none is after a bounded wait.
pub async fn threads_gone(pid: i32, name: &str) -> bool {
    let is_left = || {
        let is_it = std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|n| n.trim_end() == name);
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
        is_it && !is_alive(pid) && threads.is_ok_and(|threads| threads.count() > 1)
    };
    let start = Instant::now();
    while is_left() {
        if start.elapsed() > KILL_MAX {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

async fn gone(pid: i32, bound: Duration) -> bool {
    let start = Instant::now();
    while is_alive(pid) {
        if start.elapsed() > bound {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn a_child_is_alive_until_it_is_terminated() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(is_alive(pid));
        assert!(is_program(pid, "sleep"));
        assert!(!is_program(pid, "fastcache-data"));
        assert!(!is_plane(pid, "sleep", Path::new("/x")));
        assert!(is_plane(pid, "sleep", Path::new("100")));
        assert!(terminate(pid, Duration::from_secs(5)).await);
        assert!(!is_alive(pid), "also while it waits to be collected");
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }
}
