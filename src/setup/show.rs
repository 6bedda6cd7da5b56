//! A plan for a person, and for a program.

use std::fmt::Write;

use serde_json::{Value, json};

use super::diff::Difference;
use super::plan::{Action, Plan, Step};
use super::resource::{How, Part};

/// The most that is shown of one value.
const MAX_VALUE_CHARS: usize = 500;

/// The plan as text. Resources that are kept are one line each.
pub(super) fn text(plan: &Plan, heading: &str) -> String {
    let mut text = format!("{heading}\n\n");
    for step in &plan.steps {
        write_step(&mut text, step);
    }
    let count = |action| plan.count(action);
    let _ = write!(
        text,
        "\n{} to create, {} to change, {} to replace, {} to delete, {} to keep",
        count(Action::Create),
        count(Action::Change),
        count(Action::Replace),
        count(Action::Delete),
        count(Action::Keep) + count(Action::Use),
    );
    text.push_str(match count(Action::Foreign) {
        0 => ".\n",
        _ => {
            ".\nWhat is marked ! exists, is not cdnwarm's and not as it must be: choose another name for it in the file, \
             change it by hand, or take it over with --adopt.\n"
        }
    });
    text
}

fn write_step(text: &mut String, step: &Step) {
    let sign = match step.action {
        Action::Create => '+',
        Action::Change => '~',
        Action::Replace => '±',
        Action::Delete => '-',
        Action::Keep | Action::Use => '=',
        Action::Foreign => '!',
    };
    let _ = writeln!(text, "{sign} {:<8} {}", step.action.word(), step.resource.key());
    // What a dashboard or an alert is like, its file in monitoring/ shows better.
    let shown = !(step.resource.part == Part::Monitoring && step.action == Action::Create);
    for difference in step.differences.iter().filter(|_| shown) {
        let line = match step.resource.how {
            How::Policy(_) => member_line(difference),
            _ => line(difference, step.action),
        };
        let _ = writeln!(text, "      {line}");
    }
    if step.action == Action::Replace {
        let loss = match &step.resource.how {
            How::Object(spec) => spec.loss,
            _ => "the running one is drained first, so that nothing is lost",
        };
        let _ = writeln!(text, "      deleted and made anew: {loss}");
    }
}

/// A member's field is its role, then its name.
fn member_line(difference: &Difference) -> String {
    let part = |index: usize| difference.path.get(index).map_or("all", String::as_str);
    let (role, member) = (part(0), part(1));
    if difference.new.is_some() {
        format!("give {role} to {member}")
    } else {
        format!("take {role} from {member}")
    }
}

fn line(difference: &Difference, action: Action) -> String {
    let field = difference.field();
    match (&difference.old, &difference.new) {
        (None, Some(new)) if action == Action::Create => format!("{field}: {}", value(new)),
        (old, new) => {
            let shown = |side: &Option<Value>| side.as_ref().map_or_else(|| "none".to_owned(), value);
            format!("{field}: {} -> {}", shown(old), shown(new))
        }
    }
}

fn value(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    let text = text.replace('\n', " ");
    match text.char_indices().nth(MAX_VALUE_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The plan as one JSON object.
pub(super) fn json(plan: &Plan, project: &str) -> Value {
    let steps: Vec<Value> = plan
        .steps
        .iter()
        .map(|step| {
            let differences: Vec<Value> = step
                .differences
                .iter()
                .map(|d| json!({ "field": d.field(), "old": d.old, "new": d.new }))
                .collect();
            json!({
                "action": step.action.word(),
                "kind": step.resource.noun(),
                "label": step.resource.label,
                "name": step.resource.name,
                "region": step.resource.region,
                "differences": differences,
            })
        })
        .collect();
    json!({ "project": project, "changes": plan.changes(), "steps": steps })
}
