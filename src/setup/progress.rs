//! What is going on, while it is: a line for each step, and on a terminal a bar below them.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::plan::{Action, Step};

/// Written to standard error: standard output belongs to the plan.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// For this many steps.
    pub(super) fn new(steps: usize) -> Self {
        let target =
            if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps as u64), target);
        // The template is a constant; a bar without a style is one all the same.
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {elapsed}  {msg}") {
            bar.set_style(style);
        }
        Self { bar }
    }

    pub(super) fn begins(&self, step: &Step) {
        self.bar.set_message(step.resource.key());
    }

    pub(super) fn ends(&self, step: &Step, result: &anyhow::Result<()>) {
        self.bar.inc(1);
        let what = match (result, step.action) {
            (Err(_), _) => "failed",
            (_, Action::Create) => "created",
            (_, Action::Replace) => "replaced",
            (_, Action::Delete) => "deleted",
            _ => "changed",
        };
        self.bar.suspend(|| eprintln!("{what:<9} {}", step.resource.key()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
