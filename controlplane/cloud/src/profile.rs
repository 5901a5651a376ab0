//! Profiles of the files that the AWS tools share: `~/.aws/credentials` and `~/.aws/config`.
//!
//! Understood are static keys (with a session token) and web identity. `sso`, `credential_process` and `source_profile`
//! are not: they are named in the error. The files are read again when they change, since tools that rotate keys
//! rewrite them.

use crate::config::Environment;
use async_trait::async_trait;
use object_store::aws::AwsCredential;
use object_store::{CredentialProvider, Error};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Where the profiles are.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    credentials: PathBuf,
    config: PathBuf,
}

/// What a profile says.
#[derive(Debug)]
pub(crate) enum Profile {
    Keys(AwsCredential),
    WebIdentity {
        role: String,
        token_file: String,
        session: Option<String>,
    },
}

impl Files {
    /// Where `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE` say, else below the home directory.
    pub(crate) fn of(environment: &Environment) -> Files {
        let home = Path::new(environment.get("HOME").unwrap_or("/root")).join(".aws");
        let file = |variable: &str, name: &str| {
            environment
                .get(variable)
                .map_or_else(|| home.join(name), PathBuf::from)
        };
        Files {
            credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: file("AWS_CONFIG_FILE", "config"),
        }
    }

    /// A profile; `None` when neither file has it. The text of an error says what to do.
    pub(crate) fn profile(&self, name: &str) -> Result<Option<Profile>, String> {
        let section = match name {
            "default" => "default".to_owned(),
            _ => format!("profile {name}"),
        };
        let mut values = read(&self.config, &section)?;
        let credentials = read(&self.credentials, name)?;
        if values.is_none() && credentials.is_none() {
            return Ok(None);
        }
        let mut all = values.take().unwrap_or_default();
        all.extend(credentials.unwrap_or_default());
        let get = |key: &str| all.get(key).filter(|v| !v.is_empty()).cloned();
        if let (Some(key_id), Some(secret_key)) =
            (get("aws_access_key_id"), get("aws_secret_access_key"))
        {
            let token = get("aws_session_token");
            return Ok(Some(Profile::Keys(AwsCredential {
                key_id,
                secret_key,
                token,
            })));
        }
        if let (Some(role), Some(token_file)) = (get("role_arn"), get("web_identity_token_file")) {
            let session = get("role_session_name");
            return Ok(Some(Profile::WebIdentity {
                role,
                token_file,
                session,
            }));
        }
        let unknown = [
            "credential_process",
            "sso_session",
            "sso_start_url",
            "source_profile",
        ];
        match unknown.iter().find(|key| all.contains_key(**key)) {
            Some(key) => Err(format!(
                "the AWS profile `{name}` uses {key}, which is not supported; put keys into it, or export \
                 AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (aws configure \
                 export-credentials prints them)"
            )),
            // Region and output alone are common.
            None => Ok(None),
        }
    }

    fn changed(&self) -> [Option<SystemTime>; 2] {
        [&self.credentials, &self.config]
            .map(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok())
    }

    pub(crate) fn names(&self) -> String {
        format!(
            "{} and {}",
            self.credentials.display(),
            self.config.display()
        )
    }
}

/// The values of one section; `None` when the file or the section is not there.
fn read(path: &Path, section: &str) -> Result<Option<BTreeMap<String, String>>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("cannot read {}: {e}", path.display())),
    };
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut is_inside = false;
    for line in text.lines() {
        let plain = line.trim();
        if plain.starts_with(['#', ';']) || plain.is_empty() {
            continue;
        }
        if let Some(name) = plain.strip_prefix('[').and_then(|l| l.split_once(']')) {
            let name: Vec<&str> = name.0.split_whitespace().collect();
            is_inside = name.join(" ") == section;
            if is_inside {
                found.get_or_insert_default();
            }
        } else if let (true, Some((key, value)), false) =
            // An indented line belongs to the value above it: none of those is ours.
            (
                is_inside,
                plain.split_once('='),
                line.starts_with([' ', '\t']),
            )
            && let Some(values) = &mut found
        {
            values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    Ok(found)
}

/// The keys of a profile, read again when a file changes.
#[derive(Debug)]
pub(crate) struct ProfileKeys {
    files: Files,
    name: String,
    last: Mutex<([Option<SystemTime>; 2], Arc<AwsCredential>)>,
}

impl ProfileKeys {
    pub(crate) fn new(files: Files, name: &str, keys: AwsCredential) -> ProfileKeys {
        let last = Mutex::new((files.changed(), Arc::new(keys)));
        ProfileKeys {
            files,
            name: name.to_owned(),
            last,
        }
    }
}

#[async_trait]
impl CredentialProvider for ProfileKeys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let changed = self.files.changed();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != changed {
            match self.files.profile(&self.name) {
                Ok(Some(Profile::Keys(keys))) => *last = (changed, Arc::new(keys)),
                // Being rewritten: the old keys stay good until the store refuses them.
                Ok(_) => {}
                Err(text) => {
                    return Err(Error::Unauthenticated {
                        path: self.name.clone(),
                        source: text.into(),
                    });
                }
            }
        }
        Ok(last.1.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(credentials: &str, config: &str) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        std::fs::write(dir.path().join(".aws/credentials"), credentials).unwrap();
        std::fs::write(dir.path().join(".aws/config"), config).unwrap();
        let home = dir.path().to_str().unwrap().to_owned();
        let files = Files::of(&Environment::from_iter([("HOME", home)]));
        (dir, files)
    }

    #[tokio::test]
    async fn keys_are_read_again_when_the_file_changes() {
        let (dir, files) = files(
            "# mine\n[default]\naws_access_key_id = a\naws_secret_access_key=b\n\n[ci]\naws_access_key_id=c\n\
             aws_secret_access_key = d = e\naws_session_token=t\n",
            "[profile ci]\nregion = x\ns3 =\n  aws_access_key_id = wrong\n",
        );
        let Some(Profile::Keys(keys)) = files.profile("ci").unwrap() else {
            panic!("keys");
        };
        assert_eq!(
            (&*keys.key_id, &*keys.secret_key, keys.token.as_deref()),
            ("c", "d = e", Some("t"))
        );
        assert!(files.profile("nobody").unwrap().is_none());
        let provider = ProfileKeys::new(files, "ci", keys);
        assert_eq!(provider.get_credential().await.unwrap().key_id, "c");
        let path = dir.path().join(".aws/credentials");
        std::fs::write(
            &path,
            "[ci]\naws_access_key_id=new\naws_secret_access_key=x\n",
        )
        .unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert_eq!(provider.get_credential().await.unwrap().key_id, "new");
    }

    #[test]
    fn what_is_not_supported_is_said() {
        let (_dir, files) = files(
            "",
            "[profile s]\nsso_session = x\n[profile w]\nrole_arn = r\nweb_identity_token_file = f\n",
        );
        assert!(files.profile("s").unwrap_err().contains("sso_session"));
        assert!(matches!(
            files.profile("w").unwrap(),
            Some(Profile::WebIdentity { .. })
        ));
    }
}
