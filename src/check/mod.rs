//! `cdnwarm check`: URLs from the shell through the same warming as `serve`'s, and all of what was seen on the way.
//!
//! `advice` says what to change where a URL is not warm, `show` puts it all before people and programs.

mod advice;
mod show;

use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::builder::BoolishValueParser;
use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use crate::outcome::{Outcome, Source, shown_url};
use crate::output::print;
use crate::request::{MAX_URL_BYTES, WarmRequest};
use crate::telemetry::instance::{Identity, Instance, InstanceArgs};
use crate::usage::UsageError;
use crate::verdict::Verdict;
use crate::warm::{Attempt, Look, WarmArgs, Warmer};

/// URLs that are checked at once; results come in the order of the URLs all the same.
const CONCURRENCY: usize = 8;
/// URLs of one call: their results are kept for the table.
const MAX_URLS: usize = 10_000;

/// Arguments of `cdnwarm check`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// URLs to check; - reads them from standard input, one a line
    #[arg(value_name = "URL", required_unless_present = "urls")]
    url: Vec<String>,

    /// Check the URLs of this file too, one a line; - reads standard input
    ///
    /// Blank lines and lines starting with # are skipped.
    #[arg(long, value_name = "FILE", env = "CDNWARM_URLS")]
    urls: Option<PathBuf>,

    /// Request header, such as accept-encoding=gzip, as a record's warm-header-NAME asks for it (repeatable)
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<Pair>,

    /// Option of a record, such as warm-expect-etag=v2 (repeatable)
    #[arg(long = "option", value_name = "NAME=VALUE")]
    options: Vec<Pair>,

    /// How often each URL is looked at, one time after another; the last verdict counts
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: u16,

    /// Print a JSON object for each look at a URL, one a line, instead of text
    #[arg(long, value_parser = BoolishValueParser::new(), num_args = 0, default_missing_value = "true", default_value = "false")]
    json: bool,

    #[command(flatten)]
    instance: InstanceArgs,

    #[command(flatten)]
    warm: WarmArgs,
}

/// A name with its value.
#[derive(Debug, Clone)]
struct Pair(String, String);

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self(name.to_ascii_lowercase(), value.to_owned())),
            _ => Err("this is written NAME=VALUE".to_owned()),
        }
    }
}

/// One URL's outcome, and what was asked for it.
struct Checked {
    outcome: Outcome,
    looks: Vec<Look>,
}

/// Checks all URLs, prints what was seen, and fails unless all of them are warm at the end.
///
/// # Errors
/// URLs that are not warm, a stop before all are done, arguments that cannot be meant, input that cannot be read.
pub(crate) async fn run(mut args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let urls = all_urls(&args).map_err(UsageError::new)?;
    let headers = args.headers.iter().map(|Pair(name, value)| (format!("warm-header-{name}"), value.clone()));
    let options = args.options.iter().map(|Pair(name, value)| (name.clone(), value.clone()));
    let options: Vec<(String, String)> = headers.chain(options).collect();
    if let Some((name, _)) = options.iter().find(|(name, _)| !name.starts_with("warm-")) {
        return Err(
            UsageError::new(anyhow::anyhow!("--option {name}: an option's name starts with warm-")).into()
        );
    }
    // Nobody asks a metadata server where a shell is.
    args.instance.region.get_or_insert_with(|| "local".to_owned());
    args.instance.metadata_host = None;
    let warmer = Warmer::new(args.warm)?.keeping_looks();
    let identity = Identity::discover(args.instance);
    let instance = identity.get().await;
    let checks = urls.iter().map(|url| check(&warmer, instance, url, &options, args.repeat));
    let mut checks = stream::iter(checks).buffered(CONCURRENCY).take_until(Box::pin(stop.cancelled()));
    let mut table = Vec::new();
    let mut warm = 0;
    while let Some(checked) = checks.next().await {
        warm += usize::from(checked.last().is_some_and(|checked| checked.outcome.verdict == Verdict::Warm));
        for checked in checked {
            let text = if args.json { show::json(&checked)? } else { show::block(&checked) };
            print(&text)?;
            table.push(checked.outcome);
        }
    }
    if !args.json && table.len() > 1 {
        print(&show::table(&table))?;
    }
    if stop.is_cancelled() {
        bail!("stopped before all URLs were checked");
    }
    match urls.len() {
        all if warm == all => Ok(()),
        1 => bail!("not warm"),
        all => bail!("{} of {all} URLs are not warm", all - warm),
    }
}

async fn check(
    warmer: &Warmer,
    instance: &Instance,
    url: &str,
    options: &[(String, String)],
    repeat: u16,
) -> Vec<Checked> {
    let mut all = Vec::with_capacity(repeat.into());
    for number in 1..=repeat {
        let pairs = options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let (mut attempt, shown) = match WarmRequest::parse(url.as_bytes(), pairs) {
            Ok(request) => {
                let attempt = warmer.warm(&request, &instance.region, warmer.deadline()).await;
                (attempt, shown_url(request.url()))
            }
            Err(not_a_request) => {
                let refused = Verdict::Refused(not_a_request.reason());
                (Attempt::without_request(refused), show::unparsed(url))
            }
        };
        let looks = std::mem::take(&mut attempt.looks);
        let outcome = attempt.into_outcome(instance, shown, number.to_string(), Source::default());
        all.push(Checked { outcome: *outcome, looks });
    }
    all
}

fn all_urls(args: &Args) -> anyhow::Result<Vec<String>> {
    let mut urls: Vec<String> = args.url.iter().filter(|url| *url != "-").cloned().collect();
    let dash = args.url.iter().any(|url| url == "-").then(|| PathBuf::from("-"));
    for file in dash.iter().chain(&args.urls) {
        let name = if file.as_os_str() == "-" { "standard input".into() } else { file.display().to_string() };
        let input: Box<dyn Read> = match file.to_str() {
            Some("-") => Box::new(io::stdin()),
            _ => Box::new(std::fs::File::open(file).with_context(|| format!("reading {name}"))?),
        };
        read_urls(BufReader::new(input), &mut urls).with_context(|| format!("reading {name}"))?;
    }
    if urls.is_empty() {
        bail!("no URL to check");
    }
    if urls.len() > MAX_URLS {
        bail!("more than {MAX_URLS} URLs");
    }
    Ok(urls)
}

/// Reads lines up to one more URL than there may be. What is too long for a URL stays so, and is refused as one.
fn read_urls(mut input: impl BufRead, urls: &mut Vec<String>) -> io::Result<()> {
    while urls.len() <= MAX_URLS {
        let mut line = Vec::new();
        let mut limited = input.by_ref().take(2 * MAX_URL_BYTES as u64);
        if limited.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if !text.is_empty() && !text.starts_with('#') {
            urls.push(text.to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_and_comments_are_no_urls() {
        let mut urls = vec!["http://example.com/first".to_owned()];
        read_urls(&b"# a\n\n http://example.com/a \r\nhttp://example.com/b"[..], &mut urls).unwrap();
        assert_eq!(urls, ["http://example.com/first", "http://example.com/a", "http://example.com/b"]);
    }

    #[test]
    fn no_more_urls_are_read_than_there_may_be() {
        let mut urls = Vec::new();
        read_urls("http://example.com/a\n".repeat(3 * MAX_URLS).as_bytes(), &mut urls).unwrap();
        assert_eq!(urls.len(), MAX_URLS + 1);
    }
}
