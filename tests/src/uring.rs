//! FUSE over io_uring switched on in the kernel for a while, and put back.

use std::sync::Mutex;

/// The kernel's switch.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// How many want it on, and what it said before the first.
static USERS: Mutex<(usize, String)> = Mutex::new((0, String::new()));

/// Keeps FUSE over io_uring switched on. The last one puts back what was there.
#[derive(Debug)]
pub struct UringOn(());

impl UringOn {
    /// Whether this kernel has FUSE over io_uring.
    pub fn is_possible() -> bool {
        std::path::Path::new(PARAMETER).exists()
    }

    /// Switches it on.
    ///
    /// # Panics
    /// When this kernel does not have it.
    #[track_caller]
    #[allow(
        clippy::new_without_default,
        reason = "it changes the machine: nothing to make by default"
    )]
    pub fn new() -> UringOn {
        let mut users = USERS.lock().expect("lock");
        if users.0 == 0 {
            users.1 = std::fs::read_to_string(PARAMETER).unwrap_or_else(|e| {
                panic!(
                    "this kernel has no FUSE over io_uring ({PARAMETER}: {e}): it comes with Linux 6.14 and \
                     CONFIG_FUSE_IO_URING; run the tests without FASTCACHE_TEST_TRANSPORT=uring"
                )
            });
            set("Y");
        }
        users.0 += 1;
        UringOn(())
    }
}

impl Drop for UringOn {
    fn drop(&mut self) {
        let mut users = USERS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        users.0 -= 1;
        if users.0 == 0 {
            set(users.1.trim());
        }
    }
}

/// The transport of nodes whose flags name none: `uring` with `FASTCACHE_TEST_TRANSPORT=uring`, else `dev`. For `uring` it is
/// switched on in the kernel as long as the node lives.
///
/// # Panics
/// When the variable says something else, or this kernel has no such transport.
#[track_caller]
pub(crate) fn transport_of(flags: &[String]) -> Option<UringOn> {
    let named = flags
        .iter()
        .position(|f| f == "--fuse-transport")
        .and_then(|at| flags.get(at + 1).cloned());
    let wanted = named.or_else(|| std::env::var("FASTCACHE_TEST_TRANSPORT").ok());
    match wanted.as_deref() {
        None | Some("" | "dev" | "auto") => None,
        Some("uring") => Some(UringOn::new()),
        Some(other) => panic!("FASTCACHE_TEST_TRANSPORT={other}: it is dev or uring"),
    }
}

/// Writes the switch; another program that tests may have it on at the same time, which harms nobody.
fn set(value: &str) {
    std::fs::write(PARAMETER, value).unwrap_or_else(|e| panic!("{PARAMETER}: {e}"));
}

/// FUSE over io_uring switched off, and put back when this is dropped.
#[derive(Debug)]
pub struct UringOff(String);

impl UringOff {
    /// Switches it off.
    ///
    /// # Panics
    /// When this kernel does not have it.
    #[allow(
        clippy::new_without_default,
        reason = "it changes the machine: nothing to make by default"
    )]
    pub fn new() -> UringOff {
        let before =
            std::fs::read_to_string(PARAMETER).unwrap_or_else(|e| panic!("{PARAMETER}: {e}"));
        set("N");
        UringOff(before)
    }
}

impl Drop for UringOff {
    fn drop(&mut self) {
        set(self.0.trim());
    }
}
