//! One module per command: its arguments and what it does.

pub mod bench;
pub mod chat;
pub mod info;
pub mod list;
pub mod perplexity;
pub mod pull;
pub mod quantize;
pub mod rm;
pub mod run;
pub mod selftest;
pub mod tokenize;
