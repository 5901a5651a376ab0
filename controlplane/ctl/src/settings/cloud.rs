//! Settings of the object store beyond its name: credentials, encryption, addressing, prefix.

use super::{Environment, FileConfig, UsageError, filled, name_of};
use crate::cli::secret;
use clap::{Args, ValueEnum};
use fastcache_agent::{Encryption, Secret, UPLOADS_MAX};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// How an S3 server is told the bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Addressing {
    /// In the path: https://HOST/BUCKET/KEY.
    #[default]
    Path,
    /// In the host's name; an endpoint then names the bucket itself.
    Virtual,
}

/// Server-side encryption, by the names S3 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
pub enum EncryptionKind {
    /// Keys of the store.
    #[value(name = "AES256")]
    #[serde(rename = "AES256")]
    Aes256,
    /// A key of the key service.
    #[value(name = "aws:kms")]
    #[serde(rename = "aws:kms")]
    Kms,
    /// The same, in two layers.
    #[value(name = "aws:kms:dsse")]
    #[serde(rename = "aws:kms:dsse")]
    KmsDual,
}

/// Flags of the object store beyond its name.
#[derive(Clone, Debug, Default, Args)]
pub struct CloudFlags {
    /// Keys of all objects begin with this: several file systems can share a bucket, container or directory
    #[arg(long, value_name = "PREFIX", env = "FASTCACHE_CLOUD_PREFIX")]
    pub cloud_prefix: Option<String>,
    /// PEM file of certificates to trust beside the system's
    #[arg(long, value_name = "FILE", env = "FASTCACHE_CLOUD_CA")]
    pub cloud_ca: Option<PathBuf>,
    /// Most uploads at once; fewer while the store asks for fewer [default: 8]
    #[arg(long, value_name = "N", env = "FASTCACHE_CLOUD_UPLOADS")]
    pub cloud_uploads: Option<u32>,
    /// An object stays in the store so long after nothing names it any more, at least 60 [default: 600]
    #[arg(long, value_name = "SECONDS", env = "FASTCACHE_GARBAGE_GRACE")]
    pub garbage_grace: Option<u32>,
    /// Access key; better in AWS_ACCESS_KEY_ID
    #[arg(long, value_name = "KEY", env = "FASTCACHE_S3_ACCESS_KEY", hide_env_values = true, value_parser = secret)]
    pub s3_access_key: Option<Secret>,
    /// Secret key; better in AWS_SECRET_ACCESS_KEY, where the process list does not show it
    #[arg(long, value_name = "KEY", env = "FASTCACHE_S3_SECRET_KEY", hide_env_values = true, value_parser = secret)]
    pub s3_secret_key: Option<Secret>,
    /// Token of temporary keys; better in AWS_SESSION_TOKEN
    #[arg(long, value_name = "TOKEN", env = "FASTCACHE_S3_SESSION_TOKEN", hide_env_values = true, value_parser = secret)]
    pub s3_session_token: Option<Secret>,
    /// Profile of ~/.aws/credentials and ~/.aws/config [also: AWS_PROFILE]
    #[arg(long, value_name = "NAME", env = "FASTCACHE_S3_PROFILE")]
    pub s3_profile: Option<String>,
    /// Where a request names the bucket [default: path]
    #[arg(
        long,
        value_enum,
        value_name = "STYLE",
        env = "FASTCACHE_S3_ADDRESSING"
    )]
    pub s3_addressing: Option<Addressing>,
    /// Server-side encryption [default: what the bucket says]
    #[arg(long, value_enum, value_name = "KIND", env = "FASTCACHE_S3_ENCRYPTION")]
    pub s3_encryption: Option<EncryptionKind>,
    /// Id or ARN of the key of the key service [default: the account's]
    #[arg(long, value_name = "ID", env = "FASTCACHE_S3_KMS_KEY")]
    pub s3_kms_key: Option<String>,
    /// Whether a key of the bucket saves calls of the key service [default: what the bucket says]
    #[arg(long, value_name = "true|false", env = "FASTCACHE_S3_BUCKET_KEY")]
    pub s3_bucket_key: Option<bool>,
    /// Key for encryption that is sent with each request (SSE-C): 32 bytes in base64; https only
    #[arg(long, value_name = "KEY", env = "FASTCACHE_S3_CUSTOMER_KEY", hide_env_values = true, value_parser = secret)]
    pub s3_customer_key: Option<Secret>,
    /// Shared access signature; better in AZURE_STORAGE_SAS_TOKEN
    #[arg(long, value_name = "SAS", env = "FASTCACHE_AZURE_SAS", hide_env_values = true, value_parser = secret)]
    pub azure_sas: Option<Secret>,
    /// Application of a service principal, workload identity or managed identity [also: AZURE_CLIENT_ID]
    #[arg(long, value_name = "ID", env = "FASTCACHE_AZURE_CLIENT_ID")]
    pub azure_client_id: Option<String>,
    /// Secret of the service principal; better in AZURE_CLIENT_SECRET
    #[arg(long, value_name = "SECRET", env = "FASTCACHE_AZURE_CLIENT_SECRET", hide_env_values = true, value_parser = secret)]
    pub azure_client_secret: Option<Secret>,
    /// Tenant [also: AZURE_TENANT_ID]
    #[arg(long, value_name = "ID", env = "FASTCACHE_AZURE_TENANT_ID")]
    pub azure_tenant_id: Option<String>,
    /// File of the workload identity's token [also: AZURE_FEDERATED_TOKEN_FILE]
    #[arg(long, value_name = "FILE", env = "FASTCACHE_AZURE_TOKEN_FILE")]
    pub azure_token_file: Option<PathBuf>,
}

/// Flags that carry a secret, and the variables that carry it to other processes.
pub const SECRET_FLAGS: [(&str, &str); 8] = [
    ("--api-key", "FASTCACHE_API_KEY"),
    ("--azure-key", "FASTCACHE_AZURE_KEY"),
    ("--azure-sas", "FASTCACHE_AZURE_SAS"),
    ("--azure-client-secret", "FASTCACHE_AZURE_CLIENT_SECRET"),
    ("--s3-access-key", "FASTCACHE_S3_ACCESS_KEY"),
    ("--s3-secret-key", "FASTCACHE_S3_SECRET_KEY"),
    ("--s3-session-token", "FASTCACHE_S3_SESSION_TOKEN"),
    ("--s3-customer-key", "FASTCACHE_S3_CUSTOMER_KEY"),
];

/// The flag and the variable of the data plane's secret.
pub const CLUSTER_TOKEN: (&str, &str) = ("--cluster-token", "FASTCACHE_CLUSTER_TOKEN");

/// The same settings, decided. What only the clouds' own variables say is not here: the agent reads those itself.
#[derive(Clone, Debug)]
pub struct CloudSettings {
    /// Without slashes at its ends.
    pub prefix: Option<String>,
    /// PEM file.
    pub ca_file: Option<PathBuf>,
    /// Most uploads at once.
    pub uploads: usize,
    /// How long an object stays that nothing names any more.
    pub garbage_grace: Duration,
    /// Of settings, not of AWS_ACCESS_KEY_ID.
    pub s3_access_key: Option<Secret>,
    /// With it.
    pub s3_secret_key: Option<Secret>,
    /// With it.
    pub s3_session_token: Option<Secret>,
    /// Of settings, not of AWS_PROFILE.
    pub s3_profile: Option<String>,
    /// Path or host.
    pub s3_addressing: Addressing,
    /// Kind of encryption.
    pub s3_encryption: Option<EncryptionKind>,
    /// Key of the key service.
    pub s3_kms_key: Option<String>,
    /// Key of the bucket.
    pub s3_bucket_key: Option<bool>,
    /// Key of SSE-C.
    pub s3_customer_key: Option<Secret>,
    /// Shared access signature.
    pub azure_sas: Option<Secret>,
    /// Application.
    pub azure_client_id: Option<String>,
    /// Its secret.
    pub azure_client_secret: Option<Secret>,
    /// Tenant.
    pub azure_tenant_id: Option<String>,
    /// File of a token.
    pub azure_token_file: Option<PathBuf>,
}

impl CloudSettings {
    /// Lays flags over the file.
    pub(super) fn resolve(
        flags: CloudFlags,
        file: &FileConfig,
    ) -> Result<CloudSettings, UsageError> {
        let text = |flag: Option<String>, file: &Option<String>| {
            filled(flag).or_else(|| filled(file.clone()))
        };
        let secret = |flag: Option<Secret>, file: &Option<String>| {
            flag.filter(|s| !s.expose().is_empty())
                .or_else(|| filled(file.clone()).map(Secret::new))
        };
        let uploads = flags.cloud_uploads.or(file.cloud_uploads);
        let uploads = uploads.map_or(Ok(UPLOADS_DEFAULT), usize::try_from);
        let settings = CloudSettings {
            prefix: text(flags.cloud_prefix, &file.cloud_prefix)
                .map(|p| p.trim_matches('/').to_owned())
                .filter(|p| !p.is_empty()),
            ca_file: flags.cloud_ca.or_else(|| file.cloud_ca.clone()),
            uploads: uploads.unwrap_or(usize::MAX),
            garbage_grace: flags
                .garbage_grace
                .or(file.garbage_grace)
                .map_or(GARBAGE_GRACE_DEFAULT, |s| Duration::from_secs(s.into())),
            s3_access_key: secret(flags.s3_access_key, &file.s3_access_key),
            s3_secret_key: secret(flags.s3_secret_key, &file.s3_secret_key),
            s3_session_token: secret(flags.s3_session_token, &file.s3_session_token),
            s3_profile: text(flags.s3_profile, &file.s3_profile),
            s3_addressing: flags
                .s3_addressing
                .or(file.s3_addressing)
                .unwrap_or_default(),
            s3_encryption: flags.s3_encryption.or(file.s3_encryption),
            s3_kms_key: text(flags.s3_kms_key, &file.s3_kms_key),
            s3_bucket_key: flags.s3_bucket_key.or(file.s3_bucket_key),
            s3_customer_key: secret(flags.s3_customer_key, &file.s3_customer_key),
            azure_sas: secret(flags.azure_sas, &file.azure_sas),
            azure_client_id: text(flags.azure_client_id, &file.azure_client_id),
            azure_client_secret: secret(flags.azure_client_secret, &file.azure_client_secret),
            azure_tenant_id: text(flags.azure_tenant_id, &file.azure_tenant_id),
            azure_token_file: flags
                .azure_token_file
                .or_else(|| file.azure_token_file.clone()),
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), UsageError> {
        let wrong = |text: &str| Err(UsageError(text.to_owned()));
        let is_kms = matches!(
            self.s3_encryption,
            Some(EncryptionKind::Kms | EncryptionKind::KmsDual)
        );
        if !(1..=UPLOADS_MAX).contains(&self.uploads) {
            return Err(UsageError(format!(
                "--cloud-uploads is a number from 1 to {UPLOADS_MAX}"
            )));
        }
        if self.garbage_grace < GARBAGE_GRACE_MIN {
            return Err(UsageError(format!(
                "--garbage-grace is in seconds, at least {}: a read may still be under way so long",
                GARBAGE_GRACE_MIN.as_secs()
            )));
        }
        if self.s3_access_key.is_some() != self.s3_secret_key.is_some() {
            return wrong("set --s3-access-key and --s3-secret-key both, or neither");
        }
        if self.s3_session_token.is_some() && self.s3_access_key.is_none() {
            return wrong(
                "--s3-session-token belongs to --s3-access-key and --s3-secret-key: set them, too",
            );
        }
        if self.s3_customer_key.is_some() && self.s3_encryption.is_some() {
            return wrong("--s3-customer-key and --s3-encryption exclude each other: choose one");
        }
        if (self.s3_kms_key.is_some() || self.s3_bucket_key.is_some()) && !is_kms {
            return wrong(
                "--s3-kms-key and --s3-bucket-key want --s3-encryption aws:kms (or aws:kms:dsse)",
            );
        }
        if self.azure_client_secret.is_some()
            && (self.azure_client_id.is_none() || self.azure_tenant_id.is_none())
        {
            return wrong(
                "--azure-client-secret wants --azure-client-id and --azure-tenant-id, too",
            );
        }
        Ok(())
    }

    /// Access key, secret key and token of AWS's own variables, where no setting names others.
    pub(super) fn keys_of(
        &self,
        env: Environment<'_>,
    ) -> (Option<String>, Option<Secret>, Option<Secret>) {
        if let Some(access) = &self.s3_access_key {
            let access = access.expose().to_owned();
            return (
                Some(access),
                self.s3_secret_key.clone(),
                self.s3_session_token.clone(),
            );
        }
        if self.s3_profile.is_some() {
            return (None, None, None);
        }
        let secret = |name| filled(env(name)).map(Secret::new);
        let access = filled(env("AWS_ACCESS_KEY_ID"));
        let token = secret("AWS_SESSION_TOKEN").filter(|_| access.is_some());
        (access, secret("AWS_SECRET_ACCESS_KEY"), token)
    }

    pub(super) fn encryption(&self) -> Encryption {
        if let Some(key) = &self.s3_customer_key {
            return Encryption::Customer(key.clone());
        }
        match self.s3_encryption {
            None => Encryption::Bucket,
            Some(EncryptionKind::Aes256) => Encryption::Store,
            Some(kind) => Encryption::Kms {
                key_id: self.s3_kms_key.clone(),
                bucket_key: self.s3_bucket_key,
                is_dual: kind == EncryptionKind::KmsDual,
            },
        }
    }

    pub(super) fn public(&self) -> Vec<(&'static str, Option<String>)> {
        let path = |p: &Option<PathBuf>| p.as_ref().map(|p| p.display().to_string());
        vec![
            ("cloud-prefix", self.prefix.clone()),
            ("cloud-ca", path(&self.ca_file)),
            ("cloud-uploads", Some(self.uploads.to_string())),
            (
                "garbage-grace",
                Some(self.garbage_grace.as_secs().to_string()),
            ),
            ("s3-profile", self.s3_profile.clone()),
            ("s3-addressing", Some(name_of(self.s3_addressing))),
            ("s3-encryption", self.s3_encryption.map(name_of)),
            ("s3-kms-key", self.s3_kms_key.clone()),
            ("s3-bucket-key", self.s3_bucket_key.map(|b| b.to_string())),
            ("azure-client-id", self.azure_client_id.clone()),
            ("azure-tenant-id", self.azure_tenant_id.clone()),
            ("azure-token-file", path(&self.azure_token_file)),
        ]
    }

    /// Flag and value of the secrets here.
    pub(super) fn secrets(&self) -> Vec<(&'static str, Option<&Secret>)> {
        vec![
            ("--azure-sas", self.azure_sas.as_ref()),
            ("--azure-client-secret", self.azure_client_secret.as_ref()),
            ("--s3-access-key", self.s3_access_key.as_ref()),
            ("--s3-secret-key", self.s3_secret_key.as_ref()),
            ("--s3-session-token", self.s3_session_token.as_ref()),
            ("--s3-customer-key", self.s3_customer_key.as_ref()),
        ]
    }
}

/// Uploads at once, unless told otherwise: each holds a chunk of 4 MiB in memory.
const UPLOADS_DEFAULT: usize = 8;
/// How long an object stays that nothing names any more, unless told otherwise.
const GARBAGE_GRACE_DEFAULT: Duration = Duration::from_secs(600);
/// And at least: a fetch of what was named when it began takes up to 40 s.
const GARBAGE_GRACE_MIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
