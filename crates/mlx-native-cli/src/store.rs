//! The models that were pulled, in the user's cache directory.
//!
//! ```text
//! models/<alias>/<file>.gguf               a model that is known by an alias
//! models/<owner>/<repository>/<file>.gguf  a model from the Hugging Face hub
//! models/<owner>/<repository>/config.json  a model directory from there, with all its files
//! partial/<digest>.part                    downloads that are not finished
//! locks/<name>.lock                        held while a model is pulled
//! ```
//!
//! A file gets its place under `models` by a rename after its digest was checked, so whatever lies there is whole. A directory gets its `config.json` last.

use anyhow::{Context, Result, bail};
use mlx_native::io::gguf::{parse_split_path, split_path};
use mlx_native_model::ModelFile;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use crate::fetch::{self, Source};
use crate::output;

/// The cache directory: `MLXN_CACHE`, else `mlx-native` in the user's cache directory.
pub struct Store {
    root: PathBuf,
}

/// A model in the store: one file, all parts of a split one, or a directory.
pub struct Stored {
    /// What commands call it: the alias, `owner/repository/file`, or for a directory `owner/repository`.
    pub name: String,
    /// What to open: the file, the first part, or the directory.
    pub path: PathBuf,
    /// Its files in order.
    pub files: Vec<PathBuf>,
    /// The size of all files, in bytes.
    pub bytes: u64,
    /// When it was pulled.
    pub pulled: SystemTime,
}

impl Store {
    /// Finds the store's place; nothing is created.
    pub fn open() -> Result<Self> {
        let root = match std::env::var_os("MLXN_CACHE").filter(|value| !value.is_empty()) {
            Some(root) => PathBuf::from(root),
            None => dirs::cache_dir()
                .context("no cache directory is known for this user: set MLXN_CACHE to a folder")?
                .join("mlx-native"),
        };
        Ok(Self { root })
    }

    /// Where a model of that name lies: `name` is an alias or `owner/repository/file`.
    pub fn place(&self, name: &str) -> PathBuf {
        self.root.join("models").join(name)
    }

    /// The folder for unfinished downloads, created when missing.
    pub fn partial(&self) -> Result<PathBuf> {
        let folder = self.root.join("partial");
        create_dir(&folder)?;
        Ok(folder)
    }

    /// Waits until no other process pulls `name`, then keeps others waiting until the file is dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        let folder = self.root.join("locks");
        create_dir(&folder)?;
        let path = folder.join(format!("{}.lock", name.replace('/', "--")));
        let failed = || format!("cannot lock {}", path.display());
        let file = File::create(&path).with_context(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                output::note!("another process is pulling {name}: waiting for it");
                file.lock().with_context(failed)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        Ok(file)
    }

    /// Gives a finished file its place.
    pub fn install(&self, finished: &Path, place: &Path) -> Result<()> {
        if let Some(folder) = place.parent() {
            create_dir(folder)?;
        }
        fs::rename(finished, place)
            .with_context(|| format!("cannot move {} to {}", finished.display(), place.display()))
    }

    /// Every model in the store, by name.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let models = self.root.join("models");
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        collect_models(&models, &mut files, &mut directories)?;
        let mut found: Vec<(PathBuf, Vec<PathBuf>)> = group_splits(files).into_iter().collect();
        for directory in directories {
            let mut files = Vec::new();
            collect_files(&directory, &mut files)?;
            files.retain(|file| !is_gguf(file));
            found.push((directory, files));
        }
        let mut stored = Vec::new();
        for (first, files) in found {
            let relative = first.strip_prefix(&models).unwrap_or(&first);
            let name = match relative.iter().next().and_then(|folder| folder.to_str()).and_then(fetch::alias) {
                Some(alias) => alias.name.to_owned(),
                None => relative.to_string_lossy().into_owned(),
            };
            let mut model = Stored { name, path: first, files, bytes: 0, pulled: SystemTime::UNIX_EPOCH };
            for file in &model.files {
                // A link whose file has gone is listed too, so that it can be deleted.
                let metadata = fs::metadata(file).or_else(|_| fs::symlink_metadata(file));
                let metadata = metadata.with_context(|| format!("cannot read {}", file.display()))?;
                model.bytes += metadata.len();
                model.pulled = model.pulled.max(metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH));
            }
            stored.push(model);
        }
        stored.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(stored)
    }

    /// The models that `name` means: one by its full name, or all of `owner/repository`.
    pub fn find(&self, name: &str) -> Result<Vec<Stored>> {
        let within = format!("{}/", name.trim_end_matches('/'));
        let mut found = self.list()?;
        found.retain(|model| {
            model.name == name
                || model.name.starts_with(&within)
                || model.files.iter().any(|file| file.ends_with(name) && name.contains('/'))
        });
        Ok(found)
    }

    /// Deletes a model's files and the folders that this leaves empty.
    pub fn remove(&self, model: &Stored) -> Result<()> {
        let models = self.root.join("models");
        for file in &model.files {
            fs::remove_file(file).with_context(|| format!("cannot delete {}", file.display()))?;
            let above = file.ancestors().skip(1).take_while(|folder| folder.starts_with(&models) && *folder != models);
            for folder in above {
                if fs::remove_dir(folder).is_err() {
                    break; // not empty
                }
            }
        }
        Ok(())
    }

    /// The unfinished downloads and their sizes.
    pub fn unfinished(&self) -> Result<Vec<(PathBuf, u64)>> {
        let mut found = Vec::new();
        for path in read_dir(&self.root.join("partial"))? {
            let bytes = fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or(0);
            found.push((path, bytes));
        }
        Ok(found)
    }
}

/// The GGUF file or model directory that `model` means: an alias (pulled when missing), a file, a folder with one model in it, or the name
/// of a pulled model. For a split model, the first part.
///
/// An alias means the alias even where a file of that name exists; `./name` is the file.
pub fn resolve_model(model: &OsStr) -> Result<PathBuf> {
    resolve(model, false)
}

/// The same, and a name `owner/repository[/file]` is pulled from the hub when it is missing.
pub fn resolve_or_pull(model: &OsStr) -> Result<PathBuf> {
    resolve(model, true)
}

fn resolve(model: &OsStr, may_pull: bool) -> Result<PathBuf> {
    let path = Path::new(model);
    // A path need not be UTF-8; all names are.
    let name = model.to_str();
    if let Some(alias) = name.and_then(fetch::alias) {
        return fetch::pull(&Store::open()?, &Source::Alias(alias));
    }
    if path.is_dir() {
        return model_in(path);
    }
    if path.exists() {
        // Anything else is taken for a GGUF file, which reading it finds out.
        if let Some(folder) = path.parent()
            && ModelFile::is_model_directory(folder)
            && path.extension().is_some_and(|extension| extension == "safetensors" || extension == "json")
        {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            bail!(
                "{}: expected a GGUF file or a directory; the model directory is {}",
                path.display(),
                folder.display()
            );
        }
        return Ok(path.to_owned());
    }
    let Some(model) = name.filter(|name| !name.is_empty()) else { bail!("`{}`: no such file", path.display()) };
    let store = Store::open()?;
    let mut found = store.find(model)?;
    match found.len() {
        1 => Ok(found.swap_remove(0).path),
        0 => {
            // `folder/model.gguf` is a path to a file that is not there: repositories are not called so.
            let is_path = model.matches('/').count() < 2 && is_gguf(path);
            if let Ok(source @ Source::Hub(_)) = fetch::Source::parse(model)
                && may_pull
                && !is_path
            {
                return fetch::pull(&store, &source);
            }
            let mut hint = format!("known aliases are {}", fetch::alias_names());
            if matches!(fetch::Source::parse(model), Ok(Source::Hub(_))) {
                hint = format!("{hint}; `mlxn pull {model}` fetches it from the Hugging Face hub");
            }
            bail!("{model}: no such file, and no model of that name has been pulled ({hint})")
        }
        _ => bail!("{model} means several models: {}", names(found.iter().map(|model| model.name.as_str()))),
    }
}

/// The one model in a folder, or the folder itself.
fn model_in(folder: &Path) -> Result<PathBuf> {
    if ModelFile::is_model_directory(folder) {
        return Ok(folder.to_owned());
    }
    let files = read_dir(folder)?.into_iter().filter(|path| is_gguf(path)).collect();
    let mut models: Vec<PathBuf> = group_splits(files).into_keys().collect();
    match models.len() {
        1 => Ok(models.swap_remove(0)),
        0 => bail!("{}: no GGUF file in this folder, and no config.json", folder.display()),
        _ => {
            let listed = models.iter().filter_map(|path| path.file_name()?.to_str());
            bail!("{}: several models in this folder, name one: {}", folder.display(), names(listed))
        }
    }
}

/// Groups the parts of split files (`…-00001-of-00003.gguf`): first part → all parts that are there, in order.
pub fn group_splits(files: Vec<PathBuf>) -> BTreeMap<PathBuf, Vec<PathBuf>> {
    let mut groups: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for file in files {
        let key = match parse_split_path(&file) {
            Some((base, _, parts)) => split_path(base, 0, parts),
            None => file.clone(),
        };
        groups.entry(key).or_default().push(file);
    }
    groups.values_mut().for_each(|files| files.sort());
    groups
}

/// Whether a relative path from elsewhere stays below the folder that it is joined to.
pub fn stays_below(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// `a, b, c`.
pub fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Finds GGUF files and model directories.
fn collect_models(folder: &Path, files: &mut Vec<PathBuf>, directories: &mut Vec<PathBuf>) -> Result<()> {
    if ModelFile::is_model_directory(folder) {
        directories.push(folder.to_owned());
    }
    for path in read_dir(folder)? {
        if path.is_dir() {
            collect_models(&path, files, directories)?;
        } else if is_gguf(&path) {
            files.push(path);
        }
    }
    Ok(())
}

/// All files below a folder.
fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in read_dir(folder)? {
        if path.is_dir() {
            collect_files(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The paths in a folder; none where there is no such folder.
fn read_dir(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("cannot list {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(failed),
    };
    entries.map(|entry| Ok(entry.with_context(failed)?.path())).collect()
}

fn create_dir(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_grouped_in_order() {
        let files = ["m/b-00002-of-00002.gguf", "m/a.gguf", "m/b-00001-of-00002.gguf"].map(PathBuf::from).to_vec();
        let groups = group_splits(files);
        assert_eq!(groups.len(), 2);
        let parts = &groups[Path::new("m/b-00001-of-00002.gguf")];
        assert_eq!(parts, &["m/b-00001-of-00002.gguf", "m/b-00002-of-00002.gguf"].map(PathBuf::from));
    }

    #[test]
    fn paths_from_elsewhere_cannot_leave_the_folder() {
        assert!(stays_below("q4/model.gguf"));
        for bad in ["../model.gguf", "/etc/passwd", "a/../../b", ""] {
            assert!(!stays_below(bad), "{bad}");
        }
    }
}
