//! What is to go wrong, when and how often.

use std::time::{Duration, Instant};

use memchr::memmem;
use serde::Deserialize;

use crate::grpc::Status;
use crate::scan;

/// One rule, as a harness gives it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    kind: Kind,
    /// gRPC code, for `status` (14 if none is given) and `refuse_data` (3).
    code: Option<u32>,
    /// Message of that status.
    #[serde(default)]
    message: String,
    /// Every how many-th call; 1 is every call.
    #[serde(default = "one")]
    every: u64,
    /// How many calls pass before the first.
    #[serde(default)]
    after: u64,
    /// How often at most.
    count: Option<u64>,
    /// How long from now.
    for_ms: Option<u64>,
    /// How long, for `latency`.
    #[serde(default)]
    ms: u64,
    /// What the data has, for `refuse_data`.
    #[serde(default)]
    contains: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Status,
    Hang,
    Reset,
    LostAnswer,
    Close,
    ShortIds,
    Latency,
    RefuseData,
    RefuseConnections,
}

fn one() -> u64 {
    1
}

/// What is to happen to one call.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Fate {
    /// How much longer the answer takes.
    pub delay: Duration,
    /// What breaks, if anything.
    pub fault: Option<Fault>,
}

/// How one call breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answered with a status, not accepted.
    Status(Status),
    /// Never answered, not accepted.
    Hang,
    /// The stream is reset, not accepted.
    Reset,
    /// Accepted, but the stream is reset instead of an answer.
    LostAnswer,
    /// The connection is dropped, with all calls on it; not accepted.
    Close,
    /// Accepted, but one id is missing.
    ShortIds,
}

/// The rules in force. Each counts the calls it sees from when it was set; the first one that strikes decides.
#[derive(Debug, Default)]
pub struct Faults {
    active: Vec<Active>,
}

#[derive(Debug)]
struct Active {
    rule: Rule,
    since: Instant,
    seen: u64,
    struck: u64,
}

impl Faults {
    /// Replaces all rules; none means that nothing goes wrong.
    ///
    /// # Errors
    /// A rule makes no sense; the rules stay as they were.
    pub fn set(&mut self, rules: Vec<Rule>) -> Result<(), String> {
        for rule in &rules {
            if rule.every == 0 {
                return Err("every must be at least 1".to_owned());
            }
            if rule.code.is_some_and(|code| !(1..=16).contains(&code)) {
                return Err("code must be one of gRPC's, 1 to 16".to_owned());
            }
            if rule.kind == Kind::RefuseData && rule.contains.is_empty() {
                return Err("refuse_data needs contains".to_owned());
            }
        }
        let since = Instant::now();
        self.active = rules.into_iter().map(|rule| Active { rule, since, seen: 0, struck: 0 }).collect();
        Ok(())
    }

    /// Whether no connection is to be had now.
    pub fn refuse_connections(&self) -> bool {
        self.active.iter().any(|active| active.rule.kind == Kind::RefuseConnections && !active.is_over())
    }

    /// What happens to the call with this request.
    pub fn fate(&mut self, request: &[u8]) -> Fate {
        let mut fate = Fate::default();
        for active in &mut self.active {
            if fate.fault.is_some() || !active.strikes(request) {
                continue;
            }
            match active.rule.fault() {
                None => fate.delay += Duration::from_millis(active.rule.ms),
                fault => fate.fault = fault,
            }
        }
        fate
    }
}

impl Active {
    fn is_over(&self) -> bool {
        let late = self.rule.for_ms.is_some_and(|ms| self.since.elapsed() >= Duration::from_millis(ms));
        late || self.rule.count.is_some_and(|count| self.struck >= count)
    }

    /// Counts the call and says whether the rule strikes it.
    fn strikes(&mut self, request: &[u8]) -> bool {
        let concerned = match self.rule.kind {
            Kind::RefuseConnections => false,
            Kind::RefuseData => has_data(request, self.rule.contains.as_bytes()),
            _ => true,
        };
        if !concerned || self.is_over() {
            return false;
        }
        self.seen += 1;
        let strikes =
            self.seen > self.rule.after && (self.seen - self.rule.after).is_multiple_of(self.rule.every);
        self.struck += u64::from(strikes);
        strikes
    }
}

impl Rule {
    fn fault(&self) -> Option<Fault> {
        let status = |default| {
            let message = if self.message.is_empty() { "as the harness asked" } else { &self.message };
            Fault::Status(Status::new(self.code.unwrap_or(default), message))
        };
        match self.kind {
            Kind::Status => Some(status(14)),
            Kind::RefuseData => Some(status(3)),
            Kind::Hang => Some(Fault::Hang),
            Kind::Reset => Some(Fault::Reset),
            Kind::LostAnswer => Some(Fault::LostAnswer),
            Kind::Close => Some(Fault::Close),
            Kind::ShortIds => Some(Fault::ShortIds),
            Kind::Latency | Kind::RefuseConnections => None,
        }
    }
}

fn has_data(request: &[u8], text: &[u8]) -> bool {
    let finder = memmem::Finder::new(text);
    scan::messages(request)
        .map_while(Result::ok)
        .any(|message| message.data().is_ok_and(|data| finder.find(data).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(rules: &str) -> Faults {
        let mut faults = Faults::default();
        faults.set(serde_json::from_str(rules).unwrap()).unwrap();
        faults
    }

    fn struck(faults: &mut Faults, calls: usize) -> Vec<usize> {
        (1..=calls).filter(|_| faults.fate(b"").fault.is_some()).collect()
    }

    #[test]
    fn a_rule_counts_from_its_start() {
        let mut faults = faults(r#"[{"kind": "hang", "every": 3, "after": 2, "count": 2}]"#);
        assert_eq!(struck(&mut faults, 20), [5, 8]);
    }

    #[test]
    fn a_rule_ends_with_its_time() {
        let mut faults =
            faults(r#"[{"kind": "reset", "for_ms": 0}, {"kind": "refuse_connections", "for_ms": 0}]"#);
        assert_eq!(struck(&mut faults, 3), [0usize; 0]);
        assert!(!faults.refuse_connections());
    }

    #[test]
    fn delays_add_up_and_the_first_fault_wins() {
        let mut faults = faults(
            r#"[{"kind": "latency", "ms": 5}, {"kind": "latency", "ms": 7},
                {"kind": "status", "code": 8, "message": "slow down", "count": null}, {"kind": "close"}]"#,
        );
        let fate = faults.fate(b"");
        assert_eq!(fate.delay, Duration::from_millis(12));
        assert_eq!(fate.fault, Some(Fault::Status(Status::new(8, "slow down"))));
    }

    #[test]
    fn data_is_refused_where_it_has_the_text() {
        let mut faults = faults(r#"[{"kind": "refuse_data", "contains": "poison"}]"#);
        // messages { data: "a poison!" } and messages { data: "ok", attributes { "poison": "" } }
        let poison = b"\x12\x0b\x0a\x09a poison!";
        let fine = b"\x12\x0e\x0a\x02ok\x12\x08\x0a\x06poison";
        assert_eq!(faults.fate(fine), Fate::default());
        assert!(matches!(faults.fate(poison).fault, Some(Fault::Status(Status { code: 3, .. }))));
    }

    #[test]
    fn senseless_rules_are_refused() {
        for rule in [
            r#"{"kind": "hang", "every": 0}"#,
            r#"{"kind": "status", "code": 17}"#,
            r#"{"kind": "refuse_data"}"#,
        ] {
            let rule: Rule = serde_json::from_str(rule).unwrap();
            assert!(Faults::default().set(vec![rule]).is_err());
        }
        assert!(serde_json::from_str::<Rule>(r#"{"kind": "hang", "evry": 2}"#).is_err());
    }
}
