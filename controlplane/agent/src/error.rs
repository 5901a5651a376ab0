//! What can go wrong when an agent starts.

use std::path::PathBuf;

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting cannot be used; the text says which and what to do.
    #[error("{0}")]
    Config(String),
    /// The state directory cannot be used.
    #[error("cannot use {path}: {source}")]
    State {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There can be no thread for the lanes.
    #[error("no thread for the lanes: {0}")]
    Thread(std::io::Error),
    /// The object store refuses; the text says what to do.
    #[error("object store: {0}")]
    Cloud(String),
    /// The namespace cannot be opened.
    #[error("namespace: {0}")]
    Namespace(String),
}
