//! Google Cloud's REST APIs, as far as a setup needs them: which there are, one client for all, and their errors.
//!
//! `client` sends and tries again, `operation` waits for what takes long, `error` reads refusals. Nothing here knows
//! what is set up.

mod client;
mod error;
mod operation;

use std::fmt;
use std::str::FromStr;

pub(super) use client::{Client, ClientArgs, delays, encoded};
pub(super) use error::ApiError;

/// The APIs that are spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Api {
    ArtifactRegistry,
    CloudBuild,
    Dataflow,
    Iam,
    Logging,
    Monitoring,
    Pubsub,
    ResourceManager,
    Run,
    SecretManager,
    ServiceUsage,
}

impl Api {
    const ALL: [Self; 11] = [
        Self::ArtifactRegistry,
        Self::CloudBuild,
        Self::Dataflow,
        Self::Iam,
        Self::Logging,
        Self::Monitoring,
        Self::Pubsub,
        Self::ResourceManager,
        Self::Run,
        Self::SecretManager,
        Self::ServiceUsage,
    ];

    /// The first label of its host name, by which operators know it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::ArtifactRegistry => "artifactregistry",
            Self::CloudBuild => "cloudbuild",
            Self::Dataflow => "dataflow",
            Self::Iam => "iam",
            Self::Logging => "logging",
            Self::Monitoring => "monitoring",
            Self::Pubsub => "pubsub",
            Self::ResourceManager => "cloudresourcemanager",
            Self::Run => "run",
            Self::SecretManager => "secretmanager",
            Self::ServiceUsage => "serviceusage",
        }
    }

    /// Its host, which is also what it is enabled by.
    pub(super) fn host(self) -> String {
        format!("{}.googleapis.com", self.word())
    }

    /// The predefined role with every right on it that a setup needs.
    pub(super) fn role(self) -> &'static str {
        match self {
            Self::ArtifactRegistry => "roles/artifactregistry.admin",
            Self::CloudBuild => "roles/cloudbuild.builds.editor",
            Self::Dataflow => "roles/dataflow.developer",
            Self::Iam => "roles/iam.serviceAccountAdmin",
            Self::Logging => "roles/logging.configWriter",
            Self::Monitoring => "roles/monitoring.editor",
            Self::Pubsub => "roles/pubsub.admin",
            Self::ResourceManager => "roles/resourcemanager.projectIamAdmin",
            Self::Run => "roles/run.admin",
            Self::SecretManager => "roles/secretmanager.admin",
            Self::ServiceUsage => "roles/serviceusage.serviceUsageAdmin",
        }
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Another place for one API, `API=URL`.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    api: Api,
    url: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, url) = text.split_once('=').ok_or("an endpoint is written API=URL")?;
        let api = Api::ALL.into_iter().find(|api| api.word() == word).ok_or_else(|| {
            let all: Vec<&str> = Api::ALL.iter().map(|api| api.word()).collect();
            format!("there is no API {word:?}; there are {}", all.join(", "))
        })?;
        let scheme = url::Url::parse(url).map_err(|error| format!("{url:?}: {error}"))?.scheme().to_owned();
        if scheme != "https" && scheme != "http" {
            return Err(format!("{url:?} is no http or https URL"));
        }
        Ok(Self { api, url: url.trim_end_matches('/').to_owned() })
    }
}
