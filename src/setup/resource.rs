//! A resource as a value: what it is called, what it must be like, how it is reached, and how it shows whose it is.
//!
//! To add a kind of object is to add a [`Spec`]; what does not fit into one has a way of its own in [`How`].

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::api::Api;
use super::secret::Payload;

/// The label by which what is ours is known, and its form where there are no labels.
pub(super) const LABEL: (&str, &str) = ("managed-by", "cdnwarm");
pub(super) const DESCRIPTION_MARK: &str = "managed-by=cdnwarm";
const TAG: &str = "managed-by-cdnwarm";

/// Parts of a setup, for `--only`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Part {
    /// Google's APIs, enabled.
    Apis,
    /// Service accounts.
    Accounts,
    /// Topics, Kafka's among them, and the dead-letter subscription.
    Topics,
    /// Who may do what.
    Access,
    /// The image's repository.
    Registry,
    /// The build trigger.
    Trigger,
    /// One Cloud Run service a region.
    Services,
    /// One push subscription a region.
    Subscriptions,
    /// Kafka's secret, and what moves records.
    Bridge,
    /// Dashboard, alerts and log-based metrics.
    Monitoring,
}

/// One thing that a setup makes, or sees to.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) part: Part,
    pub(super) region: Option<String>,
    pub(super) how: How,
    /// How a person calls it, behind its noun.
    pub(super) label: String,
    /// How its API calls it.
    pub(super) name: String,
    /// What must hold of it: fields beyond these are left alone, and null means that there must be none.
    pub(super) fields: Value,
    /// What must be there first, by [`Resource::key`].
    pub(super) after: Vec<String>,
}

/// How a resource is read and changed.
#[derive(Debug, Clone)]
pub(super) enum How {
    /// As most are: an object with a name.
    Object(&'static Spec),
    /// The members of an IAM policy, each `true` where it must be in it and null where it must not.
    Policy(Target),
    /// Enabled APIs.
    Apis,
    /// The newest version of a secret.
    SecretVersion(Arc<Payload>),
    /// A running Dataflow job, with what launches it.
    Job(Box<Value>),
    /// A topic of Kafka.
    KafkaTopic(Arc<super::kafka::Wanted>),
}

/// What an IAM policy belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) api: Api,
    pub(super) version: &'static str,
    /// Most APIs read a policy by GET.
    pub(super) read_by_post: bool,
}

/// All that is special about a kind of object.
#[derive(Debug)]
pub(super) struct Spec {
    /// What a person calls it.
    pub(super) noun: &'static str,
    pub(super) api: Api,
    pub(super) version: &'static str,
    pub(super) create: Create,
    pub(super) update: Update,
    pub(super) find: Find,
    pub(super) mark: Mark,
    /// Creating, changing and deleting answer with an operation.
    pub(super) long: bool,
    /// Fields that cannot be changed, only made anew, and what is lost with that.
    pub(super) fixed: &'static [&'static str],
    pub(super) loss: &'static str,
    /// Fields that are read and must not be sent back.
    pub(super) unsent: &'static [&'static str],
}

#[derive(Debug)]
pub(super) enum Create {
    /// PUT to the name.
    Put,
    /// POST to the collection, with the id as this parameter.
    PostId(&'static str),
    /// POST to the collection, the name being in the body or the server's to choose.
    Post,
    /// POST to the collection of an object that holds the id and, under this name, the object.
    PostWrapped { id: &'static str, object: &'static str },
}

#[derive(Debug)]
pub(super) enum Update {
    /// PATCH with `updateMask` as a parameter.
    Masked,
    /// PATCH with an object that holds the object under this name, and the mask.
    Wrapped(&'static str),
    /// The whole object, by PATCH or PUT.
    Whole(http::Method),
}

#[derive(Debug)]
pub(super) enum Find {
    /// By its name.
    Named,
    /// In the list of its collection, by a field that we choose: the server chooses the name.
    Listed { by: &'static str },
}

#[derive(Debug)]
pub(super) enum Mark {
    /// Labels, in this field.
    Labels(&'static str),
    Description,
    Tags,
}

impl Resource {
    /// What it is, then how it is called: unlike any other's.
    pub(super) fn key(&self) -> String {
        format!("{} {}", self.noun(), self.label)
    }

    /// What a person calls a thing of this kind.
    pub(super) fn noun(&self) -> &'static str {
        match &self.how {
            How::Object(spec) => spec.noun,
            How::Policy(_) => "access to",
            How::Apis => "APIs",
            How::SecretVersion(_) => "secret's content",
            How::Job(_) => "Dataflow job",
            How::KafkaTopic(_) => "Kafka topic",
        }
    }

    /// Whether whoever made it can be told from `live`. What has no mark is never made or deleted as a whole.
    pub(super) fn is_ours(&self, live: &Value) -> bool {
        match &self.how {
            How::Object(spec) => spec.mark.is_on(live),
            How::Job(_) => Mark::Labels("labels").is_on(live),
            How::Policy(_) | How::Apis | How::SecretVersion(_) | How::KafkaTopic(_) => true,
        }
    }

    /// The wanted fields with the mark, which takes the tags that others set along.
    pub(super) fn marked(&self, live: Option<&Value>) -> Value {
        let mut fields = self.fields.clone();
        match &self.how {
            How::Object(spec) => spec.mark.put(&mut fields, live),
            How::Job(_) => Mark::Labels("labels").put(&mut fields, live),
            _ => {}
        }
        fields
    }

    /// Where it is, without its own id: `projects/p/topics` of `projects/p/topics/t`.
    pub(super) fn collection(&self) -> &str {
        self.name.rsplit_once('/').map_or("", |(collection, _)| collection)
    }

    /// Its own id.
    pub(super) fn id(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }
}

impl Mark {
    fn is_on(&self, live: &Value) -> bool {
        match self {
            Self::Labels(field) => live[field][LABEL.0] == LABEL.1,
            Self::Description => {
                live["description"].as_str().is_some_and(|text| text.contains(DESCRIPTION_MARK))
            }
            Self::Tags => live["tags"].as_array().is_some_and(|tags| tags.iter().any(|tag| tag == TAG)),
        }
    }

    fn put(&self, fields: &mut Value, live: Option<&Value>) {
        match self {
            Self::Labels(field) => {
                let labels = &mut fields[*field];
                if labels.is_null() {
                    *labels = Value::Object(Map::new());
                }
                labels[LABEL.0] = json!(LABEL.1);
            }
            Self::Description => {
                let text = fields["description"].as_str().unwrap_or_default().to_owned();
                fields["description"] = json!(format!("{text} ({DESCRIPTION_MARK})").trim_start());
            }
            Self::Tags => {
                let mut tags = live.and_then(|live| live["tags"].as_array().cloned()).unwrap_or_default();
                if !tags.iter().any(|tag| tag == TAG) {
                    tags.push(json!(TAG));
                }
                fields["tags"] = Value::Array(tags);
            }
        }
    }
}
