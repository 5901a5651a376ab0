//! From a configuration to a store: addresses, credentials, encryption, deadlines of requests. Makes no request.

use crate::config::{AzureConfig, CloudConfig, Encryption, Environment, S3Config, Secret};
use crate::error::CloudError;
use crate::mounted::Mounted;
use crate::observe::{Observer, Watch};
use crate::profile::{Files, Profile, ProfileKeys};
use crate::source::{Source, check_token_file};
use crate::{CALL_DEADLINE, CONNECT_DEADLINE, REQUEST_DEADLINE};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Retries that the crate makes by itself of what is not a chunk: listings, metadata, deletions, small objects.
const RETRIES: usize = 3;

/// Variables of the clouds' own that credentials are taken from when no setting names any, with the tools' names for
/// them. Keys come first, then a profile, a web identity, a container's and last the instance's identity.
pub const CREDENTIAL_VARIABLES: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_IMDSV1_FALLBACK",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_OBJECT_ID",
    "AZURE_MSI_RESOURCE_ID",
    "AZURE_MSI_ENDPOINT",
    "IDENTITY_ENDPOINT",
    "MSI_ENDPOINT",
    "AZURE_USE_AZURE_CLI",
    "AZURE_CREDENTIAL_TYPE",
    "AZURE_STORAGE_ENCRYPTION_KEY",
];

/// One store, twice.
pub(crate) struct Opened {
    /// Tries a failed request again by itself.
    pub(crate) patient: Arc<dyn ObjectStore>,
    /// Tells every failure at once: who calls it counts them.
    pub(crate) once: Arc<dyn ObjectStore>,
    /// Whether objects have metadata.
    pub(crate) has_attributes: bool,
    /// Where its credentials come from.
    pub(crate) source: Source,
}

/// Both stores of a builder. Those of the two clouds have the same methods and no trait in common.
macro_rules! twice {
    ($builder:expr, $prefix:expr, $config:expr) => {{
        let (builder, source) = $builder;
        let patient = builder.clone().with_retry(retry(RETRIES)).build();
        let patient = patient.map_err(|e| refused($config, &e))?;
        // Temporary credentials are asked for once.
        let builder = builder.with_credentials(patient.credentials().clone());
        let once = builder.with_retry(retry(0)).build();
        let once = once.map_err(|e| refused($config, &e))?;
        Opened {
            patient: below($prefix, patient)?,
            once: below($prefix, once)?,
            has_attributes: true,
            source,
        }
    }};
}

/// Opens what a configuration names; `None` for the provider `none`.
pub(crate) fn open(config: &CloudConfig, watch: &Arc<Watch>) -> Result<Option<Opened>, CloudError> {
    let opened = match config {
        CloudConfig::None => return Ok(None),
        CloudConfig::S3(s3) => twice!(s3_builder(s3, watch)?, &s3.prefix, config),
        CloudConfig::Azure(azure) => twice!(azure_builder(azure, watch)?, &azure.prefix, config),
        CloudConfig::Dir { path } => {
            std::fs::create_dir_all(path).map_err(|e| {
                CloudError::Config(format!(
                    "cannot make the directory {}: {e}; choose another with --cloud-dir",
                    path.display()
                ))
            })?;
            let store = LocalFileSystem::new_with_prefix(path)
                .map_err(|e| refused(config, &e))?
                .with_fsync(true)
                .with_automatic_cleanup(true);
            let store: Arc<dyn ObjectStore> = Arc::new(Mounted::new(store, path));
            Opened {
                patient: store.clone(),
                once: store,
                has_attributes: false,
                source: Source::Nothing,
            }
        }
    };
    Ok(Some(opened))
}

fn refused(config: &CloudConfig, error: &object_store::Error) -> CloudError {
    CloudError::Config(format!(
        "{} cannot be used as configured: {error}",
        config.place()
    ))
}

fn wrong<T>(text: impl Into<String>) -> Result<T, CloudError> {
    Err(CloudError::Config(text.into()))
}

fn below(
    prefix: &Option<String>,
    store: impl ObjectStore,
) -> Result<Arc<dyn ObjectStore>, CloudError> {
    let Some(prefix) = prefix
        .as_deref()
        .map(|p| p.trim_matches('/'))
        .filter(|p| !p.is_empty())
    else {
        return Ok(Arc::new(store));
    };
    match object_store::path::Path::parse(prefix) {
        Ok(path) => Ok(Arc::new(PrefixStore::new(store, path))),
        Err(e) => wrong(format!(
            "the prefix `{prefix}` cannot be part of a key ({e}); choose another with --cloud-prefix"
        )),
    }
}

fn s3_builder(
    config: &S3Config,
    watch: &Arc<Watch>,
) -> Result<(AmazonS3Builder, Source), CloudError> {
    if config.bucket.is_empty() {
        return wrong("no bucket is named; set --s3-bucket");
    }
    let env = &config.environment;
    let is_http = is_plain_http(config.endpoint.as_deref())?;
    let is_sts_http = env
        .get("AWS_ENDPOINT_URL_STS")
        .is_some_and(|e| e.starts_with("http://"));
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&config.bucket)
        .with_region(&config.region)
        .with_disable_bulk_delete(true)
        .with_virtual_hosted_style_request(config.is_virtual_hosted)
        .with_client_options(client(is_http, &config.ca_file)?)
        .with_http_connector(Observer::new(watch.clone(), is_sts_http));
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    builder = encrypt(builder, config, is_http)?;
    s3_credentials(builder, config)
}

fn encrypt(
    builder: AmazonS3Builder,
    config: &S3Config,
    is_http: bool,
) -> Result<AmazonS3Builder, CloudError> {
    // The type of these keys is not public; their names are.
    let set = |builder: AmazonS3Builder, key: &str, value: &str| match key.parse() {
        Ok(key) => Ok(builder.with_config(key, value)),
        Err(e) => wrong::<AmazonS3Builder>(format!("{key}: {e}")),
    };
    let kind = "aws_server_side_encryption";
    Ok(match &config.encryption {
        Encryption::Bucket => builder,
        Encryption::Store => set(builder, kind, "AES256")?,
        Encryption::Kms {
            key_id,
            bucket_key,
            is_dual,
        } => {
            let name = if *is_dual { "aws:kms:dsse" } else { "aws:kms" };
            let mut builder = set(builder, kind, name)?;
            if let Some(id) = key_id {
                builder = set(builder, "aws_sse_kms_key_id", id)?;
            }
            if let Some(is_used) = bucket_key {
                builder = set(builder, "aws_sse_bucket_key_enabled", &is_used.to_string())?;
            }
            builder
        }
        Encryption::Customer(_) if is_http => {
            return wrong(
                "a customer key (--s3-customer-key) would cross the network in the clear; use an https endpoint",
            );
        }
        Encryption::Customer(key) => {
            let builder = set(builder, kind, "sse-c")?;
            set(builder, "aws_sse_customer_key_base64", key.expose())?
        }
    })
}

/// The first of: keys of the settings, profile of the settings, keys of the environment, its profile, web identity,
/// container, default profile, instance.
fn s3_credentials(
    mut builder: AmazonS3Builder,
    config: &S3Config,
) -> Result<(AmazonS3Builder, Source), CloudError> {
    let env = &config.environment;
    match (&config.access_key, &config.secret_key) {
        (Some(access), Some(secret)) => {
            builder = builder
                .with_access_key_id(access)
                .with_secret_access_key(secret.expose());
            if let Some(token) = &config.session_token {
                builder = builder.with_token(token.expose());
            }
            return Ok((builder, Source::S3Keys));
        }
        (None, None) => {}
        _ => {
            return wrong(
                "only one half of the S3 credentials is set; set both AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, or neither",
            );
        }
    }
    let has_keys = env.get("AWS_ACCESS_KEY_ID").is_some();
    if has_keys != env.get("AWS_SECRET_ACCESS_KEY").is_some() {
        return wrong(
            "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is in the environment; set both, or neither",
        );
    }
    let named = config
        .profile
        .as_deref()
        .or_else(|| env.get("AWS_PROFILE").filter(|_| !has_keys));
    if let Some(name) = named {
        return match of_profile(&builder, env, name)? {
            Some(found) => Ok(found),
            None => wrong(format!(
                "there are no keys in the AWS profile `{name}` ({}); add aws_access_key_id and \
                 aws_secret_access_key, or name another profile with --s3-profile",
                Files::of(env).names()
            )),
        };
    }
    let copied = [
        ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
        ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
        ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
        (
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            AmazonS3ConfigKey::WebIdentityTokenFile,
        ),
        ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
        ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
        ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
        (
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
        ),
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            AmazonS3ConfigKey::ContainerCredentialsFullUri,
        ),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
        ),
        (
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            AmazonS3ConfigKey::MetadataEndpoint,
        ),
        ("AWS_IMDSV1_FALLBACK", AmazonS3ConfigKey::ImdsV1Fallback),
    ];
    for (name, key) in copied {
        if let Some(value) = env.get(name) {
            builder = builder.with_config(key, value);
        }
    }
    let token_of = |name: &str| match env.get(name) {
        Some(path) => check_token_file(name, Path::new(path)),
        None => Ok(()),
    };
    let is_set = |names: &[&str]| names.iter().all(|n| env.get(n).is_some());
    if has_keys {
        return Ok((builder, Source::S3Keys));
    }
    if is_set(&["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"]) {
        token_of("AWS_WEB_IDENTITY_TOKEN_FILE")?;
        return Ok((builder, Source::S3WebIdentity));
    }
    if is_set(&["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]) {
        return Ok((builder, Source::S3Container));
    }
    if is_set(&[
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ]) {
        token_of("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")?;
        return Ok((builder, Source::S3Pod));
    }
    if let Some(found) = of_profile(&builder, env, "default")? {
        return Ok(found);
    }
    if env
        .get("AWS_EC2_METADATA_DISABLED")
        .is_some_and(|v| v.eq_ignore_ascii_case("true"))
    {
        return wrong(
            "there are no S3 credentials, and AWS_EC2_METADATA_DISABLED forbids to ask the instance; set \
             AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or --s3-profile",
        );
    }
    Ok((builder, Source::S3Instance))
}

fn of_profile(
    builder: &AmazonS3Builder,
    env: &Environment,
    name: &str,
) -> Result<Option<(AmazonS3Builder, Source)>, CloudError> {
    let files = Files::of(env);
    let builder = builder.clone();
    Ok(match files.profile(name).map_err(CloudError::Config)? {
        None => None,
        Some(Profile::Keys(keys)) => {
            let keys = ProfileKeys::new(files, name, keys);
            Some((builder.with_credentials(Arc::new(keys)), Source::S3Keys))
        }
        Some(Profile::WebIdentity {
            role,
            token_file,
            session,
        }) => {
            check_token_file("web_identity_token_file", Path::new(&token_file))?;
            let mut builder = builder
                .with_config(AmazonS3ConfigKey::RoleArn, role)
                .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, token_file);
            if let Some(session) = session {
                builder = builder.with_config(AmazonS3ConfigKey::RoleSessionName, session);
            }
            if let Some(sts) = env.get("AWS_ENDPOINT_URL_STS") {
                builder = builder.with_config(AmazonS3ConfigKey::StsEndpoint, sts);
            }
            Some((builder, Source::S3WebIdentity))
        }
    })
}

fn azure_builder(
    config: &AzureConfig,
    watch: &Arc<Watch>,
) -> Result<(MicrosoftAzureBuilder, Source), CloudError> {
    if config.account.is_empty() {
        return wrong("no storage account is named; set --azure-account or AZURE_STORAGE_ACCOUNT");
    }
    if config.container.is_empty() {
        return wrong("no container is named; set --azure-container");
    }
    let is_http = is_plain_http(config.endpoint.as_deref())?;
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(&config.account)
        .with_container_name(&config.container)
        .with_client_options(client(is_http, &config.ca_file)?)
        .with_http_connector(Observer::new(watch.clone(), false));
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    let env = &config.environment;
    let text = |s: &Option<String>| s.clone();
    let secret = |s: &Option<Secret>| s.as_ref().map(|s| s.expose().to_owned());
    let path = |p: &Option<PathBuf>| p.as_ref().map(|p| p.display().to_string());
    // A setting of one kind must not be beaten by a variable of another.
    let is_set = config.key.is_some() || config.sas.is_some() || config.client_secret.is_some();
    let of_env = |name: &str| env.get(name).filter(|_| !is_set).map(str::to_owned);
    let values = [
        (
            AzureConfigKey::AccessKey,
            secret(&config.key).or_else(|| of_env("AZURE_STORAGE_KEY")),
        ),
        (
            AzureConfigKey::SasKey,
            secret(&config.sas).or_else(|| of_env("AZURE_STORAGE_SAS_TOKEN")),
        ),
        (AzureConfigKey::Token, of_env("AZURE_STORAGE_TOKEN")),
        (
            AzureConfigKey::ClientId,
            text(&config.client_id).or_else(|| of_env("AZURE_CLIENT_ID")),
        ),
        (
            AzureConfigKey::ClientSecret,
            secret(&config.client_secret).or_else(|| of_env("AZURE_CLIENT_SECRET")),
        ),
        (
            AzureConfigKey::AuthorityId,
            text(&config.tenant_id).or_else(|| of_env("AZURE_TENANT_ID")),
        ),
        (
            AzureConfigKey::FederatedTokenFile,
            path(&config.federated_token_file).or_else(|| of_env("AZURE_FEDERATED_TOKEN_FILE")),
        ),
        (
            AzureConfigKey::AuthorityHost,
            env.get("AZURE_AUTHORITY_HOST").map(str::to_owned),
        ),
        (AzureConfigKey::ObjectId, of_env("AZURE_OBJECT_ID")),
        (
            AzureConfigKey::MsiResourceId,
            of_env("AZURE_MSI_RESOURCE_ID"),
        ),
        (
            AzureConfigKey::MsiEndpoint,
            ["AZURE_MSI_ENDPOINT", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"]
                .iter()
                .find_map(|n| of_env(n)),
        ),
        (AzureConfigKey::UseAzureCli, of_env("AZURE_USE_AZURE_CLI")),
        (
            AzureConfigKey::CredentialType,
            of_env("AZURE_CREDENTIAL_TYPE"),
        ),
        (
            AzureConfigKey::EncryptionKey,
            env.get("AZURE_STORAGE_ENCRYPTION_KEY").map(str::to_owned),
        ),
    ];
    let mut set = Vec::new();
    for (key, value) in values {
        let Some(value) = value else { continue };
        if key == AzureConfigKey::FederatedTokenFile {
            check_token_file("AZURE_FEDERATED_TOKEN_FILE", Path::new(&value))?;
        }
        if key == AzureConfigKey::EncryptionKey && is_http {
            return wrong(
                "the customer's key (AZURE_STORAGE_ENCRYPTION_KEY) would cross the network in the clear; use an https \
                 endpoint",
            );
        }
        set.push(key);
        builder = builder.with_config(key, value);
    }
    Ok((builder, azure_source(env, &set)))
}

/// Which of the credentials that are set are used, as the crate has it.
fn azure_source(env: &Environment, set: &[AzureConfigKey]) -> Source {
    let has = |keys: &[AzureConfigKey]| keys.iter().all(|key| set.contains(key));
    let identity = [AzureConfigKey::ClientId, AzureConfigKey::AuthorityId];
    let is_application = has(&identity);
    match env.get("AZURE_CREDENTIAL_TYPE") {
        Some("bearer_token") => Source::AzureToken,
        Some("access_key") => Source::AzureKey,
        Some("client_secret") => Source::AzureSecret,
        Some("workload_identity") => Source::AzureWorkload,
        Some("sas_token") => Source::AzureSas,
        Some("azure_cli") => Source::AzureCli,
        Some("managed_identity") => Source::AzureIdentity,
        _ if has(&[AzureConfigKey::Token]) => Source::AzureToken,
        _ if has(&[AzureConfigKey::AccessKey]) => Source::AzureKey,
        _ if is_application && has(&[AzureConfigKey::FederatedTokenFile]) => Source::AzureWorkload,
        _ if is_application && has(&[AzureConfigKey::ClientSecret]) => Source::AzureSecret,
        _ if has(&[AzureConfigKey::SasKey]) => Source::AzureSas,
        _ if has(&[AzureConfigKey::UseAzureCli]) => Source::AzureCli,
        _ => Source::AzureIdentity,
    }
}

fn retry(max_retries: usize) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries,
        retry_timeout: CALL_DEADLINE,
    }
}

fn client(is_http: bool, ca_file: &Option<PathBuf>) -> Result<ClientOptions, CloudError> {
    let mut options = ClientOptions::new()
        .with_allow_http(is_http)
        .with_timeout(REQUEST_DEADLINE)
        .with_connect_timeout(CONNECT_DEADLINE);
    if let Some(path) = ca_file {
        for certificate in certificates(path)? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, CloudError> {
    let what = |e: &dyn std::fmt::Display| {
        CloudError::Config(format!(
            "cannot use {} (--cloud-ca): {e}; it must hold certificates in PEM",
            path.display()
        ))
    };
    let pem = std::fs::read(path).map_err(|e| what(&e))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|e| what(&e))?;
    if found.is_empty() {
        return Err(what(&"there is no certificate in it"));
    }
    Ok(found)
}

fn is_plain_http(endpoint: Option<&str>) -> Result<bool, CloudError> {
    match endpoint {
        None => Ok(false),
        Some(e) if e.starts_with("https://") => Ok(false),
        Some(e) if e.starts_with("http://") => Ok(true),
        Some(e) => wrong(format!(
            "the endpoint `{e}` must start with http:// or https://"
        )),
    }
}
