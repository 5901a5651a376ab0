//! Effective settings: flag, else environment, else configuration file, else default. Secrets are never printed.

pub(crate) mod cloud;

use crate::cli::{AgentFlags, DataFlags, Fsync, FuseTransport, Provider};
use cloud::{Addressing, CloudSettings, EncryptionKind};
use fastcache_agent::{
    AgentConfig, AzureConfig, CloudConfig, Environment as CloudEnvironment, FSYNC_COPIES_MAX,
    FsyncLevel, PUT_LIMIT_DEFAULT, S3Config, Secret,
};
use serde::Deserialize;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Seconds a stop waits for uploads, unless told otherwise.
pub const STOP_TIMEOUT_DEFAULT_S: u32 = 30;

/// A setting that cannot be used: the command was not understood (exit code 2).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The configuration file: the flags of the agent, of the data plane and of `up`, by the same names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct FileConfig {
    coordinator: Option<String>,
    socket: Option<PathBuf>,
    port: Option<u16>,
    bind: Option<IpAddr>,
    peer_id: Option<String>,
    chunk_size: Option<u32>,
    api_key: Option<String>,
    cloud_provider: Option<Provider>,
    s3_bucket: Option<String>,
    s3_region: Option<String>,
    s3_endpoint: Option<String>,
    azure_account: Option<String>,
    azure_key: Option<String>,
    azure_container: Option<String>,
    azure_endpoint: Option<String>,
    cloud_dir: Option<PathBuf>,
    cloud_prefix: Option<String>,
    cloud_ca: Option<PathBuf>,
    cloud_uploads: Option<u32>,
    garbage_grace: Option<u32>,
    s3_access_key: Option<String>,
    s3_secret_key: Option<String>,
    s3_session_token: Option<String>,
    s3_profile: Option<String>,
    s3_addressing: Option<Addressing>,
    s3_encryption: Option<EncryptionKind>,
    s3_kms_key: Option<String>,
    s3_bucket_key: Option<bool>,
    s3_customer_key: Option<String>,
    azure_sas: Option<String>,
    azure_client_id: Option<String>,
    azure_client_secret: Option<String>,
    azure_tenant_id: Option<String>,
    azure_token_file: Option<PathBuf>,
    fsync: Option<Fsync>,
    fsync_copies: Option<u32>,
    state_dir: Option<PathBuf>,
    put_limit: Option<String>,
    stop_timeout: Option<u32>,
    nvme: Option<PathBuf>,
    nvme_capacity: Option<String>,
    listen: Option<String>,
    cluster_token: Option<String>,
    cluster_token_file: Option<PathBuf>,
    cores: Option<String>,
    fuse_transport: Option<FuseTransport>,
    read_ahead: Option<String>,
    memory: Option<String>,
    checksum_memory: Option<String>,
    // of fastcache-data alone; here so that one file can serve both planes
    mount: Option<PathBuf>,
    format: Option<bool>,
    force: Option<bool>,
}

impl FileConfig {
    /// Reads a file; `None` is an empty one.
    pub fn read(path: Option<&Path>) -> Result<FileConfig, UsageError> {
        let Some(path) = path else {
            return Ok(FileConfig::default());
        };
        let text = std::fs::read_to_string(path).map_err(|e| {
            let at = path.display();
            UsageError(format!(
                "the configuration file {at} cannot be read: {e}; check what --config names"
            ))
        })?;
        FileConfig::parse(&text)
            .map_err(|e| UsageError(format!("the configuration file {}: {e}", path.display())))
    }

    fn parse(text: &str) -> Result<FileConfig, String> {
        // only the message: the rest quotes the line, which may hold a secret
        toml::from_str(text).map_err(|e: toml::de::Error| {
            let line = e
                .span()
                .map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
            let message = fastcache_api::settings::explain(e.message());
            match line {
                // The key, but not its value, which may be a secret.
                Some(line) => match text.lines().nth(line - 1).and_then(|l| l.split_once('=')) {
                    Some((key, _)) => format!("line {line}, `{}`: {message}", key.trim()),
                    None => format!("line {line}: {message}"),
                },
                None => message,
            }
        })
    }
}

/// What is different under `up`.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Control socket.
    pub socket: PathBuf,
    /// State directory.
    pub state_dir: PathBuf,
    /// Address REST listens on.
    pub bind: IpAddr,
    /// Object store.
    pub provider: Provider,
    /// Directory of the provider `dir`.
    pub cloud_dir: Option<PathBuf>,
}

impl Default for Defaults {
    fn default() -> Defaults {
        Defaults {
            socket: PathBuf::from("/run/fastcache/data.sock"),
            state_dir: PathBuf::from("/var/lib/fastcache"),
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            provider: Provider::S3,
            cloud_dir: None,
        }
    }
}

impl Defaults {
    /// Of a node that keeps everything in `dir`.
    pub fn of_up(dir: &Path) -> Defaults {
        Defaults {
            socket: dir.join("run/data.sock"),
            state_dir: dir.join("state"),
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            provider: Provider::Dir,
            cloud_dir: Some(dir.join("cloud")),
        }
    }
}

/// Settings of an agent, all of them decided.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// `HOST:PORT`; `None`: embedded.
    pub coordinator: Option<String>,
    /// Control socket.
    pub socket: PathBuf,
    /// Port of REST; `None`: nobody said.
    pub port: Option<u16>,
    /// Address of REST.
    pub bind: IpAddr,
    /// Name of the node.
    pub peer_id: Option<String>,
    /// MiB.
    pub chunk_size: u32,
    /// Key REST wants.
    pub api_key: Option<Secret>,
    /// Object store.
    pub provider: Provider,
    /// Bucket.
    pub s3_bucket: String,
    /// Region.
    pub s3_region: String,
    /// Other server than Amazon's.
    pub s3_endpoint: Option<String>,
    /// Account.
    pub azure_account: Option<String>,
    /// Its key.
    pub azure_key: Option<Secret>,
    /// Container.
    pub azure_container: String,
    /// Other server than Microsoft's.
    pub azure_endpoint: Option<String>,
    /// Directory of the provider `dir`.
    pub cloud_dir: Option<PathBuf>,
    /// The object store beyond its name.
    pub cloud: CloudSettings,
    /// Access key, secret key and session token, of settings or of AWS's variables.
    pub s3_keys: (Option<String>, Option<Secret>, Option<Secret>),
    /// What an fsync waits for; `None`: for other nodes as soon as there are any.
    pub fsync: Option<Fsync>,
    /// Other nodes that have a file after an fsync of level `peers`.
    pub fsync_copies: u32,
    /// State directory.
    pub state_dir: PathBuf,
    /// Bytes.
    pub put_limit: u64,
    /// How long a stop waits for uploads.
    pub stop_timeout: Duration,
    /// `POD_IP`: this node's address for others.
    pub pod_ip: Option<String>,
}

/// Reads an environment variable; tests pass a table.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|t| !t.is_empty())
}

impl AgentSettings {
    /// Lays flags (in which clap has put `FASTCACHE_*`) over the clouds' own environment, the file and the defaults.
    pub fn resolve(
        flags: &AgentFlags,
        file: &FileConfig,
        env: Environment<'_>,
        defaults: &Defaults,
    ) -> Result<AgentSettings, UsageError> {
        let flags = flags.clone();
        let file = file.clone();
        // one of the clouds' variables: below the flag and FASTCACHE_*, above the file
        let text = |flag: Option<String>, variable: Option<&str>, file: Option<String>| {
            filled(flag)
                .or_else(|| variable.and_then(|v| filled(env(v))))
                .or_else(|| filled(file))
        };
        let secret = |flag: Option<Secret>, variable: Option<&str>, file: Option<String>| {
            flag.filter(|s| !s.expose().is_empty())
                .or_else(|| text(None, variable, file).map(Secret::new))
        };
        let cloud = CloudSettings::resolve(flags.store.cloud, &file)?;
        let put_limit = match flags.put_limit.or(file.put_limit) {
            None => PUT_LIMIT_DEFAULT,
            Some(size) => parse_size(&size).map_err(|e| UsageError(format!("--put-limit: {e}")))?,
        };
        let settings = AgentSettings {
            coordinator: text(flags.coordinator, None, file.coordinator),
            socket: flags
                .socket
                .or(file.socket)
                .unwrap_or_else(|| defaults.socket.clone()),
            port: flags.port.or(file.port),
            bind: flags.bind.or(file.bind).unwrap_or(defaults.bind),
            peer_id: text(flags.peer_id, None, file.peer_id),
            chunk_size: flags.chunk_size.or(file.chunk_size).unwrap_or(4),
            api_key: secret(flags.api_key, None, file.api_key),
            provider: flags
                .store
                .cloud_provider
                .or(file.cloud_provider)
                .unwrap_or(defaults.provider),
            s3_bucket: text(flags.store.s3_bucket, None, file.s3_bucket)
                .unwrap_or_else(|| "fuse-client-cache".to_owned()),
            s3_region: text(flags.store.s3_region, Some("AWS_REGION"), file.s3_region)
                .unwrap_or_else(|| "us-east-1".to_owned()),
            s3_endpoint: text(flags.store.s3_endpoint, Some("AWS_ENDPOINT_URL_S3"), None)
                .or_else(|| text(None, Some("AWS_ENDPOINT_URL"), file.s3_endpoint)),
            s3_keys: cloud.keys_of(env),
            cloud,
            azure_account: text(
                flags.store.azure_account,
                Some("AZURE_STORAGE_ACCOUNT"),
                file.azure_account,
            ),
            azure_key: secret(
                flags.store.azure_key,
                Some("AZURE_STORAGE_KEY"),
                file.azure_key,
            ),
            azure_container: text(
                flags.store.azure_container,
                Some("AZURE_CONTAINER_NAME"),
                file.azure_container,
            )
            .unwrap_or_else(|| "fuse-cache".to_owned()),
            azure_endpoint: text(flags.store.azure_endpoint, None, file.azure_endpoint),
            cloud_dir: flags
                .store
                .cloud_dir
                .or(file.cloud_dir)
                .or_else(|| defaults.cloud_dir.clone()),
            fsync: flags.fsync.or(file.fsync),
            fsync_copies: flags.fsync_copies.or(file.fsync_copies).unwrap_or(1),
            state_dir: flags
                .state_dir
                .or(file.state_dir)
                .unwrap_or_else(|| defaults.state_dir.clone()),
            put_limit,
            stop_timeout: Duration::from_secs(u64::from(
                flags
                    .stop_timeout
                    .or(file.stop_timeout)
                    .unwrap_or(STOP_TIMEOUT_DEFAULT_S),
            )),
            pod_ip: filled(env("POD_IP")),
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), UsageError> {
        let wrong = |text: &str| Err(UsageError(text.to_owned()));
        if !(1..=4).contains(&self.chunk_size) {
            return wrong("--chunk-size is in MiB: 1, 2, 3 or 4");
        }
        match self.provider {
            Provider::Dir if self.cloud_dir.is_none() => {
                wrong("--cloud-provider dir wants --cloud-dir DIR")
            }
            Provider::Azure if self.azure_account.is_none() => {
                wrong("--cloud-provider azure wants --azure-account, or AZURE_STORAGE_ACCOUNT")
            }
            Provider::S3 if self.s3_keys.0.is_some() != self.s3_keys.1.is_some() => {
                wrong("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY both, or neither")
            }
            Provider::None if self.fsync == Some(Fsync::Cloud) => {
                wrong("--fsync cloud cannot be kept without a cloud: choose a --cloud-provider")
            }
            Provider::None if self.fsync == Some(Fsync::Peers) && self.coordinator.is_none() => {
                wrong(
                    "--fsync peers cannot be kept without other nodes and without a cloud: name a --coordinator, or choose a --cloud-provider",
                )
            }
            _ if !(1..=FSYNC_COPIES_MAX).contains(&self.fsync_copies) => wrong(
                "--fsync-copies is 1 or 2: a chunk has three homes, and its own node may be one of them",
            ),
            _ => Ok(()),
        }
    }

    /// For [`fastcache_agent::Node::start`].
    pub fn to_config(&self) -> AgentConfig {
        let cloud = match self.provider {
            Provider::S3 => CloudConfig::S3(Box::new(S3Config {
                bucket: self.s3_bucket.clone(),
                region: self.s3_region.clone(),
                endpoint: self.s3_endpoint.clone(),
                is_virtual_hosted: self.cloud.s3_addressing == Addressing::Virtual,
                prefix: self.cloud.prefix.clone(),
                access_key: self.s3_keys.0.clone(),
                secret_key: self.s3_keys.1.clone(),
                session_token: self.s3_keys.2.clone(),
                profile: self.cloud.s3_profile.clone(),
                encryption: self.cloud.encryption(),
                ca_file: self.cloud.ca_file.clone(),
                environment: CloudEnvironment::of_process(),
            })),
            Provider::Azure => CloudConfig::Azure(Box::new(AzureConfig {
                account: self.azure_account.clone().unwrap_or_default(),
                container: self.azure_container.clone(),
                endpoint: self.azure_endpoint.clone(),
                prefix: self.cloud.prefix.clone(),
                key: self.azure_key.clone(),
                sas: self.cloud.azure_sas.clone(),
                client_id: self.cloud.azure_client_id.clone(),
                client_secret: self.cloud.azure_client_secret.clone(),
                tenant_id: self.cloud.azure_tenant_id.clone(),
                federated_token_file: self.cloud.azure_token_file.clone(),
                ca_file: self.cloud.ca_file.clone(),
                environment: CloudEnvironment::of_process(),
            })),
            Provider::Dir => {
                let path = self.cloud_dir.clone().unwrap_or_default();
                CloudConfig::Dir {
                    path: match &self.cloud.prefix {
                        Some(prefix) => path.join(prefix),
                        None => path,
                    },
                }
            }
            Provider::None => CloudConfig::None,
        };
        AgentConfig {
            socket: self.socket.clone(),
            state_dir: self.state_dir.clone(),
            coordinator: self.coordinator.clone(),
            peer_id: self.peer_id.clone(),
            listen: self.bind,
            port: self.port.unwrap_or(8081),
            chunk_size: self.chunk_size << 20,
            api_key: self.api_key.clone(),
            cloud,
            fsync: self.fsync.map(|level| match level {
                Fsync::Local => FsyncLevel::Local,
                Fsync::Peers => FsyncLevel::Peers,
                Fsync::Cloud => FsyncLevel::Cloud,
            }),
            fsync_copies: self.fsync_copies,
            pod_ip: self.pod_ip.clone(),
            put_limit: self.put_limit,
            upload_parallel: self.cloud.uploads,
            garbage_grace: self.cloud.garbage_grace,
            ..AgentConfig::default()
        }
    }

    /// Name and value of every setting that is not a secret and is set, as the flags have them.
    pub fn public(&self) -> Vec<(&'static str, String)> {
        let path = |p: &Path| p.display().to_string();
        let some = |text: &Option<String>| text.clone();
        let list: Vec<(&'static str, Option<String>)> = vec![
            ("coordinator", some(&self.coordinator)),
            ("socket", Some(path(&self.socket))),
            ("port", Some(self.port.unwrap_or(8081).to_string())),
            ("bind", Some(self.bind.to_string())),
            ("peer-id", some(&self.peer_id)),
            ("chunk-size", Some(self.chunk_size.to_string())),
            ("cloud-provider", Some(name_of(self.provider))),
            ("s3-bucket", Some(self.s3_bucket.clone())),
            ("s3-region", Some(self.s3_region.clone())),
            ("s3-endpoint", some(&self.s3_endpoint)),
            ("azure-account", some(&self.azure_account)),
            ("azure-container", Some(self.azure_container.clone())),
            ("azure-endpoint", some(&self.azure_endpoint)),
            ("cloud-dir", self.cloud_dir.as_deref().map(path)),
            ("fsync", self.fsync.map(name_of)),
            ("fsync-copies", Some(self.fsync_copies.to_string())),
            ("state-dir", Some(path(&self.state_dir))),
            ("put-limit", Some(self.put_limit.to_string())),
            (
                "stop-timeout",
                Some(self.stop_timeout.as_secs().to_string()),
            ),
        ];
        list.into_iter()
            .chain(self.cloud.public())
            .filter_map(|(name, value)| value.map(|v| (name, v)))
            .collect()
    }

    /// Which secrets are set, and what one may see of them.
    pub fn secrets(&self) -> Vec<(&'static str, String)> {
        let of_env = [
            (
                "s3-secret-key",
                self.s3_keys
                    .1
                    .as_ref()
                    .filter(|_| self.cloud.s3_secret_key.is_none()),
            ),
            (
                "s3-session-token",
                self.s3_keys
                    .2
                    .as_ref()
                    .filter(|_| self.cloud.s3_access_key.is_none()),
            ),
        ];
        let flags = self.secret_flags();
        flags
            .into_iter()
            .map(|(flag, value)| (flag.trim_start_matches('-'), value))
            .chain(of_env)
            .filter_map(|(name, value)| value.map(|v| (name, v.to_string())))
            .collect()
    }

    /// Flag and value of every secret that a setting may hold.
    fn secret_flags(&self) -> Vec<(&'static str, Option<&Secret>)> {
        let mut list = vec![
            ("--api-key", self.api_key.as_ref()),
            ("--azure-key", self.azure_key.as_ref()),
        ];
        list.extend(self.cloud.secrets());
        list
    }

    /// The command line of an agent with these settings, and the environment that carries its secrets: a process
    /// list shows arguments to everybody.
    pub fn to_command(&self) -> (Vec<OsString>, Vec<(&'static str, String)>) {
        let mut args = Vec::new();
        for (name, value) in self.public() {
            // paths are not text: taken from the fields below
            let value: OsString = match name {
                "socket" => self.socket.clone().into(),
                "state-dir" => self.state_dir.clone().into(),
                "cloud-dir" => self.cloud_dir.clone().unwrap_or_default().into(),
                "cloud-ca" => self.cloud.ca_file.clone().unwrap_or_default().into(),
                "azure-token-file" => self
                    .cloud
                    .azure_token_file
                    .clone()
                    .unwrap_or_default()
                    .into(),
                _ => value.into(),
            };
            // in one word: a value may begin with a dash
            let mut arg = OsString::from(format!("--{name}="));
            arg.push(value);
            args.push(arg);
        }
        let variable = |flag: &str| {
            cloud::SECRET_FLAGS
                .iter()
                .find(|(f, _)| *f == flag)
                .map(|(_, v)| *v)
        };
        let secrets = self
            .secret_flags()
            .into_iter()
            .filter_map(|(flag, value)| Some((variable(flag)?, value?.expose().to_owned())));
        let secrets = secrets.collect();
        (args, secrets)
    }
}

fn name_of(value: impl clap::ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|v| v.get_name().to_owned())
        .unwrap_or_default()
}

/// Settings of the data plane under `up`, all of them decided.
#[derive(Clone, Debug)]
pub struct DataSettings {
    /// Chunk store.
    pub nvme: PathBuf,
    /// Its size, bytes, where it is a file.
    pub nvme_capacity: u64,
    /// Make it anew.
    pub format: bool,
    /// On whatever is there.
    pub force: bool,
    /// Take the index from the headers of the chunks.
    pub rebuild_index: bool,
    /// Address for other nodes.
    pub listen: Option<String>,
    /// What the nodes of a cluster share.
    pub cluster_token: Option<Secret>,
    /// File that holds it.
    pub cluster_token_file: Option<PathBuf>,
    /// Cores.
    pub cores: Option<String>,
    /// How requests come from the kernel.
    pub fuse_transport: Option<FuseTransport>,
    /// Most that is read ahead, bytes; `None`: as the data plane has it.
    pub read_ahead: Option<u64>,
    /// Most memory of the data plane, bytes; `None`: as the data plane has it.
    pub memory: Option<u64>,
    /// Most of it for checksums, bytes.
    pub checksum_memory: Option<u64>,
}

impl DataSettings {
    /// Lays flags over the file and the defaults.
    pub fn resolve(
        flags: &DataFlags,
        file: &FileConfig,
        dir: &Path,
    ) -> Result<DataSettings, UsageError> {
        let nvme_capacity = flags
            .nvme_capacity
            .clone()
            .or_else(|| file.nvme_capacity.clone())
            .unwrap_or_else(|| "10GiB".to_owned());
        let nvme_capacity =
            parse_size(&nvme_capacity).map_err(|e| UsageError(format!("--nvme-capacity: {e}")))?;
        let read_ahead = flags.read_ahead.as_ref().or(file.read_ahead.as_ref());
        let read_ahead = match read_ahead.map(|size| size.trim()) {
            None => None,
            Some("0") => Some(0),
            Some(size) => {
                let bytes = parse_size(size);
                Some(bytes.map_err(|e| UsageError(format!("--read-ahead: {e}")))?)
            }
        };
        let size = |flag: &Option<String>, file: &Option<String>, name: &str| {
            let text = flag.as_ref().or(file.as_ref());
            let bytes = text.map(|text| parse_size(text)).transpose();
            bytes.map_err(|e| UsageError(format!("{name}: {e}")))
        };
        let nvme = flags.nvme.clone().or_else(|| file.nvme.clone());
        let given = (&flags.cluster_token, &flags.cluster_token_file);
        let (cluster_token, cluster_token_file) = match given {
            (None, None) => (
                file.cluster_token.clone().map(Secret::new),
                file.cluster_token_file.clone(),
            ),
            (token, path) => (token.clone(), path.clone()),
        };
        Ok(DataSettings {
            nvme: nvme.unwrap_or_else(|| dir.join("nvme")),
            nvme_capacity,
            format: flags.format,
            force: flags.force,
            rebuild_index: flags.rebuild_index,
            listen: flags.listen.clone().or_else(|| file.listen.clone()),
            cluster_token,
            cluster_token_file,
            cores: flags.cores.clone().or_else(|| file.cores.clone()),
            fuse_transport: flags.fuse_transport.or(file.fuse_transport),
            read_ahead,
            memory: size(&flags.memory, &file.memory, "--memory")?,
            checksum_memory: size(
                &flags.checksum_memory,
                &file.checksum_memory,
                "--checksum-memory",
            )?,
        })
    }
}

/// Bytes of a size such as `10GiB`, `512M` or `4096`. Binary units only, so that nobody guesses.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is not a size; write it as 10GiB, 512MiB or a number of bytes");
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(unit)
        .filter(|n| *n > 0)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests;
