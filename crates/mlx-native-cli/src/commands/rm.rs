//! `mlxn rm`.

use anyhow::{Context, Result, bail};
use indicatif::BinaryBytes;

use crate::output;
use crate::store::{self, Store};

/// Delete pulled models.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mlxn rm smollm2
  mlxn rm owner/repo                     all that was pulled from a repository
  mlxn rm --unfinished")]
pub struct Args {
    /// Names as `mlxn list` prints them
    #[arg(required_unless_present = "unfinished")]
    models: Vec<String>,
    /// Delete downloads that were interrupted
    #[arg(long)]
    unfinished: bool,
}

/// Deletes what is named; nothing at all when one of the names is unknown.
pub fn run(args: Args) -> Result<()> {
    let store = Store::open()?;
    let mut doomed = Vec::new();
    for name in &args.models {
        let found = store.find(name)?;
        if found.is_empty() {
            let stored = store.list()?;
            let known = match stored.is_empty() {
                true => "nothing has been pulled".to_owned(),
                false => format!("pulled are {}", store::names(stored.iter().map(|model| model.name.as_str()))),
            };
            bail!("no pulled model is called {name}: {known}");
        }
        doomed.extend(found);
    }
    for model in &doomed {
        store.remove(model)?;
        output::note!("deleted {} ({})", model.name, BinaryBytes(model.bytes));
    }
    if args.unfinished {
        for (path, bytes) in store.unfinished()? {
            std::fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))?;
            output::note!("deleted {} ({})", path.display(), BinaryBytes(bytes));
        }
    }
    Ok(())
}
