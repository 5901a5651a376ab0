//! Configuration files: what both planes say about a key that does not exist.

/// Keys of the agent's settings. A file may serve both planes, so the data plane knows them by name.
pub const AGENT_KEYS: &[&str] = &[
    "coordinator",
    "socket",
    "port",
    "bind",
    "peer-id",
    "chunk-size",
    "api-key",
    "cloud-provider",
    "s3-bucket",
    "s3-region",
    "s3-endpoint",
    "azure-account",
    "azure-key",
    "azure-container",
    "azure-endpoint",
    "cloud-dir",
    "cloud-prefix",
    "cloud-ca",
    "cloud-uploads",
    "garbage-grace",
    "s3-access-key",
    "s3-secret-key",
    "s3-session-token",
    "s3-profile",
    "s3-addressing",
    "s3-encryption",
    "s3-kms-key",
    "s3-bucket-key",
    "s3-customer-key",
    "azure-sas",
    "azure-client-id",
    "azure-client-secret",
    "azure-tenant-id",
    "azure-token-file",
    "fsync",
    "fsync-copies",
    "state-dir",
    "put-limit",
    "stop-timeout",
];

/// How alike two names must be to be suggested, 0 to 1.
const ALIKE_MIN: f64 = 0.7;

/// The sentence for a key that does not exist: names it, and the nearest of those that do.
#[must_use]
pub fn unknown_key(key: &str, known: &[&str]) -> String {
    let alike = |name: &&str| strsim::jaro_winkler(key, name);
    let nearest = known
        .iter()
        .max_by(|a, b| alike(a).total_cmp(&alike(b)))
        .filter(|name| alike(name) >= ALIKE_MIN);
    match nearest {
        Some(name) => format!("unknown key `{key}`: did you mean `{name}`?"),
        None => format!("unknown key `{key}`; the keys are {}", known.join(", ")),
    }
}

/// Makes the message of serde about an unknown field (`unknown field `a`, expected one of `b`, `c``) the sentence of
/// [`unknown_key`]; any other message stays as it is.
#[must_use]
pub fn explain(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match names.split_first() {
        Some((key, known)) if message.starts_with("unknown field") && !known.is_empty() => {
            unknown_key(key, known)
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_suggested() {
        let said = explain("unknown field `s3-buket`, expected one of `port`, `s3-bucket`, `bind`");
        assert_eq!(said, "unknown key `s3-buket`: did you mean `s3-bucket`?");
        assert!(unknown_key("stop_timeout", AGENT_KEYS).ends_with("`stop-timeout`?"));
        assert!(unknown_key("zzz", &["port", "bind"]).ends_with("port, bind"));
        assert_eq!(explain("invalid type"), "invalid type");
    }
}
