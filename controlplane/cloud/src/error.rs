//! What can go wrong with an object store, by what a caller can do about it.

use object_store::Error;

/// Why a request to the object store failed. The text never holds credentials.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CloudError {
    /// The object (or bucket) is not there: trying again will not help.
    #[error("not found: {0}")]
    NotFound(String),
    /// The store asks for fewer requests: try again later.
    #[error("throttled: {0}")]
    Throttled(String),
    /// Network, time-out, or an error of the server: try again later.
    #[error("{0}")]
    Transient(String),
    /// The credentials do not suffice: an administrator has to act. Try again rarely.
    #[error("access denied: {0}")]
    Denied(String),
    /// What came is not what was uploaded, also when it was asked for again: the object was altered, or something between
    /// here and the store alters it. Names the object.
    #[error("altered: {0}")]
    Altered(String),
    /// Wrong settings: an administrator has to act.
    #[error("{0}")]
    Config(String),
}

impl CloudError {
    /// The same as [`CloudError::of`], naming the object also where the store's own words do not.
    pub(crate) fn about(object: &str, error: Error) -> CloudError {
        let mut text = chain(&error);
        if !text.contains(object) {
            text = format!("object {object}: {text}");
        }
        CloudError::with_text(error, text)
    }

    pub(crate) fn of(error: Error) -> CloudError {
        let text = chain(&error);
        CloudError::with_text(error, text)
    }

    fn with_text(error: Error, text: String) -> CloudError {
        match error {
            Error::NotFound { .. } => CloudError::NotFound(text),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                CloudError::Denied(text)
            }
            Error::UnknownConfigurationKey { .. }
            | Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. } => CloudError::Config(text),
            // Listings answer everything as a generic error: the text tells.
            _ if says(
                &text,
                &["NoSuchBucket", "ContainerNotFound", "404 Not Found"],
            ) =>
            {
                CloudError::NotFound(text)
            }
            _ if says(&text, &REFUSED) || is_refused_identity(&text) => CloudError::Denied(text),
            _ if text.contains(BAD_CERTIFICATE) => CloudError::Config(text),
            _ if says(
                &text,
                &["SlowDown", "429 Too Many", "503 Service", "ServerBusy"],
            ) =>
            {
                CloudError::Throttled(text)
            }
            _ if says(&text, &WRONG_SETTINGS) => CloudError::Config(text),
            _ => CloudError::Transient(text),
        }
    }

    /// Whether it comes from the service that hands out credentials, and not from the store.
    pub(crate) fn is_of_identity(&self) -> bool {
        is_of_identity(&self.to_string())
    }

    /// Whether a certificate was shown that is not trusted.
    pub(crate) fn is_of_certificate(&self) -> bool {
        self.to_string().contains(BAD_CERTIFICATE)
    }

    /// Whether the same request may succeed later without anybody changing settings.
    pub fn is_passing(&self) -> bool {
        matches!(self, CloudError::Throttled(_) | CloudError::Transient(_))
    }
}

/// What stores answer to wrong credentials; tokens that are over come as 400.
const REFUSED: [&str; 6] = [
    "403 Forbidden",
    "401 Unauthorized",
    "ExpiredToken",
    "InvalidToken",
    "InvalidAccessKeyId",
    "AuthenticationFailed",
];

/// What a client says of a certificate.
const BAD_CERTIFICATE: &str = "invalid peer certificate";

/// How errors begin that are about credentials that had to be asked for: tokens of Azure; the request to Amazon's STS,
/// the one POST that is made; and where metadata services answer.
const IDENTITY: [&str; 8] = [
    "token request",
    "token response",
    "Generic S3 error: Error performing POST REDACTED",
    "AssumeRoleWithWebIdentity",
    "/latest/api/token",
    "/latest/meta-data/",
    "://169.254.170.",
    " token file",
];

fn is_of_identity(text: &str) -> bool {
    says(text, &IDENTITY)
}

/// Such a service has answered, and asking again the same way will not help.
fn is_refused_identity(text: &str) -> bool {
    is_of_identity(text)
        && (text.contains(" token file") || text.contains("non-2xx status code: 4"))
        && !says(text, &["408 Request", "429 Too Many"])
}

/// What stores answer when region, endpoint or name are wrong.
const WRONG_SETTINGS: [&str; 4] = [
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "InvalidBucketName",
    "InvalidResourceName",
];

fn says(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.contains(word))
}

/// An error and its causes in one line, without repeating what an outer text already says.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = c.source();
    }
    text.replace('\n', " ")
}
