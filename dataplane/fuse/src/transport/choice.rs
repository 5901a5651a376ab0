//! Which transport a mount gets. Everything is looked at before FUSE_INIT: a transport that was agreed on and then cannot be
//! set up would stall the mount.

use std::path::Path;

/// The kernel's switch for FUSE over io_uring; not there on kernels without it (before 6.14).
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// What the administrator wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wish {
    /// What is best here: see docs/adr/0008.
    #[default]
    Auto,
    /// FUSE over io_uring, or an error.
    Uring,
    /// `/dev/fuse`.
    Dev,
}

/// A transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `/dev/fuse` read and written.
    Dev,
    /// FUSE over io_uring.
    Uring,
}

impl Kind {
    /// Its name in flags, status and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Dev => "dev",
            Kind::Uring => "uring",
        }
    }
}

/// A transport, and why this one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Which.
    pub kind: Kind,
    /// Why, to be read by people.
    pub why: String,
    /// No other will do.
    pub is_demanded: bool,
}

/// Why FUSE over io_uring, which was demanded, is impossible, and what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// The kernel does not have it.
    #[error(
        "--fuse-transport uring: this kernel has no FUSE over io_uring ({PARAMETER} does not exist; it comes with Linux 6.14, built with CONFIG_FUSE_IO_URING): use auto or dev"
    )]
    NoKernel,
    /// It is switched off.
    #[error(
        "--fuse-transport uring: FUSE over io_uring is switched off: run `echo Y > {PARAMETER}` as root (fuse.enable_uring=1 on the kernel's command line makes it last), or use auto or dev"
    )]
    Off,
    /// The ring it needs cannot be made.
    #[error(
        "--fuse-transport uring: a ring with entries of 128 bytes cannot be made ({0}): use auto or dev"
    )]
    NoRing(String),
}

/// What the host has.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Host {
    /// The parameter's text.
    parameter: Option<String>,
    /// Why a wide ring cannot be made.
    ring: Result<(), String>,
}

impl Host {
    fn look() -> Host {
        Host {
            parameter: std::fs::read_to_string(Path::new(PARAMETER)).ok(),
            ring: fastcache_reactor::has_wide_entries().map_err(|e| e.to_string()),
        }
    }

    fn has_uring(&self) -> Result<(), ChoiceError> {
        match self.parameter.as_deref().map(str::trim) {
            None => Err(ChoiceError::NoKernel),
            Some("Y" | "y" | "1") => self.ring.clone().map_err(ChoiceError::NoRing),
            Some(_) => Err(ChoiceError::Off),
        }
    }
}

/// Looks at the host and decides.
///
/// # Errors
/// When FUSE over io_uring is demanded and impossible.
pub fn choose(wish: Wish) -> Result<Choice, ChoiceError> {
    match wish {
        Wish::Dev => Ok(Choice::dev("it was asked for")),
        Wish::Uring | Wish::Auto => decide(wish, &Host::look()),
    }
}

fn decide(wish: Wish, host: &Host) -> Result<Choice, ChoiceError> {
    match (wish, host.has_uring()) {
        (Wish::Dev, _) => Ok(Choice::dev("it was asked for")),
        (Wish::Uring, Ok(())) => Ok(Choice {
            kind: Kind::Uring,
            why: "it was asked for".to_owned(),
            is_demanded: true,
        }),
        (Wish::Uring, Err(error)) => Err(error),
        // Measured: better for requests one by one, worse for many at once. See docs/adr/0008.
        (Wish::Auto, Ok(())) => Ok(Choice::dev(
            "it is the faster one for most loads; this host has FUSE over io_uring too (--fuse-transport uring)",
        )),
        (Wish::Auto, Err(ChoiceError::NoKernel)) => {
            Ok(Choice::dev("this kernel has no FUSE over io_uring"))
        }
        (Wish::Auto, Err(ChoiceError::Off)) => Ok(Choice::dev(
            "FUSE over io_uring is switched off (fuse.enable_uring is N)",
        )),
        (Wish::Auto, Err(ChoiceError::NoRing(error))) => Ok(Choice::dev(&format!(
            "a ring with entries of 128 bytes cannot be made: {error}"
        ))),
    }
}

impl Choice {
    /// `/dev/fuse`.
    #[must_use]
    pub fn dev(why: &str) -> Choice {
        Choice {
            kind: Kind::Dev,
            why: why.to_owned(),
            is_demanded: false,
        }
    }

    /// Whether it is FUSE over io_uring.
    #[must_use]
    pub fn is_uring(&self) -> bool {
        self.kind == Kind::Uring
    }

    /// What it is after the kernel has said whether it goes along.
    pub(crate) fn after(&self, over_io_uring: bool) -> Choice {
        if self.is_uring() && !over_io_uring {
            return Choice::dev("the kernel did not offer FUSE over io_uring");
        }
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    //! What is decided on hosts of each kind.

    use super::*;

    fn host(parameter: Option<&str>) -> Host {
        Host {
            parameter: parameter.map(str::to_owned),
            ring: Ok(()),
        }
    }

    #[test]
    fn a_demand_is_met_or_refused_with_what_to_do() {
        assert!(decide(Wish::Uring, &host(Some("Y\n"))).unwrap().is_uring());
        let off = decide(Wish::Uring, &host(Some("N\n"))).unwrap_err();
        assert!(off.to_string().contains("echo Y > /sys/module/fuse"));
        assert_eq!(decide(Wish::Uring, &host(None)), Err(ChoiceError::NoKernel));
        let no_ring = Host {
            ring: Err("forbidden".to_owned()),
            ..host(Some("Y"))
        };
        let error = decide(Wish::Uring, &no_ring).unwrap_err();
        assert!(error.to_string().contains("forbidden"));
    }

    #[test]
    fn auto_never_fails_and_says_why() {
        for parameter in [None, Some("N"), Some("Y"), Some("")] {
            let choice = decide(Wish::Auto, &host(parameter)).unwrap();
            assert!(!choice.is_demanded && !choice.why.is_empty());
            assert!(!choice.is_uring(), "what measures better: docs/adr/0008");
        }
        let back = Choice {
            kind: Kind::Uring,
            why: String::new(),
            is_demanded: false,
        };
        assert!(back.after(true).is_uring() && !back.after(false).is_uring());
    }
}
