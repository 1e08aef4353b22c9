//! `mlxn list`.

use anyhow::Result;
use indicatif::{BinaryBytes, HumanDuration};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::output;
use crate::store::Store;

/// List the models that were pulled.
#[derive(clap::Args)]
#[command(after_help = "Example: mlxn list --json")]
pub struct Args {
    /// Print an array of {name, bytes, path, pulled}, pulled in seconds since 1970
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    bytes: u64,
    path: PathBuf,
    pulled: u64,
}

/// Lists the store.
pub fn run(args: Args) -> Result<()> {
    let store = Store::open()?;
    let rows: Vec<Row> = store
        .list()?
        .into_iter()
        .map(|model| Row {
            name: model.name,
            bytes: model.bytes,
            path: model.path,
            pulled: model.pulled.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        })
        .collect();
    if args.json {
        return output::json(&rows);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let mut out = output::stdout();
    for Row { name, bytes, path, pulled } in &rows {
        let size = BinaryBytes(*bytes).to_string();
        let age = HumanDuration(now.saturating_sub(std::time::Duration::from_secs(*pulled))).to_string();
        let path = path.display();
        writeln!(out, "{name:width$}  {size:>10}  {age:>10} ago  {path}")?;
    }
    if rows.is_empty() {
        output::note!("no models yet: `mlxn pull smollm2` fetches a small one");
    }
    let unfinished = store.unfinished()?;
    if !unfinished.is_empty() {
        let bytes = unfinished.iter().map(|(_, bytes)| bytes).sum();
        output::note!(
            "{} in unfinished downloads: pull again to resume, or `mlxn rm --unfinished`",
            BinaryBytes(bytes)
        );
    }
    Ok(())
}
