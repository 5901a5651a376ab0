//! A network of a test's own: the names and addresses of the clouds lead to servers of this machine, and nothing leaves
//! it.

use crate::machine::run;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
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

/// A network beside that of an island's test, and the cable between the two, which can be pulled out.
#[derive(Debug)]
pub struct Cable {
    network: OwnedFd,
}

impl Cable {
    /// Address of the test's own end.
    pub const NEAR: &str = "10.97.1.1";
    /// Address of the other end.
    pub const FAR: &str = "10.97.1.2";
    /// The interface at the test's own end.
    const LINK: &str = "near";

    /// One for each island; to be called by its test.
    ///
    /// # Panics
    /// Without root.
    pub fn lay() -> Cable {
        let network = std::thread::scope(|scope| {
            let far = scope.spawn(|| {
                // SAFETY: this thread gets a network of its own; its table of file descriptors stays shared.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap_or_else(
                    |e| panic!("no network of its own: {e}; run the tests as root"),
                );
                std::fs::File::open("/proc/thread-self/ns/net").unwrap_or_else(|e| panic!("{e}"))
            });
            OwnedFd::from(far.join().expect("a network"))
        });
        let far = format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd());
        let ip = |args: &[&str]| run(Command::new("ip").args(args));
        let near = ["link", "add", Cable::LINK, "type", "veth", "peer", "name"];
        ip(&[&near[..], &["far", "netns", &far]].concat());
        let address = |address: &str, device: &str| {
            ip(&["address", "add", &format!("{address}/24"), "dev", device]);
            ip(&["link", "set", device, "up"]);
        };
        address(Cable::NEAR, Cable::LINK);
        let cable = Cable { network };
        cable.at_far_end(|| {
            ip(&["link", "set", "lo", "up"]);
            address(Cable::FAR, "far");
        });
        cable
    }

    /// Does something at the other end: what it starts stays there.
    ///
    /// # Panics
    /// As `what` does.
    pub fn at_far_end<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let done = std::thread::scope(|scope| {
            let there = || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.network.as_fd(), kind)
                    .unwrap_or_else(|e| panic!("the other network: {e}"));
                what()
            };
            scope.spawn(there).join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Nothing goes through any more, and nobody is told.
    pub fn pull(&self) {
        run(Command::new("ip").args(["link", "set", Cable::LINK, "down"]));
    }

    /// It is back.
    pub fn plug_in(&self) {
        run(Command::new("ip").args(["link", "set", Cable::LINK, "up"]));
    }
}
