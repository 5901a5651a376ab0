//! Flags, environment and configuration file of `fastcache-data`. Flags win over the environment, that over the
//! file, that over the defaults.

use anyhow::{Context, Result, bail};
use clap::Parser;
use fastcache_api::settings::{AGENT_KEYS, unknown_key};
use fastcache_fuse::Wish;
use fastcache_peer::Token;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The data plane of a fastcache node: serves the FUSE mount from local NVMe, and moves bytes for the agent.
///
/// It never talks to the cloud or the coordinator: start `fastcache-ctl` on the same machine with the same --socket.
/// For a whole single node in one command see `fastcache-ctl up`.
#[derive(Parser, Debug)]
#[command(name = "fastcache-data", version)]
struct Flags {
    /// Block device, partition, file, or directory (which gets one file) that holds the chunks.
    #[arg(long, env = "FASTCACHE_NVME", value_name = "PATH")]
    nvme: Option<PathBuf>,
    /// Capacity when --nvme is a file or directory: bytes, or with KiB, MiB, GiB, TiB [default: 10GiB].
    #[arg(long, env = "FASTCACHE_NVME_CAPACITY", value_name = "SIZE")]
    nvme_capacity: Option<String>,
    /// Make a new, empty store. Everything in it that is not in the cloud is lost.
    #[arg(long)]
    format: bool,
    /// With --format: also where something else is stored.
    #[arg(long)]
    force: bool,
    /// Make the index of the store anew from the headers of its chunks, which reads the whole device. Only for a store
    /// whose checkpoints and journal are not to be trusted: what they alone know is lost.
    #[arg(long, conflicts_with = "format")]
    rebuild_index: bool,
    /// Directory to mount on.
    #[arg(long, env = "FASTCACHE_MOUNT", value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Control socket, on which the agent connects [default: /run/fastcache/data.sock].
    #[arg(long, env = "FASTCACHE_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Address for other nodes, which read chunks from here [default: 0.0.0.0:8082 with a cluster token; without one nothing
    /// listens].
    #[arg(long, env = "FASTCACHE_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Secret that the nodes of a cluster share, at least 16 characters; better in the environment or a file, where the
    /// process list does not show it.
    #[arg(
        long,
        env = "FASTCACHE_CLUSTER_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    cluster_token: Option<String>,
    /// File that holds the cluster token.
    #[arg(
        long,
        env = "FASTCACHE_CLUSTER_TOKEN_FILE",
        value_name = "FILE",
        conflicts_with = "cluster_token"
    )]
    cluster_token_file: Option<PathBuf>,
    /// Processors to use, as in 0-3,8; one thread and one ring each [default: all].
    #[arg(long, env = "FASTCACHE_CORES", value_name = "LIST")]
    cores: Option<String>,
    /// How requests come from the kernel: auto, uring (FUSE over io_uring) or dev (/dev/fuse) [default: auto].
    #[arg(long, env = "FASTCACHE_FUSE_TRANSPORT", value_name = "TRANSPORT")]
    fuse_transport: Option<String>,
    /// Most that is read ahead of sequential readers and waits for them, at most a sixteenth of the store; 0: nothing
    /// [default: 256MiB].
    #[arg(long, env = "FASTCACHE_READ_AHEAD", value_name = "SIZE")]
    read_ahead: Option<String>,
    /// Most memory that the process may take, bytes or with KiB, MiB, GiB [default: an eighth of the machine's, and
    /// not less than it needs].
    #[arg(long, env = "FASTCACHE_MEMORY", value_name = "SIZE")]
    memory: Option<String>,
    /// Most of it for checksums of chunks [default: what the rest leaves].
    #[arg(long, env = "FASTCACHE_CHECKSUM_MEMORY", value_name = "SIZE")]
    checksum_memory: Option<String>,
    /// Configuration file (TOML) with the same names as the flags.
    #[arg(long, env = "FASTCACHE_DATA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    nvme: Option<PathBuf>,
    nvme_capacity: Option<String>,
    mount: Option<PathBuf>,
    socket: Option<PathBuf>,
    listen: Option<String>,
    cluster_token: Option<String>,
    cluster_token_file: Option<PathBuf>,
    cores: Option<String>,
    fuse_transport: Option<String>,
    read_ahead: Option<String>,
    memory: Option<String>,
    checksum_memory: Option<String>,
}

/// How this node and others reach each other.
#[derive(Clone, Debug)]
pub struct Peers {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What they share.
    pub token: Token,
}

/// What the data plane runs with.
#[derive(Debug)]
pub struct Config {
    /// Where the chunks are.
    pub nvme: PathBuf,
    /// Capacity of a file-backed store, bytes.
    pub capacity_bytes: u64,
    /// Make a new store.
    pub format: bool,
    /// Also over something else.
    pub force: bool,
    /// Take the index from the headers of the chunks.
    pub rebuild_index: bool,
    /// The mount point.
    pub mount: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// One thread for each of these processors.
    pub cpus: Vec<usize>,
    /// How requests are to come.
    pub transport: Wish,
    /// Most that is read ahead, bytes.
    pub read_ahead_bytes: u64,
    /// Budget of memory, bytes; `None`: as the machine is.
    pub memory_bytes: Option<u64>,
    /// Bound of the checksums in it, bytes.
    pub checksum_memory_bytes: Option<u64>,
    /// Other nodes; `None`: there is nothing to do with them.
    pub peers: Option<Peers>,
}

impl Config {
    /// From the command line, the environment and the file they name.
    pub fn load() -> Result<Config> {
        let flags = Flags::parse();
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let nvme = flags.nvme.or(file.nvme);
        let Some(nvme) = nvme else {
            bail!(
                "--nvme PATH is missing: name a block device, partition, file or directory for the chunks"
            );
        };
        let Some(mount) = flags.mount.or(file.mount) else {
            bail!("--mount DIR is missing: name the directory to mount on");
        };
        let capacity = flags.nvme_capacity.or(file.nvme_capacity);
        let capacity_bytes =
            parse_size(capacity.as_deref().unwrap_or("10GiB")).context("--nvme-capacity")?;
        // Of one place: a flag or a variable is not mixed with the file.
        let (token, token_file) = match (flags.cluster_token, flags.cluster_token_file) {
            (None, None) => (file.cluster_token, file.cluster_token_file),
            given => given,
        };
        let peers = peers_of(flags.listen.or(file.listen), token, token_file)?;
        let cpus = match flags.cores.or(file.cores) {
            Some(list) => parse_cores(&list).context("--cores")?,
            None => allowed_cpus()?,
        };
        let transport = flags.fuse_transport.or(file.fuse_transport);
        let transport = transport
            .as_deref()
            .map_or(Ok(Wish::Auto), parse_transport)?;
        let read_ahead_bytes = match flags.read_ahead.or(file.read_ahead) {
            Some(size) => parse_size(&size).context("--read-ahead")?,
            None => fastcache_cache::READ_AHEAD_BYTES,
        };
        let size = |text: Option<String>, flag: &'static str| {
            text.map(|text| parse_size(&text).context(flag)).transpose()
        };
        let memory_bytes = size(flags.memory.or(file.memory), "--memory")?;
        let checksum_memory_bytes = size(
            flags.checksum_memory.or(file.checksum_memory),
            "--checksum-memory",
        )?;
        let socket = flags.socket.or(file.socket);
        Ok(Config {
            nvme,
            capacity_bytes,
            format: flags.format,
            force: flags.force,
            rebuild_index: flags.rebuild_index,
            mount,
            socket: socket.unwrap_or_else(|| PathBuf::from("/run/fastcache/data.sock")),
            cpus,
            transport,
            read_ahead_bytes,
            memory_bytes,
            checksum_memory_bytes,
            peers,
        })
    }
}

/// Keys of the file that are the data plane's.
const KEYS: &[&str] = &[
    "nvme",
    "nvme-capacity",
    "mount",
    "socket",
    "listen",
    "cluster-token",
    "cluster-token-file",
    "cores",
    "fuse-transport",
    "read-ahead",
    "memory",
    "checksum-memory",
];

fn read_file(path: &Path) -> Result<File> {
    let at = path.display();
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("the configuration file {at} cannot be read; check what --config names")
    })?;
    parse_file(&text).map_err(|e| anyhow::anyhow!("the configuration file {at}: {e}"))
}

/// Takes what is the data plane's; one file may serve both planes. Messages never quote a line, which may hold a secret
/// of the agent.
fn parse_file(text: &str) -> Result<File, String> {
    let line_of = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let message = |e: toml::de::Error| match e.span() {
        Some(span) => format!("line {}: {}", line_of(span.start), e.message()),
        None => e.message().to_owned(),
    };
    let mut table: toml::Table = toml::from_str(text).map_err(message)?;
    let known = [KEYS, AGENT_KEYS].concat();
    if let Some(key) = table.keys().find(|k| !known.contains(&k.as_str())) {
        return Err(unknown_key(key, &known));
    }
    table.retain(|key, _| KEYS.contains(&key));
    table.try_into().map_err(message)
}

/// Whether, where and how other nodes are served. Messages never quote the token.
fn peers_of(
    listen: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
) -> Result<Option<Peers>> {
    let address = listen.as_deref().unwrap_or("0.0.0.0:8082");
    let address: SocketAddr = address
        .parse()
        .with_context(|| format!("--listen {address:?} is not ADDRESS:PORT"))?;
    let (token, from) = match (token, token_file) {
        (Some(_), Some(_)) => {
            bail!("cluster-token and cluster-token-file: one of them")
        }
        (Some(token), None) => (token.into_bytes(), "--cluster-token".to_owned()),
        (None, Some(path)) => {
            let from = format!("--cluster-token-file {}", path.display());
            let token = std::fs::read(&path).with_context(|| format!("{from} cannot be read"))?;
            (token, from)
        }
        (None, None) if listen.is_some() => bail!(
            "--listen is for other nodes, which have to show the cluster token: give --cluster-token-file FILE (the same on every node), or leave --listen out"
        ),
        (None, None) => return Ok(None),
    };
    let token = Token::new(&token).map_err(|why| anyhow::anyhow!("{from}: {why}"))?;
    Ok(Some(Peers {
        listen: address,
        token,
    }))
}

/// A size as people write it: `10GiB`, `512 MiB`, `4096`. Binary units only, so that nobody guesses.
fn parse_size(text: &str) -> Result<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .with_context(|| format!("{text:?} does not start with a whole number"))?;
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" | "K" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        "TiB" | "T" => 40,
        other => bail!("unknown unit {other:?} in {text:?}: use KiB, MiB, GiB or TiB"),
    };
    number
        .checked_mul(1 << shift)
        .with_context(|| format!("{text:?} is too large"))
}

/// A transport by its name.
fn parse_transport(text: &str) -> Result<Wish> {
    match text {
        "auto" => Ok(Wish::Auto),
        "uring" => Ok(Wish::Uring),
        "dev" => Ok(Wish::Dev),
        other => bail!("--fuse-transport {other:?}: it is auto, uring or dev"),
    }
}

/// A list of processors: `0-3,8`.
fn parse_cores(text: &str) -> Result<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let wrong = || format!("{part:?} is not a processor or a range like 0-3");
        let (from, to) = part
            .trim()
            .split_once('-')
            .unwrap_or((part.trim(), part.trim()));
        let (from, to): (usize, usize) = (
            from.parse().with_context(wrong)?,
            to.parse().with_context(wrong)?,
        );
        if from > to || to > 4095 {
            bail!(wrong());
        }
        cpus.extend(from..=to);
    }
    let allowed = allowed_cpus()?;
    if let Some(missing) = cpus.iter().find(|c| !allowed.contains(c)) {
        bail!("processor {missing} is not available to this process; available: {allowed:?}");
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// The processors this process may run on.
fn allowed_cpus() -> Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None).context("which processors may be used")?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|c| set.is_set(*c))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_made_anew_or_the_store_is_but_not_both() {
        let parse = |more: &[&str]| {
            let base = ["fastcache-data", "--nvme", "/n", "--mount", "/m"];
            Flags::try_parse_from(base.iter().chain(more))
        };
        assert!(!parse(&[]).unwrap().rebuild_index);
        assert!(parse(&["--rebuild-index"]).unwrap().rebuild_index);
        let both = parse(&["--rebuild-index", "--format"]).unwrap_err();
        assert!(both.to_string().contains("cannot be used with"));
    }

    #[test]
    fn other_nodes_are_served_with_a_token_or_not_at_all() {
        let text = |t: &str| Some(t.to_owned());
        assert!(peers_of(None, None, None).unwrap().is_none());
        let token = "0123456789abcdef";
        let peers = peers_of(None, text(token), None).unwrap().unwrap();
        assert_eq!(peers.listen.to_string(), "0.0.0.0:8082");
        assert!(!format!("{peers:?}").contains(token));
        let peers = peers_of(text("[::1]:0"), text(token), None).unwrap();
        assert_eq!(peers.unwrap().listen.to_string(), "[::1]:0");
        let refused =
            |listen, token, file| format!("{:#}", peers_of(listen, token, file).unwrap_err());
        assert!(refused(text("here"), text(token), None).contains("ADDRESS:PORT"));
        assert!(refused(text("0.0.0.0:1"), None, None).contains("--cluster-token-file"));
        let short = refused(None, text("hunter2"), None);
        assert!(
            short.contains("16") && !short.contains("hunter2"),
            "{short}"
        );
        assert!(refused(None, None, Some("/nowhere/at/all".into())).contains("cannot be read"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, format!("{token}\n")).unwrap();
        assert!(peers_of(None, None, Some(path.clone())).unwrap().is_some());
        std::fs::write(&path, "\n").unwrap();
        assert!(refused(None, None, Some(path)).contains("has 0 bytes"));
        assert!(refused(None, text(token), Some("/t".into())).contains("one of them"));
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("10GiB").unwrap(), 10 << 30);
        assert_eq!(parse_size(" 256 MiB ").unwrap(), 256 << 20);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        assert_eq!(parse_size("0").unwrap(), 0);
        for wrong in ["", "GiB", "10GB", "1e3", "-1", "99999999999TiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_shared_with_the_agent_and_misspellings_are_named() {
        let file = parse_file("mount = \"/m\"\ns3-bucket = \"b\"\napi-key = \"x\"\n").unwrap();
        assert_eq!(file.mount.unwrap(), Path::new("/m"));
        let error = |text: &str| parse_file(text).map(drop).unwrap_err();
        assert!(error("api-kee = \"hunter2\"").contains("did you mean `api-key`"));
        assert!(error("nvme_capacity = 3").contains("did you mean `nvme-capacity`"));
        for text in ["\n\napi-key = \"hunter2", "cores = 3", "mount = ["] {
            assert!(!error(text).contains("hunter2"), "{}", error(text));
        }
        assert!(error("\n\nmount = [").starts_with("line 3"));
    }

    #[test]
    fn transports() {
        assert_eq!(parse_transport("auto").unwrap(), Wish::Auto);
        assert_eq!(parse_transport("uring").unwrap(), Wish::Uring);
        assert_eq!(parse_transport("dev").unwrap(), Wish::Dev);
        for wrong in ["", "URING", "io_uring", "fuse"] {
            let error = parse_transport(wrong).unwrap_err().to_string();
            assert!(error.contains("auto, uring or dev"), "{error}");
        }
        let file = parse_file("fuse-transport = \"dev\"\n").unwrap();
        assert_eq!(file.fuse_transport.as_deref(), Some("dev"));
    }

    #[test]
    fn core_lists() {
        assert_eq!(parse_cores("0").unwrap(), vec![0]);
        for wrong in ["", "a", "3-1", "0-", "5000"] {
            assert!(parse_cores(wrong).is_err(), "{wrong}");
        }
    }
}
