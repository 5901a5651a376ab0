//! The command line: every flag and subcommand, with what `--help` says. Nothing is decided here; an absent flag is
//! `None`, so that [`crate::settings`] can lay flags over environment, file and defaults.

use crate::commands::check::{FsckFlags, GcFlags};
use crate::commands::stats::StatsFlags;
use crate::commands::tune::TuneFlags;
use crate::settings::cloud::CloudFlags;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fastcache_agent::Secret;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::PathBuf;

/// fastcache: one file system on NVMe and a cloud object store.
///
/// Without a subcommand this is the node's agent: it connects to the data plane (fastcache-data) of this machine,
/// keeps or reaches the namespace, moves chunks to and from the object store and serves REST. `up` runs a whole
/// node, both planes, under one supervisor.
///
/// A setting comes from its flag, else from its environment variable, else from the configuration file, else it has
/// the default named here.
#[derive(Debug, Parser)]
#[command(
    name = "fastcache-ctl",
    version,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// Settings of the agent.
    #[command(flatten)]
    pub agent: AgentFlags,
    /// Something else than the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What else there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the cluster's registry and namespace.
    Coordinator(Box<CoordinatorFlags>),
    /// Run a whole node: both planes, supervised, with everything it keeps in one directory.
    Up(Box<UpFlags>),
    /// Stop the node that `up` started: flush, unmount, upload what can be.
    Down(DownFlags),
    /// Whether the node is healthy, how full, how dirty, and which tier answers reads; ends with 1 when it is not
    Status(StatusFlags),
    /// What the node does now: rates, line by line
    Stats(StatsFlags),
    /// Where a file is safe: dirty, replicated N or persisted, with its chunks and objects.
    State(StateFlags),
    /// Upload what is dirty, of one file or everything.
    Flush(FlushFlags),
    /// Evict clean chunks, of one file or directory or all, and the kernel's pages of those files.
    Evict(EvictFlags),
    /// Bring a file, or the files below a directory, to this node before they are read
    Warmup(WarmFlags),
    /// Bring them here and keep them: pinned files are not evicted
    Pin(WarmFlags),
    /// Let pinned files be evicted again
    Unpin(WarmFlags),
    /// Find objects in the bucket that nothing names, and with --delete delete them
    Gc(GcFlags),
    /// Check metadata, objects and this node's chunks against each other
    Fsck(FsckFlags),
    /// Which limits of this machine cost speed, and with --apply change them
    Tune(TuneFlags),
    /// Restore the namespace of a stopped node or coordinator from the bucket.
    Rebuild(Box<RebuildFlags>),
    /// Print the agent's effective settings; secrets are shown as ***.
    Config(Box<ConfigFlags>),
}

/// Which object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Amazon S3, or a server that speaks it.
    S3,
    /// Azure Blob Storage.
    Azure,
    /// A directory.
    Dir,
    /// None: everything stays dirty on the node.
    None,
}

/// How requests come from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FuseTransport {
    /// What is best on this host.
    Auto,
    /// FUSE over io_uring; an error where the host does not have it.
    Uring,
    /// `/dev/fuse`.
    Dev,
}

impl FuseTransport {
    /// Its name, as a flag's value.
    pub fn name(self) -> &'static str {
        match self {
            FuseTransport::Auto => "auto",
            FuseTransport::Uring => "uring",
            FuseTransport::Dev => "dev",
        }
    }
}

/// Where `up` has its planes log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogTo {
    /// Files in DIR/log.
    #[default]
    Files,
    /// Standard error of the supervisor, as containers want it.
    Stderr,
}

/// What an `fsync` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// The node's device.
    Local,
    /// The node's device, and other nodes' devices or the object store, whichever is first.
    Peers,
    /// The object store.
    Cloud,
}

pub(crate) fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// Which object store: the same for every process that uses one.
#[derive(Clone, Debug, Default, Args)]
pub struct StoreFlags {
    /// The object store [default: s3; `up`: dir]
    #[arg(
        long,
        value_enum,
        value_name = "PROVIDER",
        env = "FASTCACHE_CLOUD_PROVIDER"
    )]
    pub cloud_provider: Option<Provider>,
    /// Bucket; it must exist [default: fuse-client-cache]. Credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
    #[arg(long, value_name = "NAME", env = "FASTCACHE_S3_BUCKET")]
    pub s3_bucket: Option<String>,
    /// Region [also: AWS_REGION; default: us-east-1]
    #[arg(long, value_name = "REGION", env = "FASTCACHE_S3_REGION")]
    pub s3_region: Option<String>,
    /// http(s)://HOST:PORT of an S3 server that is not Amazon's [also: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL", env = "FASTCACHE_S3_ENDPOINT")]
    pub s3_endpoint: Option<String>,
    /// Storage account [also: AZURE_STORAGE_ACCOUNT]
    #[arg(long, value_name = "NAME", env = "FASTCACHE_AZURE_ACCOUNT")]
    pub azure_account: Option<String>,
    /// Its key; better in AZURE_STORAGE_KEY, where the process list does not show it
    #[arg(long, value_name = "KEY", env = "FASTCACHE_AZURE_KEY", hide_env_values = true, value_parser = secret)]
    pub azure_key: Option<Secret>,
    /// Container; it must exist [also: AZURE_CONTAINER_NAME; default: fuse-cache]
    #[arg(long, value_name = "NAME", env = "FASTCACHE_AZURE_CONTAINER")]
    pub azure_container: Option<String>,
    /// URL of an Azure server that is not Microsoft's
    #[arg(long, value_name = "URL", env = "FASTCACHE_AZURE_ENDPOINT")]
    pub azure_endpoint: Option<String>,
    /// Directory of the provider `dir` [`up`: DIR/cloud]
    #[arg(long, value_name = "DIR", env = "FASTCACHE_CLOUD_DIR")]
    pub cloud_dir: Option<PathBuf>,
    /// The object store beyond its name.
    #[command(flatten)]
    pub cloud: CloudFlags,
}

/// Settings of the agent.
#[derive(Clone, Debug, Default, Args)]
pub struct AgentFlags {
    /// The cluster's coordinator [default: none, an embedded one in --state-dir]
    #[arg(long, value_name = "HOST:PORT", env = "FASTCACHE_COORDINATOR")]
    pub coordinator: Option<String>,
    /// The data plane's control socket [default: /run/fastcache/data.sock; `up`: DIR/run/data.sock]
    #[arg(long, value_name = "PATH", env = "FASTCACHE_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Port of REST; 0 takes a free one [default: 8081; `up`: 8081, or a free one when that is taken]
    #[arg(long, value_name = "PORT", env = "FASTCACHE_PORT")]
    pub port: Option<u16>,
    /// Address REST listens on [default: 0.0.0.0; `up`: 127.0.0.1]
    #[arg(long, value_name = "IP", env = "FASTCACHE_BIND")]
    pub bind: Option<IpAddr>,
    /// Name of this node [default: drawn once and kept in --state-dir]
    #[arg(long, value_name = "ID", env = "FASTCACHE_PEER_ID")]
    pub peer_id: Option<String>,
    /// MiB of one chunk of new files: 1 to 4 [default: 4]
    #[arg(long, value_name = "MIB", env = "FASTCACHE_CHUNK_SIZE")]
    pub chunk_size: Option<u32>,
    /// Key that REST wants in X-API-Key [default: none]
    #[arg(long, value_name = "KEY", env = "FASTCACHE_API_KEY", hide_env_values = true, value_parser = secret)]
    pub api_key: Option<Secret>,
    /// Which object store.
    #[command(flatten)]
    pub store: StoreFlags,
    /// What an fsync waits for [default: local; peers as soon as there are other nodes]
    #[arg(long, value_enum, value_name = "LEVEL", env = "FASTCACHE_FSYNC")]
    pub fsync: Option<Fsync>,
    /// On how many other nodes a file is after an fsync of level peers: 1 or 2 [default: 1]
    #[arg(long, value_name = "N", env = "FASTCACHE_FSYNC_COPIES")]
    pub fsync_copies: Option<u32>,
    /// Directory for the peer id and the embedded namespace [default: /var/lib/fastcache; `up`: DIR/state]
    #[arg(long, value_name = "DIR", env = "FASTCACHE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where there is no namespace yet, restore it from the bucket first
    #[arg(long, env = "FASTCACHE_REBUILD")]
    pub rebuild: bool,
    /// Largest body of a REST PUT, such as 1GiB [default: 100MiB]
    #[arg(long, value_name = "SIZE", env = "FASTCACHE_PUT_LIMIT")]
    pub put_limit: Option<String>,
    /// Seconds a stop waits for uploads [default: 30]
    #[arg(long, value_name = "SECONDS", env = "FASTCACHE_STOP_TIMEOUT")]
    pub stop_timeout: Option<u32>,
    /// Configuration file (TOML) with the same names as the flags
    #[arg(long, value_name = "FILE", env = "FASTCACHE_CONFIG")]
    pub config: Option<PathBuf>,
}

/// Settings of the data plane, as `up` passes them on.
#[derive(Clone, Debug, Default, Args)]
pub struct DataFlags {
    /// Block device, partition, file or directory of the chunk store [default: DIR/nvme]
    #[arg(long, value_name = "PATH", env = "FASTCACHE_NVME")]
    pub nvme: Option<PathBuf>,
    /// Size of the chunk store, where it is a file [default: 10GiB]
    #[arg(long, value_name = "SIZE", env = "FASTCACHE_NVME_CAPACITY")]
    pub nvme_capacity: Option<String>,
    /// Make a new, empty chunk store
    #[arg(long)]
    pub format: bool,
    /// Do so on a device that carries something else
    #[arg(long)]
    pub force: bool,
    /// Make the index of the chunk store anew from the headers of its chunks, once; reads the whole device
    #[arg(long, conflicts_with = "format")]
    pub rebuild_index: bool,
    /// Address of the data plane for other nodes [default: 0.0.0.0:8082 with a cluster token; nothing without one]
    #[arg(long, value_name = "ADDRESS", env = "FASTCACHE_LISTEN")]
    pub listen: Option<String>,
    /// Secret that the nodes of a cluster share, at least 16 characters [default: none, nothing is exchanged with others]
    #[arg(long, value_name = "TOKEN", env = "FASTCACHE_CLUSTER_TOKEN", hide_env_values = true, value_parser = secret)]
    pub cluster_token: Option<Secret>,
    /// File that holds it
    #[arg(
        long,
        value_name = "FILE",
        env = "FASTCACHE_CLUSTER_TOKEN_FILE",
        conflicts_with = "cluster_token"
    )]
    pub cluster_token_file: Option<PathBuf>,
    /// Cores the data plane runs on, such as 0-3,6 [default: all]
    #[arg(long, value_name = "LIST", env = "FASTCACHE_CORES")]
    pub cores: Option<String>,
    /// How requests come from the kernel: FUSE over io_uring, or /dev/fuse [default: auto]
    #[arg(
        long,
        value_enum,
        value_name = "TRANSPORT",
        env = "FASTCACHE_FUSE_TRANSPORT"
    )]
    pub fuse_transport: Option<FuseTransport>,
    /// Most that is read ahead of sequential readers and waits for them; 0: nothing [default: 256MiB]
    #[arg(long, value_name = "SIZE", env = "FASTCACHE_READ_AHEAD")]
    pub read_ahead: Option<String>,
    /// Most memory of the data plane [default: an eighth of the machine's, and not less than it needs]
    #[arg(long, value_name = "SIZE", env = "FASTCACHE_MEMORY")]
    pub memory: Option<String>,
    /// Most of it for checksums of chunks [default: what the rest leaves]
    #[arg(long, value_name = "SIZE", env = "FASTCACHE_CHECKSUM_MEMORY")]
    pub checksum_memory: Option<String>,
}

/// `up`.
#[derive(Clone, Debug, Default, Args)]
pub struct UpFlags {
    /// Everything the node keeps: store, namespace, logs
    #[arg(long, value_name = "DIR", env = "FASTCACHE_DIR")]
    pub dir: PathBuf,
    /// Where to mount; made when it is missing
    #[arg(long, value_name = "DIR", env = "FASTCACHE_MOUNT")]
    pub mount: PathBuf,
    /// Return when the mount answers; the node goes on in the background
    #[arg(long)]
    pub detach: bool,
    /// Where the planes log: files are in DIR/log [default: files]
    #[arg(long, value_enum, value_name = "WHERE", env = "FASTCACHE_LOG_TO")]
    pub log_to: Option<LogTo>,
    /// Settings of the data plane.
    #[command(flatten)]
    pub data: DataFlags,
    /// Settings of the agent.
    #[command(flatten)]
    pub agent: AgentFlags,
}

/// `coordinator`.
#[derive(Clone, Debug, Args)]
pub struct CoordinatorFlags {
    /// Address of gRPC and REST
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8080",
        env = "FASTCACHE_LISTEN"
    )]
    pub listen: String,
    /// Directory of the namespace log and its state
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/fastcache-coordinator",
        env = "FASTCACHE_STATE_DIR"
    )]
    pub state_dir: PathBuf,
    /// The bucket its nodes use: the history of the namespace goes there. Without one nothing is ever persisted.
    #[command(flatten)]
    pub store: StoreFlags,
    /// Where there is no namespace yet, restore it from the bucket first
    #[arg(long, env = "FASTCACHE_REBUILD")]
    pub rebuild: bool,
    /// Seconds that a node may use what it cached without word from here: so long a silent node delays the others
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 10,
        env = "FASTCACHE_LEASE",
        value_parser = clap::value_parser!(u64).range(2..=300)
    )]
    pub lease: u64,
    /// Milliseconds after which a change is on stable storage at the latest; until then the node that made it keeps it, too
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 50,
        env = "FASTCACHE_LOG_SYNC_MS",
        value_parser = clap::value_parser!(u64).range(1..=60_000)
    )]
    pub log_sync_ms: u64,
    /// Configuration file (TOML) with the same names as the flags
    #[arg(long, value_name = "FILE", env = "FASTCACHE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Key that REST and the nodes' gRPC have to show; nodes show their own --api-key [default: none]
    #[arg(long, value_name = "KEY", env = "FASTCACHE_API_KEY", hide_env_values = true, value_parser = secret)]
    pub api_key: Option<Secret>,
}

/// Which node, and how to answer.
#[derive(Clone, Debug, Args)]
pub struct NodeFlags {
    /// The DIR the node was started with
    #[arg(long, value_name = "DIR", env = "FASTCACHE_DIR")]
    pub dir: Option<PathBuf>,
    /// Port of the node's REST on this machine, instead of --dir [default: 8081]
    #[arg(long, value_name = "PORT", env = "FASTCACHE_PORT")]
    pub port: Option<u16>,
    /// The node's API key
    #[arg(long, value_name = "KEY", env = "FASTCACHE_API_KEY", hide_env_values = true, value_parser = secret)]
    pub api_key: Option<Secret>,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusFlags {
    /// The nodes of the cluster side by side, as their coordinator knows them
    #[arg(long)]
    pub cluster: bool,
    /// HOST:PORT of the coordinator to ask [default: the node's]
    #[arg(long, value_name = "ADDRESS", requires = "cluster")]
    pub coordinator: Option<String>,
    /// Which node.
    #[command(flatten)]
    pub node: NodeFlags,
}

/// `down`.
#[derive(Clone, Debug, Args)]
pub struct DownFlags {
    /// The DIR the node was started with
    #[arg(long, value_name = "DIR", env = "FASTCACHE_DIR")]
    pub dir: PathBuf,
    /// Seconds to wait for uploads [default: what `up` was told, else 30]
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,
    /// Neither flush nor upload: cut the mount off and kill the data plane, also one that is stopped or hangs
    #[arg(long, conflicts_with = "stop_timeout")]
    pub force: bool,
    /// The node's API key; needed only when its supervisor was killed
    #[arg(long, value_name = "KEY", env = "FASTCACHE_API_KEY", hide_env_values = true, value_parser = secret)]
    pub api_key: Option<Secret>,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// `state`.
#[derive(Clone, Debug, Args)]
pub struct StateFlags {
    /// A file: a path under the mount, or relative to the root of fastcache
    pub path: PathBuf,
    /// Which node.
    #[command(flatten)]
    pub node: NodeFlags,
}

/// `flush`.
#[derive(Clone, Debug, Args)]
pub struct FlushFlags {
    /// A file; without it, everything
    pub path: Option<PathBuf>,
    /// Return when it is persisted in the object store
    #[arg(long)]
    pub wait: bool,
    /// Which node.
    #[command(flatten)]
    pub node: NodeFlags,
}

/// `evict`.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct EvictFlags {
    /// A file, or a directory with what is below it
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub path: Option<PathBuf>,
    /// Everything
    #[arg(long)]
    pub all: bool,
    /// Which node.
    #[command(flatten)]
    pub node: NodeFlags,
}

/// `warmup`, `pin` and `unpin`.
#[derive(Clone, Debug, Args)]
pub struct WarmFlags {
    /// A file, or a directory with what is below it: a path under the mount, or relative to the root of fastcache
    pub path: PathBuf,
    /// Which node.
    #[command(flatten)]
    pub node: NodeFlags,
}

/// `rebuild`.
#[derive(Clone, Debug, Args)]
pub struct RebuildFlags {
    /// The DIR of a node that `up` starts; else the state directory is --state-dir
    #[arg(long, value_name = "DIR", env = "FASTCACHE_DIR")]
    pub dir: Option<PathBuf>,
    /// Replace a namespace that is there; it is put aside, not deleted
    #[arg(long)]
    pub force: bool,
    /// Where the history is damaged or has a gap, end there
    #[arg(long)]
    pub accept_loss: bool,
    /// State directory and bucket, as the agent has them.
    #[command(flatten)]
    pub agent: AgentFlags,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// `config`.
#[derive(Clone, Debug, Args)]
pub struct ConfigFlags {
    /// Settings of the agent.
    #[command(flatten)]
    pub agent: AgentFlags,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}
