//! The built binary, started as its users start it and ended with the test.

use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::{PATIENCE, eventually, setting};

/// A running role. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    /// Kept apart from the child, which would close it in order to wait.
    input: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
}

/// The binary with nothing of the caller's environment that could change what it does.
pub(crate) fn command(args: &[&str]) -> Command {
    command_by(&[], args)
}

/// The built binary, or another one to test instead, such as a release build, which `CDNWARM_TEST_BINARY` names.
fn binary() -> String {
    setting("CDNWARM_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_cdnwarm").to_owned())
}

/// As [`command`], started by another program that takes its command line as its last arguments.
pub(crate) fn command_by(starter: &[&str], args: &[&str]) -> Command {
    let binary = binary();
    let line = [starter, &[binary.as_str()], args].concat();
    let mut command = Command::new(line[0]);
    command
        .args(&line[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    for name in
        ["PUBSUB_EMULATOR_HOST", "PORT", "SSL_CERT_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "K_SERVICE"]
    {
        command.env_remove(name);
    }
    // Nothing listens there: no test asks a metadata server.
    command.env("GCE_METADATA_HOST", "127.0.0.1:1");
    command
}

/// Runs to the end; panics where that takes too long.
pub(crate) async fn run(args: &[&str]) -> Output {
    finish(command(args)).await
}

/// Runs a prepared command to the end.
pub(crate) async fn finish(mut command: Command) -> Output {
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    output.expect("the process ends in time").unwrap()
}

/// What a process said on both streams, and its status: for messages and searches.
pub(crate) fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

impl Process {
    /// Starts a role.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(command(args))
    }

    /// Starts a prepared command.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().unwrap(), lines.clone());
        collect(child.stderr.take().unwrap(), lines.clone());
        Self { input: child.stdin.take(), child, lines }
    }

    /// Writes to its standard input, which stays open.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.input.as_mut().expect("its input is piped").write_all(bytes).await.unwrap();
    }

    /// Everything it has said so far, both streams mixed.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Its log lines.
    pub(crate) fn logged(&self) -> Vec<Value> {
        self.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The outcomes among its log lines.
    pub(crate) fn outcomes(&self) -> Vec<Value> {
        self.logged().into_iter().filter(|line| line.get("verdict").is_some()).collect()
    }

    /// Waits for a line that holds `text`.
    pub(crate) async fn says(&self, text: &str) -> String {
        let found = async || self.lines().into_iter().find(|line| line.contains(text));
        let said = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(line) = found().await {
                    return line;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        said.await.unwrap_or_else(|_| panic!("{text:?} was not said, but:\n{}", self.lines().join("\n")))
    }

    /// Waits until it listens, and says where.
    pub(crate) async fn listening(&self) -> String {
        self.says("listening on").await;
        let line = self.logged().into_iter().find_map(|line| line["addr"].as_str().map(str::to_owned));
        line.expect("the line has an address").replace("0.0.0.0", "127.0.0.1")
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it is running")
    }

    /// What the kernel says of it: bytes in memory, and open descriptors.
    pub(crate) fn footprint(&self) -> (u64, usize) {
        let of = format!("/proc/{}", self.pid());
        let status = std::fs::read_to_string(format!("{of}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        (kib << 10, std::fs::read_dir(format!("{of}/fd")).unwrap().count())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it is running");
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    /// Waits for its end; gives the exit code, none where a signal ended it.
    pub(crate) async fn ends(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        status
            .unwrap_or_else(|_| panic!("it did not end:\n{}", self.lines.lock().unwrap().join("\n")))
            .unwrap()
            .code()
    }

    /// SIGKILL, and waits for the end.
    pub(crate) async fn kill_hard(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ends().await;
    }

    /// SIGTERM, and waits for a clean end.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let code = self.ends().await;
        assert_eq!(code, Some(0), "{}", self.lines().join("\n"));
    }

    /// Waits until it has logged an outcome for each of `urls`, the last of each counting as `verdict`.
    pub(crate) async fn verdicts(&self, urls: &[String], verdict: &str) {
        eventually(&format!("{verdict} for {} URLs", urls.len()), async || {
            let outcomes = self.outcomes();
            urls.iter()
                .all(|url| {
                    outcomes
                        .iter()
                        .rev()
                        .find(|o| o["url"] == url.as_str())
                        .is_some_and(|o| o["verdict"] == verdict)
                })
                .then_some(())
        })
        .await;
    }
}

fn collect(stream: impl AsyncRead + Unpin + Send + 'static, lines: Arc<Mutex<Vec<String>>>) {
    let mut reader = BufReader::new(stream).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = reader.next_line().await {
            lines.lock().unwrap().push(line);
        }
    });
}
