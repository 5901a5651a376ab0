//! Which object store a node uses, and with what credentials. Secrets are never printed.

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

/// Where the cloud tier is.
#[derive(Clone, Debug, Default)]
pub enum CloudConfig {
    /// Amazon S3, or a server that speaks it.
    S3 {
        /// Bucket; must exist.
        bucket: String,
        /// Region.
        region: String,
        /// `http://HOST:PORT` or `https://…` of a server that is not Amazon's; addressed path-style.
        /// Plain HTTP is allowed exactly when this says `http://`.
        endpoint: Option<String>,
        /// Access key; absent: the usual chain (environment, web identity, instance metadata).
        access_key: Option<String>,
        /// Secret key, with `access_key`.
        secret_key: Option<Secret>,
    },
    /// Azure Blob Storage, or a server that speaks it.
    Azure {
        /// Storage account.
        account: String,
        /// Its key; absent: the usual chain (environment, workload identity, instance metadata).
        key: Option<Secret>,
        /// Container; must exist.
        container: String,
        /// URL of a server that is not Azure's (with the account in its path, as Azurite wants it).
        endpoint: Option<String>,
    },
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
            CloudConfig::S3 { .. } => "s3",
            CloudConfig::Azure { .. } => "azure",
            CloudConfig::Dir { .. } => "dir",
            CloudConfig::None => "none",
        }
    }

    /// Where objects go, for people.
    pub fn place(&self) -> String {
        match self {
            CloudConfig::S3 {
                bucket, endpoint, ..
            } => match endpoint {
                Some(e) => format!("bucket {bucket} at {e}"),
                None => format!("bucket {bucket}"),
            },
            CloudConfig::Azure {
                account,
                container,
                endpoint,
                ..
            } => match endpoint {
                Some(e) => format!("container {container} of {account} at {e}"),
                None => format!("container {container} of {account}"),
            },
            CloudConfig::Dir { path } => format!("directory {}", path.display()),
            CloudConfig::None => "nowhere".to_owned(),
        }
    }
}
