//! What the sink has taken so far, and how that grew.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::scan::Count;

/// How often [`Stats::sample`] is to be called.
pub const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// Two hours of constant movement; past them the totals go on and no sample is added.
const MAX_SAMPLES: usize = 360_000;

/// Totals since the start or the last reset. Only accepted messages count.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Stats {
    /// Messages accepted.
    pub messages: u64,
    /// URLs in them: one a message, or the lines of a packed one.
    pub urls: u64,
    /// Publish calls accepted.
    pub calls: u64,
    /// Publish calls not accepted: broken on demand, or outside Pub/Sub's limits.
    pub calls_not_accepted: u64,
    /// Bytes of the accepted calls' requests.
    pub bytes: u64,
    /// When the first message was accepted.
    pub first_message_unix_ms: Option<u64>,
    /// When the last message was accepted.
    pub last_message_unix_ms: Option<u64>,
    /// The most Publish calls that were open at once.
    pub max_calls_in_flight: u64,
    /// Messages of the smallest accepted call.
    pub batch_size_min: u64,
    /// Messages a call, on average.
    pub batch_size_mean: f64,
    /// Messages of the largest accepted call.
    pub batch_size_max: u64,
    /// `[unix_ms, messages so far]`, every 20 ms while it moves.
    pub samples: Vec<(u64, u64)>,
    #[serde(skip)]
    calls_in_flight: u64,
}

impl Stats {
    /// Forgets all but the calls that are open.
    pub fn reset(&mut self) {
        *self = Self {
            calls_in_flight: self.calls_in_flight,
            max_calls_in_flight: self.calls_in_flight,
            ..Self::default()
        };
    }

    /// The same without the samples.
    #[must_use]
    pub fn totals(&self) -> Self {
        Self { samples: Vec::new(), ..*self }
    }

    /// A call has come in.
    pub fn begin_call(&mut self) {
        self.calls_in_flight += 1;
        self.max_calls_in_flight = self.max_calls_in_flight.max(self.calls_in_flight);
    }

    /// A call has ended, however.
    pub fn end_call(&mut self) {
        self.calls_in_flight -= 1;
    }

    /// A call with these messages in a request of this size was accepted.
    #[expect(clippy::cast_precision_loss, reason = "a mean needs no more than 52 bits")]
    pub fn accept(&mut self, count: Count, bytes: usize) {
        let now = unix_ms();
        self.first_message_unix_ms.get_or_insert(now);
        self.last_message_unix_ms = Some(now);
        self.batch_size_min =
            if self.calls == 0 { count.messages } else { self.batch_size_min.min(count.messages) };
        self.batch_size_max = self.batch_size_max.max(count.messages);
        self.messages += count.messages;
        self.urls += count.urls;
        self.calls += 1;
        self.bytes += bytes as u64;
        self.batch_size_mean = self.messages as f64 / self.calls as f64;
    }

    /// Adds a sample if anything came since the last one.
    pub fn sample(&mut self) {
        let last = self.samples.last().map_or(0, |(_, messages)| *messages);
        if self.messages > last && self.samples.len() < MAX_SAMPLES {
            self.samples.push((unix_ms(), self.messages));
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_keeps_the_open_calls() {
        let mut stats = Stats::default();
        stats.begin_call();
        stats.begin_call();
        stats.end_call();
        stats.accept(Count { messages: 3, urls: 5 }, 100);
        stats.accept(Count { messages: 1, urls: 1 }, 10);
        stats.sample();
        stats.sample();
        assert_eq!((stats.messages, stats.urls, stats.calls, stats.bytes), (4, 6, 2, 110));
        assert_eq!((stats.batch_size_min, stats.batch_size_max), (1, 3));
        assert_eq!(stats.samples.len(), 1);
        assert_eq!(stats.max_calls_in_flight, 2);

        stats.reset();
        assert_eq!((stats.messages, stats.max_calls_in_flight), (0, 1));
        stats.end_call();
    }
}
