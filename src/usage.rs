//! The error that ends the process with status 2: the command line, the environment or a file says what cannot be meant.

use std::fmt;

/// A mistake in how the program was called or configured, as opposed to work that failed.
///
/// `main` looks for it in an error's chain and exits with 2 instead of 1.
#[derive(Debug)]
pub(crate) struct UsageError(anyhow::Error);

impl UsageError {
    /// Marks `error` as a mistake of the caller's.
    pub(crate) fn new(error: impl Into<anyhow::Error>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for UsageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
