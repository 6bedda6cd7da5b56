//! Where the image is kept, and what builds it.

use serde_json::json;

use super::{Project, account_key, object, policy};
use crate::setup::check::trigger_location;
use crate::setup::kinds;
use crate::setup::resource::{Part, Resource};

/// As whom images are built.
pub(super) const ACCOUNT: &str = "cdnwarm-build";

/// The repository, unless the image comes from elsewhere, and the trigger, where one is wanted.
pub(super) fn resources(project: &Project<'_>) -> Vec<Resource> {
    let config = project.config;
    let registry = &config.registry;
    let label = format!("{}/{}", registry.location, registry.repository);
    let name = project.path(&format!("locations/{}/repositories/{}", registry.location, registry.repository));
    let key = format!("{} {label}", kinds::REPOSITORY.noun);
    let mut all = Vec::new();
    if registry.uses.is_none() {
        let fields = json!({ "format": "DOCKER", "description": "Images of cdnwarm" });
        all.push(object(&kinds::REPOSITORY, Part::Registry, &label, &name, fields, Vec::new()));
    }
    let Some(trigger) = &config.trigger else { return all };
    all.push(project.account(ACCOUNT, "cdnwarm build", "Cloud Build builds cdnwarm's image as this account"));
    let mut after = vec![account_key(ACCOUNT)];
    if registry.uses.is_none() {
        let writer = [("roles/artifactregistry.writer", project.member(ACCOUNT), true)];
        let needs = vec![key.clone(), account_key(ACCOUNT)];
        all.push(policy(kinds::REPOSITORY_POLICY, &key, &name, &writer, needs));
        after.push(key);
    }
    // Checked when the file was read.
    let location = trigger_location(&trigger.repository).unwrap_or_default();
    let image = format!(
        "{}-docker.pkg.dev/{}/{}/{}",
        registry.location, config.project, registry.repository, registry.image
    );
    let fields = json!({
        "name": trigger.name,
        "description": "Builds cdnwarm's image",
        "repositoryEventConfig": { "repository": trigger.repository, "push": { "branch": trigger.branch } },
        // Its steps, and `logging: CLOUD_LOGGING_ONLY`, which an account of one's own needs.
        "filename": trigger.filename,
        "serviceAccount": project.path(&format!("serviceAccounts/{}", project.email(ACCOUNT))),
        "substitutions": { "_IMAGE": image },
        "disabled": false,
    });
    let label = format!("{location}/{}", trigger.name);
    let name = project.path(&format!("locations/{location}/triggers/{}", trigger.name));
    all.push(object(&kinds::TRIGGER, Part::Trigger, &label, &name, fields, after));
    all
}
