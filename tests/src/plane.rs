//! Processes of a node: which they are, and signals to them.

use crate::node::find;
use serde_json::Value;

/// A process of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// `fastcache-data`.
    Data,
    /// `fastcache-ctl`, the agent.
    Agent,
    /// `fastcache-ctl up`, which watches the two.
    Supervisor,
}

/// A process that stands until this is dropped.
#[derive(Debug)]
pub struct Stopped(pub(crate) u32);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed.
        signal(self.0, rustix::process::Signal::CONT);
    }
}

/// Process id of a plane, as `node.json` tells.
pub(crate) fn pid_in(node_json: &str, plane: Plane) -> Option<u32> {
    let name = match plane {
        Plane::Data => "data",
        Plane::Agent => "agent",
        Plane::Supervisor => "supervisor",
    };
    let value: Value = serde_json::from_str(node_json).ok()?;
    let found = [
        name.to_owned(),
        format!("{name}_pid"),
        format!("pid_{name}"),
    ];
    let pid = found
        .iter()
        .find_map(|n| find(&value, n).and_then(Value::as_u64))?;
    u32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 1 && is_ours(*pid))
}

/// A process id can have been given to somebody else.
fn is_ours(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.contains("fastcache-"))
}

/// Whether there was something to kill.
pub(crate) fn kill_9(pid: u32) -> bool {
    signal(pid, rustix::process::Signal::KILL)
}

/// Whether there was a process to send it to.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}

/// Whether nothing of a process is left but its number.
pub(crate) fn is_dead(pid: u32) -> bool {
    // The state stands behind the name, which may hold anything.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()))
        .is_none_or(|rest| rest.starts_with(['Z', 'X']))
}
