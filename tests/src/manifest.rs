//! What the manifests in `k8s/` have their containers run, for tests that run it.

use crate::machine::{repository, run};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// A container of a kustomization.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its command line.
    pub command: Vec<String>,
    /// Names and values of its variables, those aside that only Kubernetes knows.
    pub environment: Vec<(String, String)>,
    /// Paths that are volumes.
    pub mounts: Vec<String>,
    /// User id it runs as.
    pub user: u64,
}

impl Container {
    /// Of a folder below `k8s/`, by its name.
    ///
    /// # Panics
    /// When it is not there.
    pub fn of(folder: &str, name: &str) -> Container {
        let text = run(Command::new(repository().join(".venv/bin/python"))
            .arg(repository().join("tests/manifests.py"))
            .arg("show")
            .arg(repository().join("k8s").join(folder)));
        let all: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let found = &all[name];
        let words = |list: &Value| -> Vec<String> {
            let list = list.as_array().into_iter().flatten();
            list.filter_map(|w| w.as_str().map(str::to_owned)).collect()
        };
        let variables = found["environment"].as_object().into_iter().flatten();
        let container = Container {
            command: words(&found["command"]),
            environment: variables
                .map(|(name, value)| (name.clone(), value.as_str().unwrap_or("").to_owned()))
                .collect(),
            mounts: words(&found["mounts"]),
            user: found["user"].as_u64().unwrap_or(0),
        };
        assert!(!container.command.is_empty(), "{name} in {folder}: {text}");
        container
    }

    /// The same with its volumes below a folder, where there is no container: in the command line and in the variables.
    #[must_use]
    pub fn below(mut self, root: &Path) -> Container {
        let mounts = self.mounts.clone();
        let moved = |path: &str| -> Option<String> {
            let is_ours = mounts.iter().any(|m| Path::new(path).starts_with(m));
            (is_ours && path != "/dev/fuse").then(|| format!("{}{path}", root.display()))
        };
        for word in &mut self.command {
            if let Some((flag, path)) = word.split_once('=')
                && let Some(path) = moved(path)
            {
                *word = format!("{flag}={path}");
            }
        }
        for (_, value) in &mut self.environment {
            if let Some(path) = moved(value) {
                *value = path;
            }
        }
        self
    }
}
