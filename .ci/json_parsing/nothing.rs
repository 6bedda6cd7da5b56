//! `cargo vendor` wants a target. There is none but this.
