//! Where a store's credentials come from, and what to look at when they are refused.

use crate::error::CloudError;
use std::path::Path;

/// A kind of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A directory wants none.
    Nothing,
    /// Keys of settings, of the environment or of a profile.
    S3Keys,
    S3WebIdentity,
    /// A task's, of ECS.
    S3Container,
    /// A pod's, of EKS.
    S3Pod,
    S3Instance,
    AzureKey,
    AzureSas,
    AzureToken,
    AzureWorkload,
    AzureSecret,
    AzureCli,
    AzureIdentity,
}

impl Source {
    /// Whether it is asked because nothing else names any credentials.
    pub(crate) fn is_last(self) -> bool {
        matches!(self, Source::S3Instance | Source::AzureIdentity)
    }

    /// What to check, and what has to be allowed.
    pub(crate) fn todo(self) -> &'static str {
        match self {
            Source::Nothing => "check who may read and write there",
            Source::S3Keys => "check the keys, and that they may list, get, put and delete",
            Source::S3WebIdentity => {
                "check AWS_ROLE_ARN, that the role trusts the token in AWS_WEB_IDENTITY_TOKEN_FILE and that it is not \
                 over, and that the role may list, get, put and delete"
            }
            Source::S3Container => {
                "check the role of the task (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI), and that it may list, get, put \
                 and delete"
            }
            Source::S3Pod => {
                "check the token in AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, the association of the pod with a role \
                 (AWS_CONTAINER_CREDENTIALS_FULL_URI), and that the role may list, get, put and delete"
            }
            Source::S3Instance => {
                "check that the instance has a role, and that it may list, get, put and delete; other credentials are \
                 set by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a web identity"
            }
            Source::AzureKey => "check --azure-account, and --azure-key or AZURE_STORAGE_KEY",
            Source::AzureSas => {
                "the shared access signature may be over, or may not read, write, list and delete in this container: \
                 make a new one, for --azure-sas or AZURE_STORAGE_SAS_TOKEN"
            }
            Source::AzureToken => "the token in AZURE_STORAGE_TOKEN may be over: get a new one",
            Source::AzureWorkload => {
                "check AZURE_CLIENT_ID, AZURE_TENANT_ID, that the application trusts the token in \
                 AZURE_FEDERATED_TOKEN_FILE, and that it has the role Storage Blob Data Contributor"
            }
            Source::AzureSecret => {
                "check AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_CLIENT_SECRET and when that ends, and that the \
                 application has the role Storage Blob Data Contributor"
            }
            Source::AzureCli => "check `az account show`, and log in anew with `az login`",
            Source::AzureIdentity => {
                "check that this machine has the managed identity (AZURE_CLIENT_ID, AZURE_OBJECT_ID or \
                 AZURE_MSI_RESOURCE_ID name one of several), and that it has the role Storage Blob Data Contributor; \
                 other credentials are set by AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or a workload identity"
            }
        }
    }

    /// The sentence for an error that came from the service that hands out credentials, and not from the store.
    pub(crate) fn unavailable(self, place: &str, error: &CloudError) -> CloudError {
        let todo = self.todo();
        if error.is_passing() && self.is_last() {
            return CloudError::Denied(format!(
                "there are no credentials for {place}: no setting, variable or profile has any, and this machine has no \
                 identity that answers; {todo}. ({error})"
            ));
        }
        match error {
            CloudError::Denied(e) => CloudError::Denied(format!(
                "credentials for {place} are refused by the service that should give them; {todo}. ({e})"
            )),
            error => CloudError::Transient(format!(
                "the service that gives credentials for {place} cannot be reached; check the network to it. ({error})"
            )),
        }
    }
}

/// A file with a token has to be there, and to be one that can be sent.
pub(crate) fn check_token_file(variable: &str, path: &Path) -> Result<(), CloudError> {
    let wrong = |what: &dyn std::fmt::Display| {
        Err(CloudError::Config(format!(
            "the file {} of {variable} has no token that can be used ({what}); mount the token there, or unset the \
             variable",
            path.display()
        )))
    };
    match std::fs::read_to_string(path) {
        Err(e) => wrong(&e),
        Ok(token) if token.trim().is_empty() => wrong(&"it is empty"),
        Ok(token) if token.contains(|c: char| c.is_control()) => {
            wrong(&"it contains more than one word: a line end, or the like")
        }
        Ok(_) => Ok(()),
    }
}
