//! A network of a test's own: the names and addresses of the clouds lead to servers of this machine, and nothing leaves
//! it.

use crate::machine::run;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::UnshareFlags;
use std::process::Command;

/// Addresses at which clouds tell instances and containers their credentials: EC2 and Azure, ECS, EKS.
const METADATA: [&str; 3] = ["169.254.169.254", "169.254.170.2", "169.254.170.23"];

/// Runs a test on a thread with a network of its own, and what it starts with it. There is a loopback interface with
/// 127.0.0.0/8 and the metadata addresses, all ports are free, and `hosts` (address, names) is all that can be resolved
/// besides `localhost`. What the test mounts is seen by the test alone.
///
/// # Panics
/// As the test does; without root.
pub fn on_an_island<T: Send>(hosts: &[(&str, &str)], test: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| {
        let run = || {
            cut_off(hosts);
            test()
        };
        scope.spawn(run).join()
    });
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn cut_off(hosts: &[(&str, &str)]) {
    let own = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    // SAFETY: this thread gets name spaces of its own, and a working directory; its table of file descriptors, which
    // the safety of this call is about, stays shared.
    unsafe { rustix::thread::unshare_unsafe(own) }
        .unwrap_or_else(|e| panic!("no network of its own: {e}; run the tests as root"));
    // What is unmounted outside goes here, too; what is mounted here stays here.
    let flags = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
    mount_change("/", flags).unwrap_or_else(|e| panic!("mounts of its own: {e}"));
    let mut table = "127.0.0.1 localhost\n".to_owned();
    for (address, names) in hosts {
        table.push_str(&format!("{address} {names}\n"));
    }
    let file = tempfile::NamedTempFile::new().unwrap_or_else(|e| panic!("hosts: {e}"));
    std::fs::write(file.path(), table).unwrap_or_else(|e| panic!("hosts: {e}"));
    // The mount keeps the file when its name goes.
    mount_bind(file.path(), "/etc/hosts").unwrap_or_else(|e| panic!("/etc/hosts: {e}"));
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
    for address in METADATA {
        let address = format!("{address}/32");
        run(Command::new("ip").args(["address", "add", &address, "dev", "lo"]));
    }
}
