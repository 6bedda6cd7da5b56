//! `cdnwarm setup` with a file of its own.

use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::contract::Google;
use super::process::{command, finish, told};

/// A folder with a `cdnwarm.toml`, and where its APIs are.
pub(crate) struct Setup {
    folder: TempDir,
    endpoints: String,
}

impl Setup {
    /// With this file, against these endpoints; Google's own where none is named.
    pub(crate) fn new(file: &str, endpoints: String) -> Self {
        let setup = Self { folder: tempfile::tempdir().unwrap(), endpoints };
        setup.write(file);
        setup
    }

    /// Against the pretended Google Cloud.
    pub(crate) fn of(google: &Google, file: &str) -> Self {
        Self::new(file, google.endpoints())
    }

    /// Another file in its place.
    pub(crate) fn write(&self, file: &str) {
        std::fs::write(self.path(), file).unwrap();
    }

    /// A file beside it.
    pub(crate) fn add(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("cdnwarm.toml")
    }

    /// The command with these arguments, not started yet.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let path = self.path().display().to_string();
        let endpoints = ["--endpoint", &self.endpoints];
        let endpoints = if self.endpoints.is_empty() { &[][..] } else { &endpoints };
        let mut command = command(&[&["setup", "--file", &path], endpoints, args].concat());
        command.env("NO_PROXY", "127.0.0.1");
        command
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Output {
        finish(self.command(args)).await
    }

    /// Runs it, and expects it to succeed; its standard output.
    pub(crate) async fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.status.success(), "{}", told(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it, and expects it to fail with status 1; what it said.
    pub(crate) async fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        told(&output)
    }

    /// The steps of the plan that are not merely kept: action, then what.
    pub(crate) async fn changes(&self, args: &[&str]) -> Vec<String> {
        let text = self.ok(&[&["plan", "--json"], args].concat()).await;
        let plan: Value = serde_json::from_str(&text).unwrap();
        let steps = plan["steps"].as_array().unwrap().iter();
        steps
            .filter(|step| step["action"] != "keep")
            .map(|step| {
                let text = |field: &str| step[field].as_str().unwrap().to_owned();
                format!("{} {} {}", text("action"), text("kind"), text("label"))
            })
            .collect()
    }
}
