//! Which object store a node uses, and with what credentials. Secrets are never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// A secret string: a key, a password. `Debug` and `Display` print `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Secret {
        Secret(secret.into())
    }

    /// The secret itself: for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Secret {
        Secret(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Environment variables that credentials may come from: the clouds' own names, see
/// [`crate::CREDENTIAL_VARIABLES`]. A table, so that a test can have one of its own.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, Secret>);

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Environment {
        let wanted = |name: &str| {
            ["AWS_", "AZURE_"].iter().any(|p| name.starts_with(p))
                || matches!(name, "HOME" | "IDENTITY_ENDPOINT" | "MSI_ENDPOINT")
        };
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| wanted(name))
            .collect()
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name).map(Secret::expose);
        value.filter(|v| !v.is_empty())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Environment {
        let pairs = pairs.into_iter();
        Environment(pairs.map(|(n, v)| (n.into(), Secret::new(v))).collect())
    }
}

/// How the store encrypts objects. It does so by itself where nothing is asked, as the bucket says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// What the bucket says.
    #[default]
    Bucket,
    /// Keys of the store (SSE-S3, `AES256`).
    Store,
    /// A key of the key service (SSE-KMS).
    Kms {
        /// Its id or ARN; absent: the account's default one.
        key_id: Option<String>,
        /// Whether one key of the bucket saves calls of the key service.
        bucket_key: Option<bool>,
        /// Two layers (`aws:kms:dsse`).
        is_dual: bool,
    },
    /// A key that is sent with each request and that the store forgets (SSE-C): 32 bytes in base64. Wants https.
    Customer(Secret),
}

/// S3, or a server that speaks it.
#[derive(Clone, Debug, Default)]
pub struct S3Config {
    /// Bucket; must exist.
    pub bucket: String,
    /// Region.
    pub region: String,
    /// `http://HOST:PORT` or `https://…` of a server that is not Amazon's. Plain HTTP is allowed exactly when this
    /// says `http://`.
    pub endpoint: Option<String>,
    /// Whether the bucket is part of the host's name (then the endpoint, where there is one, names it already)
    /// instead of the path.
    pub is_virtual_hosted: bool,
    /// Keys of all objects begin with this, without slashes at its ends.
    pub prefix: Option<String>,
    /// Access key; absent: see [`crate::CREDENTIAL_VARIABLES`].
    pub access_key: Option<String>,
    /// Secret key, with `access_key`.
    pub secret_key: Option<Secret>,
    /// Token of temporary keys, with `access_key`.
    pub session_token: Option<Secret>,
    /// Profile of the files `~/.aws/credentials` and `~/.aws/config`.
    pub profile: Option<String>,
    /// Server-side encryption.
    pub encryption: Encryption,
    /// PEM file of certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Variables that credentials may come from.
    pub environment: Environment,
}

/// Azure Blob Storage, or a server that speaks it.
#[derive(Clone, Debug, Default)]
pub struct AzureConfig {
    /// Storage account.
    pub account: String,
    /// Container; must exist.
    pub container: String,
    /// URL of a server that is not Azure's (with the account in its path, as Azurite wants it).
    pub endpoint: Option<String>,
    /// Keys of all objects begin with this, without slashes at its ends.
    pub prefix: Option<String>,
    /// Key of the account; absent: one of the following, or see [`crate::CREDENTIAL_VARIABLES`].
    pub key: Option<Secret>,
    /// Shared access signature, as a query string.
    pub sas: Option<Secret>,
    /// Application of a service principal, a workload identity or a user-assigned managed identity.
    pub client_id: Option<String>,
    /// Its secret (service principal).
    pub client_secret: Option<Secret>,
    /// Tenant.
    pub tenant_id: Option<String>,
    /// File of the token (workload identity).
    pub federated_token_file: Option<PathBuf>,
    /// PEM file of certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Variables that credentials may come from.
    pub environment: Environment,
}

/// Where the cloud tier is.
#[derive(Clone, Debug, Default)]
pub enum CloudConfig {
    /// S3.
    S3(Box<S3Config>),
    /// Azure Blob Storage.
    Azure(Box<AzureConfig>),
    /// A directory, made when it is missing.
    Dir {
        /// The directory.
        path: PathBuf,
    },
    /// No cloud tier: everything stays dirty on the node.
    #[default]
    None,
}

impl CloudConfig {
    /// The provider's name as the flag `--cloud-provider` has it.
    pub fn provider(&self) -> &'static str {
        match self {
            CloudConfig::S3(_) => "s3",
            CloudConfig::Azure(_) => "azure",
            CloudConfig::Dir { .. } => "dir",
            CloudConfig::None => "none",
        }
    }

    /// Where objects go, for people.
    pub fn place(&self) -> String {
        let (what, prefix, endpoint) = match self {
            CloudConfig::S3(c) => (format!("bucket {}", c.bucket), &c.prefix, &c.endpoint),
            CloudConfig::Azure(c) => (
                format!("container {} of {}", c.container, c.account),
                &c.prefix,
                &c.endpoint,
            ),
            CloudConfig::Dir { path } => return format!("directory {}", path.display()),
            CloudConfig::None => return "nowhere".to_owned(),
        };
        let below = prefix.iter().map(|p| format!(", below {p}"));
        let at = endpoint.iter().map(|e| format!(" at {e}"));
        std::iter::once(what).chain(below).chain(at).collect()
    }
}
