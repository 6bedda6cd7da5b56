//! What is known of a server's hosts, tokens and places whenever somebody asks: shown at each scrape, and no push pays for it.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::sync::Semaphore;

use super::Verdicts;
use crate::serve::auth::Auth;
use crate::telemetry::instance::Identity;
use crate::verdict::WORDS;
use crate::warm::Warmer;

/// Who is asked.
#[derive(Clone)]
pub(in crate::serve) struct States {
    pub(in crate::serve) auth: Auth,
    pub(in crate::serve) identity: Identity,
    pub(in crate::serve) warmer: Warmer,
    pub(in crate::serve) in_flight: Arc<Semaphore>,
    pub(in crate::serve) max_in_flight: u32,
}

/// All of it, as the registry asks for it.
pub(super) struct Shown {
    pub(super) states: States,
    pub(super) verdicts: Verdicts,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        // Before the first outcome it may not be known, and there is nothing to show by it.
        if let Some(instance) = self.states.identity.known() {
            self.encode_verdicts(encoder, &instance.region)?;
        }
        self.encode_tokens(encoder)?;
        let in_flight = self.states.max_in_flight as usize - self.states.in_flight.available_permits();
        let help = "URLs that are being warmed, and pushes that are about to be.";
        gauge(encoder, "in_flight_urls", help, in_flight)?;
        let help = "How many URLs there may be at once (--max-in-flight).";
        gauge(encoder, "in_flight_urls_limit", help, self.states.max_in_flight as usize)?;
        self.encode_hosts(encoder)
    }
}

impl Shown {
    fn encode_verdicts(&self, encoder: &mut DescriptorEncoder<'_>, region: &str) -> fmt::Result {
        let mut family = counters(encoder, "verdicts", "URLs that have a verdict, by verdict.", None)?;
        for (verdict, count) in WORDS.iter().zip(&self.verdicts.urls) {
            add(&mut family, &[("region", region), ("verdict", verdict)], count.get())?;
        }
        let help = "Size of the response bodies that were read, as they came.";
        let mut family = counters(encoder, "body", help, Some(&Unit::Bytes))?;
        add(&mut family, &[("region", region)], self.verdicts.body_bytes.get())
    }

    fn encode_tokens(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Push tokens that were believed: known from before, or verified now.";
        let mut family = counters(encoder, "tokens", help, None)?;
        for (checked, count) in self.states.auth.believed() {
            add(&mut family, &[("checked", checked)], count)?;
        }
        let help = "Pushes that were not believed, by what was wrong with their tokens.";
        let mut family = counters(encoder, "push_refusals", help, None)?;
        for (reason, count) in self.states.auth.refused() {
            add(&mut family, &[("reason", reason)], count)?;
        }
        Ok(())
    }

    /// What the hosts that GETs go to do, redirects included.
    fn encode_hosts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let totals = self.states.warmer.host_totals();
        gauge(encoder, "hosts", "Hosts that were asked of late.", totals.hosts)?;
        let help = "Hosts that are left alone for failing every time (circuit open).";
        gauge(encoder, "hosts_circuit_open", help, totals.circuits_open)?;
        let help = "Hosts that are left alone because they asked for it (429, 503, Retry-After).";
        gauge(encoder, "hosts_paused", help, totals.paused)?;
        gauge(encoder, "gets_in_flight", "GETs under way.", totals.in_flight)?;
        gauge(encoder, "gets_waiting", "GETs that wait for a turn with their host.", totals.waiting)
    }
}

fn counters<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    name: &'s str,
    help: &str,
    unit: Option<&'s Unit>,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Counter)
}

fn add<const N: usize>(family: &mut MetricEncoder<'_>, labels: &[(&str, &str); N], count: u64) -> fmt::Result
where
    for<'a> [(&'a str, &'a str); N]: EncodeLabelSet,
{
    ConstCounter::new(count).encode(family.encode_family(labels)?)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    // Gauges are signed.
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
}
