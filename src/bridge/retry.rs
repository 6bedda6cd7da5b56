//! What becomes of a publish call by its gRPC code, and how long until it is tried again.

use std::time::Duration;

use tonic::Code;

use crate::retry::backoff;

/// How long the first try of a call may take; each that follows one without an answer may take twice as long.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// No call may take longer. Google's own clients give a publish call 60 s, too.
pub(super) const MAX_CALL_LIMIT: Duration = Duration::from_secs(60);
/// What each started megabyte adds, so that a slow line can carry a large message.
const CALL_LIMIT_PER_MB: Duration = Duration::from_secs(1);

/// What a failed call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Of the moment: tried again.
    Again,
    /// Of the moment, and a sign of too many calls: tried again, with fewer of them.
    Overloaded,
    /// Only an operator can cure it: records are held, somebody is alarmed, and it is tried again.
    Held,
    /// Something in this very request: halved, until the message at fault stands alone and becomes a dead letter.
    Refused,
}

/// All codes of gRPC (grpc.io/docs/guides/status-codes).
pub(super) fn fate(code: Code) -> Fate {
    match code {
        // Never an error; here for completeness.
        Code::Ok => Fate::Again,
        Code::Cancelled
        | Code::Unknown
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss
        | Code::AlreadyExists => Fate::Again,
        Code::DeadlineExceeded | Code::ResourceExhausted | Code::Unavailable => Fate::Overloaded,
        Code::PermissionDenied
        | Code::NotFound
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::Unimplemented => Fate::Held,
        Code::InvalidArgument | Code::OutOfRange => Fate::Refused,
    }
}

/// What an operator can do about a code that holds records.
pub(super) fn advice(code: Code) -> &'static str {
    match code {
        Code::NotFound => "the topic is gone: create it again",
        Code::PermissionDenied => "grant roles/pubsub.publisher on the topic to this account",
        Code::Unauthenticated => "check this account's credentials",
        Code::FailedPrecondition => "check the topic's state, above all its encryption key",
        _ => "check that the endpoint is Pub/Sub's",
    }
}

/// How long one try may take, after this many that got no answer: up to [`longest`], at random, so that among calls which
/// wait together some ask again soon.
pub(super) fn call_limit(size_bytes: usize, unanswered: u32) -> Duration {
    let (shortest, longest) = (longest(size_bytes, 0), longest(size_bytes, unanswered));
    shortest + (longest - shortest).mul_f64(fastrand::f64())
}

fn longest(size_bytes: usize, unanswered: u32) -> Duration {
    let by_size = CALL_LIMIT_PER_MB * u32::try_from(size_bytes / 1_000_000).unwrap_or(u32::MAX);
    (CALL_LIMIT + by_size).saturating_mul(1 << unanswered.min(8)).min(MAX_CALL_LIMIT)
}

/// Returns the delays between tries: from 50 ms to a second at most.
pub(super) fn delays() -> impl Iterator<Item = Duration> + Send {
    // The jitter adds up to as much again.
    backoff(Duration::from_millis(50), Duration::from_millis(500))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_an_answer_gives_the_next_up_to_twice_the_time() {
        let limits: Vec<u64> = (0..6).map(|unanswered| longest(200_000, unanswered).as_secs()).collect();
        assert_eq!(limits, [5, 10, 20, 40, 60, 60]);
        assert_eq!(call_limit(9_900_000, 0).as_secs(), 14);
        assert!((0..100).all(|_| (5..=20).contains(&call_limit(200_000, 2).as_secs())));
    }

    #[test]
    fn no_wait_is_longer_than_a_second() {
        assert!(delays().take(1_000).all(|delay| delay <= Duration::from_secs(1)));
    }

    #[test]
    fn calls_that_failed_together_do_not_come_back_together() {
        let [one, other] = [(); 2].map(|()| delays().take(10).collect::<Vec<_>>());
        assert_ne!(one, other);
    }
}
