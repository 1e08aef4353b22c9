//! Files from the Hugging Face hub, over its HTTP interface:
//! `/api/models/{repository}` lists the files, `/{repository}/resolve/{revision}/{file}` is a file, and a HEAD of that
//! names its SHA-256 (`X-Linked-Etag`) and size (`X-Linked-Size`).

use anyhow::{Context, Result, bail};
use mlx_native::io::gguf::parse_split_path;
use serde::Deserialize;
use std::path::PathBuf;

use super::download::{self, Refused, Remote};
use super::http::{self, Http};
use crate::output;
use crate::store::{self, Store};

const ENDPOINT: &str = "https://huggingface.co";
/// Redirects within the hub that are followed: a repository that was renamed.
const MAX_REDIRECTS: usize = 5;

/// A repository of the hub, and a file in it.
pub struct HubModel {
    repo: String,
    file: Option<String>,
}

impl HubModel {
    /// Reads `owner/repository[/file]`.
    pub fn parse(name: &str) -> Option<Self> {
        let valid = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let mut parts = name.splitn(3, '/');
        let (owner, repo, file) = (parts.next()?, parts.next()?, parts.next());
        if !valid(owner) || !valid(repo) || !file.is_none_or(store::stays_below) {
            return None;
        }
        Some(Self { repo: format!("{owner}/{repo}"), file: file.map(str::to_owned) })
    }
}

/// What `/api/models/{repository}` answers, as far as it matters.
#[derive(Deserialize)]
struct Listing {
    /// The commit that the listing describes.
    sha: Option<String>,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Fetches a model's files, and returns what to open: the first, or the directory.
pub fn pull(store: &Store, model: &HubModel) -> Result<PathBuf> {
    // What is already there needs no network.
    if model.file.is_none()
        && let Some(found) = store.list()?.into_iter().find(|stored| stored.name == model.repo)
    {
        return Ok(found.path);
    }
    if let Some(file) = &model.file
        && let [found] = store.find(&format!("{}/{file}", model.repo))?.as_slice()
        && let Some(first) = found.files.first()
        && parse_split_path(file).is_none_or(|(_, _, parts)| found.files.len() == parts)
    {
        return Ok(first.clone());
    }
    let _lock = store.lock(&model.repo)?;
    let hub = Hub::from_env()?;
    let listing = hub.list(&model.repo)?;
    let directory = model.file.is_none().then(|| directory_files(&listing.siblings)).flatten();
    let files = match &directory {
        Some(files) => files.clone(),
        None => choose(&model.repo, &listing.siblings, model.file.as_deref())?,
    };
    let revision = listing.sha.as_deref().unwrap_or("main");
    let mut places = Vec::new();
    for file in &files {
        let place = store.place(&format!("{}/{file}", model.repo));
        if !place.exists() {
            let remote = hub.remote(&model.repo, revision, file)?;
            if remote.sha256.is_none() {
                output::note!("warning: the hub names no SHA-256 for {file}; only its size is checked");
            }
            let finished = download::download(&hub.http, &remote, &store.partial()?)
                .map_err(|error| hub.explain(&model.repo, error))?;
            store.install(&finished, &place)?;
        }
        places.push(place);
    }
    match directory {
        Some(_) => Ok(store.place(&model.repo)),
        None => places.into_iter().next().context("the repository lists no file"),
    }
}

/// The files of a model directory: what configures it and its tokenizer, and the weights; `None` where the repository is none.
///
/// `config.json` is the last, since it makes the folder a model.
fn directory_files(siblings: &[Sibling]) -> Option<Vec<String>> {
    const CONFIG: &str = "config.json";
    let names = || siblings.iter().map(|sibling| sibling.rfilename.as_str());
    let has = |suffix: &str| names().any(|name| name.ends_with(suffix));
    // Repositories of GGUF files often have the configuration beside them.
    if !names().any(|name| name == CONFIG) || !has(".safetensors") || has(".gguf") {
        return None;
    }
    // Only the top folder: below it lie other formats, and training's leftovers.
    let wanted = |name: &&str| {
        let suffixes = [".safetensors", ".json", ".jinja", "tokenizer.model", "merges.txt"];
        !name.contains('/') && store::stays_below(name) && suffixes.iter().any(|suffix| name.ends_with(suffix))
    };
    let mut files: Vec<String> = names().filter(wanted).filter(|name| *name != CONFIG).map(str::to_owned).collect();
    // With both, the consolidated file holds the shards' weights once more.
    if files.iter().any(|name| name == "model.safetensors.index.json" || name == "model.safetensors") {
        files.retain(|name| !name.ends_with(".safetensors") || name.starts_with("model"));
    }
    files.push(CONFIG.to_owned());
    Some(files)
}

/// The files of the model that is meant: one, or all parts of a split one.
fn choose(repo: &str, siblings: &[Sibling], wanted: Option<&str>) -> Result<Vec<String>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for Sibling { rfilename } in siblings {
        if rfilename.to_ascii_lowercase().ends_with(".gguf") && store::stays_below(rfilename) {
            files.push(PathBuf::from(rfilename));
        }
    }
    let groups = store::group_splits(files);
    let listed: Vec<String> = groups.keys().map(|first| first.to_string_lossy().into_owned()).collect();
    if listed.is_empty() {
        bail!("{repo} has no GGUF file, and is no model directory (config.json and safetensors)")
    }
    let all = || store::names(listed.iter().map(String::as_str));
    let parts = match wanted {
        Some(wanted) => groups.values().find(|parts| parts.iter().any(|part| part.as_os_str() == wanted)),
        None => {
            // Projectors of vision models lie beside the model that they belong to.
            let name = |first: &PathBuf| first.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase());
            let models = || groups.iter().filter(|(first, _)| name(first).is_some_and(|n| !n.starts_with("mmproj")));
            let mut preferred = models().filter(|(first, _)| name(first).is_some_and(|name| name.contains("q4_k_m")));
            match (models().count(), preferred.next(), preferred.next()) {
                (1, ..) => models().next(),
                (_, preferred @ Some(_), None) => preferred,
                _ => None,
            }
            .map(|(_, parts)| parts)
        }
    };
    let Some(parts) = parts else {
        match wanted {
            Some(wanted) => bail!("{repo} has no file {wanted}; it has {}", all()),
            None => bail!("{repo} has several models: name one as {repo}/FILE, of {}", all()),
        }
    };
    let parts: Vec<String> = parts.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if let Some((_, _, expected)) = parts.first().and_then(parse_split_path)
        && parts.len() != expected
    {
        bail!("{repo} has only {} of the {} parts of {}", parts.len(), expected, parts[0]);
    }
    Ok(parts)
}

struct Hub {
    endpoint: String,
    http: Http,
}

impl Hub {
    /// The hub that `HF_ENDPOINT` names, with the token in `HF_TOKEN`.
    fn from_env() -> Result<Self> {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let token = set("HF_TOKEN").map(|token| token.trim().to_owned());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            bail!("HF_TOKEN: expected one word of ASCII characters");
        }
        Ok(Self {
            endpoint: http::address("HF_ENDPOINT", endpoint.trim())?.trim_end_matches('/').to_owned(),
            http: Http::new(token),
        })
    }

    fn list(&self, repo: &str) -> Result<Listing> {
        let url = format!("{}/api/models/{repo}", self.endpoint);
        let (status, _, body) = self.http.page(&url, "application/json")?;
        if status != 200 {
            return Err(self.refused(repo, status));
        }
        serde_json::from_str(&body).with_context(|| format!("{}: not a listing of a repository", http::shown(&url)))
    }

    /// Asks for a file's digest and size.
    fn remote(&self, repo: &str, revision: &str, file: &str) -> Result<Remote> {
        let mut url = format!("{}/{repo}/resolve/{revision}/{}", self.endpoint, encode(file));
        for _ in 0..MAX_REDIRECTS {
            let response = self.http.head(&url)?;
            let header = |name| http::text(response.headers(), name);
            let status = response.status().as_u16();
            // The digest is in the hub's own answer. Only relative redirects stay with the hub.
            let moved = header("location").filter(|to| status / 100 == 3 && !to.contains("://"));
            if let (Some(to), None) = (moved, header("x-linked-etag")) {
                url = http::join(&url, to);
                continue;
            }
            if status >= 400 {
                return Err(self.refused(repo, status));
            }
            let etag = header("x-linked-etag").or_else(|| header("etag")).unwrap_or_default();
            let digest = etag.trim_start_matches("W/").trim_matches('"');
            let length = if status == 200 { header("content-length") } else { None };
            return Ok(Remote {
                label: file.to_owned(),
                size: header("x-linked-size").or(length).and_then(|size| size.parse().ok()),
                sha256: download::is_sha256(digest).then(|| digest.to_ascii_lowercase()),
                url,
            });
        }
        bail!("{}: more than {MAX_REDIRECTS} redirects", http::shown(&url))
    }

    fn refused(&self, repo: &str, status: u16) -> anyhow::Error {
        let address = http::shown(&self.endpoint);
        match status {
            401 | 403 if self.http.has_token() => anyhow::anyhow!(
                "{address} refused {repo} ({status}): HF_TOKEN is wrong or may not read it, the repository's terms are \
                 not accepted on its page, or it does not exist"
            ),
            401 | 403 => anyhow::anyhow!(
                "{address} refused {repo} ({status}): it is private, gated or does not exist; accept its terms on its \
                 page if it has any and set HF_TOKEN to a token that may read it"
            ),
            404 => anyhow::anyhow!("{address} has no repository or file of that name: {repo}"),
            429 => anyhow::anyhow!("{address} answered 429, too many requests: wait a little, or set HF_TOKEN"),
            status => anyhow::anyhow!("{address} answered {status} for {repo}"),
        }
    }

    fn explain(&self, repo: &str, error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref::<Refused>() {
            Some(refused) => self.refused(repo, refused.status),
            None => error,
        }
    }
}

/// Percent-encodes a path, slashes excepted.
fn encode(path: &str) -> String {
    let mut encoded = String::new();
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => encoded.push(byte as char),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], wanted: Option<&str>) -> Result<Vec<String>> {
        let siblings: Vec<_> = files.iter().map(|name| Sibling { rfilename: name.to_string() }).collect();
        choose("o/r", &siblings, wanted)
    }

    #[test]
    fn names() {
        let model = HubModel::parse("owner/repo.x/dir/m.gguf").expect("a name");
        assert_eq!((model.repo.as_str(), model.file.as_deref()), ("owner/repo.x", Some("dir/m.gguf")));
        for bad in ["owner", "owner/", "../x", "owner/../x", "owner/repo/../../x", "./models/x.gguf", "/a/b", "a b/c"] {
            assert!(HubModel::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_only_model_is_taken_and_else_q4_k_m() {
        assert_eq!(chosen(&["README.md", "a.gguf", "mmproj-a.gguf"], None).expect("one"), ["a.gguf"]);
        assert_eq!(chosen(&["a-Q8_0.gguf", "a-Q4_K_M.gguf"], None).expect("preferred"), ["a-Q4_K_M.gguf"]);
        let error = chosen(&["a-Q8_0.gguf", "a-Q5_0.gguf"], None).expect_err("two").to_string();
        assert!(error.contains("a-Q8_0.gguf") && error.contains("a-Q5_0.gguf"), "{error}");
        assert!(chosen(&["README.md"], None).is_err());
    }

    #[test]
    fn a_model_directory_is_all_its_files_and_the_configuration_comes_last() {
        let files = |names: &[&str]| {
            let siblings: Vec<_> = names.iter().map(|name| Sibling { rfilename: name.to_string() }).collect();
            directory_files(&siblings)
        };
        let names = [
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model.safetensors",
            "onnx/model.json",
            "tokenizer.json",
        ];
        assert_eq!(files(&names).expect("a directory"), ["model.safetensors", "tokenizer.json", "config.json"]);
        assert!(files(&["config.json", "m.gguf"]).is_none());
        assert!(files(&["config.json", "m.gguf", "model.safetensors"]).is_none());
        assert!(files(&["model.safetensors"]).is_none());
    }

    #[test]
    fn a_split_model_is_all_its_parts() {
        let files = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        assert_eq!(chosen(&files, None).expect("the split model"), files);
        assert_eq!(chosen(&files, Some(files[1])).expect("by a part"), files);
        assert!(chosen(&files[..1], None).expect_err("a part is missing").to_string().contains("1 of the 2 parts"));
    }

    #[test]
    fn encoding() {
        assert_eq!(encode("dir/a b+ü.gguf"), "dir/a%20b%2B%C3%BC.gguf");
    }
}
