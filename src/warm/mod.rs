//! The one door to origins.
