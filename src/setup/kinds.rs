//! The kinds of objects that a setup is made of: a table.

use http::Method;

use super::api::Api;
use super::resource::{Create, Find, Mark, Spec, Target, Update};

/// What most kinds have in common.
const COMMON: Spec = Spec {
    noun: "",
    api: Api::Run,
    version: "v1",
    create: Create::Put,
    update: Update::Masked,
    find: Find::Named,
    mark: Mark::Labels("labels"),
    long: false,
    fixed: &[],
    loss: "",
    unsent: &[],
};

pub(super) static SERVICE_ACCOUNT: Spec = Spec {
    noun: "service account",
    api: Api::Iam,
    create: Create::PostWrapped { id: "accountId", object: "serviceAccount" },
    update: Update::Wrapped("serviceAccount"),
    mark: Mark::Description,
    ..COMMON
};

pub(super) static TOPIC: Spec =
    Spec { noun: "topic", api: Api::Pubsub, update: Update::Wrapped("topic"), ..COMMON };

pub(super) static SUBSCRIPTION: Spec = Spec {
    noun: "subscription",
    api: Api::Pubsub,
    update: Update::Wrapped("subscription"),
    fixed: &["topic", "filter", "enableMessageOrdering"],
    loss: "its backlog goes: what was published before and is not acknowledged yet is not warmed there",
    ..COMMON
};

pub(super) static REPOSITORY: Spec = Spec {
    noun: "image repository",
    api: Api::ArtifactRegistry,
    create: Create::PostId("repositoryId"),
    long: true,
    fixed: &["format", "mode"],
    loss: "its images go",
    ..COMMON
};

pub(super) static TRIGGER: Spec =
    Spec { noun: "build trigger", api: Api::CloudBuild, create: Create::Post, mark: Mark::Tags, ..COMMON };

pub(super) static SERVICE: Spec = Spec {
    noun: "service",
    api: Api::Run,
    version: "v2",
    create: Create::PostId("serviceId"),
    long: true,
    // A name that a revision has already; the next one needs another, which the server chooses.
    unsent: &["template.revision"],
    ..COMMON
};

pub(super) static WORKER_POOL: Spec = Spec {
    noun: "worker pool",
    api: Api::Run,
    version: "v2",
    create: Create::PostId("workerPoolId"),
    long: true,
    unsent: &["template.revision"],
    ..COMMON
};

pub(super) static SECRET: Spec = Spec {
    noun: "secret",
    api: Api::SecretManager,
    create: Create::PostId("secretId"),
    fixed: &["replication"],
    loss: "its versions go",
    ..COMMON
};

pub(super) static LOG_METRIC: Spec = Spec {
    noun: "log-based metric",
    api: Api::Logging,
    version: "v2",
    create: Create::Post,
    update: Update::Whole(Method::PUT),
    mark: Mark::Description,
    unsent: &["createTime", "updateTime", "resourceName"],
    ..COMMON
};

pub(super) static ALERT: Spec = Spec {
    noun: "alert policy",
    api: Api::Monitoring,
    version: "v3",
    create: Create::Post,
    find: Find::Listed { by: "displayName" },
    mark: Mark::Labels("userLabels"),
    ..COMMON
};

pub(super) static DASHBOARD: Spec = Spec {
    noun: "dashboard",
    api: Api::Monitoring,
    create: Create::Post,
    update: Update::Whole(Method::PATCH),
    find: Find::Listed { by: "displayName" },
    ..COMMON
};

pub(super) const TOPIC_POLICY: Target = Target { api: Api::Pubsub, version: "v1", read_by_post: false };
pub(super) const SUBSCRIPTION_POLICY: Target = TOPIC_POLICY;
pub(super) const ACCOUNT_POLICY: Target = Target { api: Api::Iam, version: "v1", read_by_post: true };
pub(super) const REPOSITORY_POLICY: Target =
    Target { api: Api::ArtifactRegistry, version: "v1", read_by_post: false };
pub(super) const SERVICE_POLICY: Target = Target { api: Api::Run, version: "v2", read_by_post: false };
pub(super) const SECRET_POLICY: Target =
    Target { api: Api::SecretManager, version: "v1", read_by_post: false };
pub(super) const PROJECT_POLICY: Target =
    Target { api: Api::ResourceManager, version: "v3", read_by_post: true };
