//! One module per command: its arguments and what it does.

pub mod info;
pub mod list;
pub mod pull;
pub mod rm;
pub mod tokenize;
