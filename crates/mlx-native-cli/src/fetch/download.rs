//! One file over HTTP: resumed where an earlier attempt stopped, and checked against its SHA-256.

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::http::{self, Http};
use crate::output;

/// Interruptions in a row, without a byte in between, after which a download is given up.
const MAX_INTERRUPTIONS: u32 = 4;
const BUFFER_BYTES: usize = 1 << 18;

/// A file to fetch.
pub struct Remote {
    /// Its address.
    pub url: String,
    /// What the progress bar calls it.
    pub label: String,
    /// Its size in bytes, where it is known beforehand.
    pub size: Option<u64>,
    /// Its SHA-256 in hexadecimal digits, where it is known beforehand.
    pub sha256: Option<String>,
}

/// An answer of the server that is no file.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    url: String,
}

impl std::error::Error for Refused {}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} answered {}", http::shown(&self.url), self.status)
    }
}

/// Downloads into `folder` and returns the finished, checked file there.
///
/// The file's name in `folder` is its digest (without one, a digest of its address), so that a later call finds what an
/// interrupted one left, and never continues one content with another.
pub fn download(http: &Http, remote: &Remote, folder: &Path) -> Result<PathBuf> {
    let key = remote.sha256.clone().unwrap_or_else(|| hex(&Sha256::digest(&remote.url)));
    let mut partial = DigestFile::open(folder.join(format!("{key}.part")))?;
    if remote.size.is_some_and(|size| partial.bytes > size) {
        partial.restart()?;
    }
    let bar = output::byte_bar(&remote.label, remote.size);
    let (mut interruptions, mut furthest) = (0, partial.bytes);
    while remote.size != Some(partial.bytes) || partial.bytes == 0 {
        bar.set_position(partial.bytes);
        match transfer(http, remote, &mut partial, &bar) {
            Ok(Transfer::Complete) => break,
            Ok(Transfer::Interrupted(error)) => {
                interruptions = if partial.bytes > furthest { 1 } else { interruptions + 1 };
                furthest = furthest.max(partial.bytes);
                if interruptions == MAX_INTERRUPTIONS {
                    bar.abandon();
                    return Err(error.context(format!(
                        "{}: the connection broke {interruptions} times; pull again to continue at byte {}",
                        remote.label, partial.bytes
                    )));
                }
                std::thread::sleep(Duration::from_millis(200) * 3u32.pow(interruptions - 1));
            }
            Err(error) => {
                bar.abandon();
                return Err(error);
            }
        }
    }
    bar.finish_and_clear();
    check(partial, remote)
}

enum Transfer {
    Complete,
    Interrupted(anyhow::Error),
}

/// One request, read until its end or until the connection breaks.
fn transfer(http: &Http, remote: &Remote, partial: &mut DigestFile, bar: &indicatif::ProgressBar) -> Result<Transfer> {
    let mut response = http.get(&remote.url, partial.bytes)?;
    let headers = response.headers();
    // The size that this answer speaks of.
    let total = match response.status().as_u16() {
        200 => {
            // Also the answer of a server that ignores ranges: the whole file comes again.
            partial.restart()?;
            bar.set_position(0);
            http::text(headers, "content-length").and_then(|length| length.parse().ok())
        }
        206 => {
            let range = http::text(headers, "content-range").unwrap_or_default();
            let (start, total) = parse_content_range(range)
                .with_context(|| format!("{}: malformed Content-Range '{range}'", http::shown(&remote.url)))?;
            if start != partial.bytes {
                bail!("{}: asked for byte {}, got byte {start}", http::shown(&remote.url), partial.bytes);
            }
            total
        }
        // Nothing lies behind the bytes that are there. Without a known size that is the end of the file.
        416 if remote.size.is_none() => return Ok(Transfer::Complete),
        status => return Err(Refused { status, url: remote.url.clone() }.into()),
    };
    if let (Some(announced), Some(total)) = (remote.size, total)
        && announced != total
    {
        bail!("{}: expected {announced} bytes, the server's file has {total}", remote.label);
    }
    let end = remote.size.or(total);
    if let Some(end) = end {
        output::set_total(bar, end);
    }
    let mut body = response.body_mut().as_reader();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Transfer::Interrupted(error.into())),
        };
        partial.write_all(&buffer[..read]).with_context(|| format!("cannot write {}", partial.path.display()))?;
        bar.set_position(partial.bytes);
        if remote.size.is_some_and(|size| partial.bytes > size) {
            return Ok(Transfer::Complete); // the check below says what is wrong
        }
    }
    match end {
        Some(end) if partial.bytes < end => {
            Ok(Transfer::Interrupted(anyhow!("connection closed at byte {} of {end}", partial.bytes)))
        }
        _ => Ok(Transfer::Complete),
    }
}

/// `bytes 100-199/200` → first byte and the file's size, where that is known.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// Accepts a finished file when it is what `remote` announced; else deletes it.
fn check(partial: DigestFile, remote: &Remote) -> Result<PathBuf> {
    let bytes = partial.bytes;
    let (path, found) = partial.finish()?;
    let wrong = match (&remote.sha256, remote.size) {
        (_, Some(size)) if size != bytes => format!("expected {size} bytes, got {bytes}"),
        (Some(expected), _) if *expected != found => format!("expected SHA-256 {expected}, got {found}"),
        _ => return Ok(path),
    };
    fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))?;
    bail!("{}: the download is damaged and was deleted: {wrong}", remote.label)
}

/// A file that grows, with the digest of what it holds.
pub struct DigestFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    digest: Sha256,
}

impl DigestFile {
    /// Opens or creates a file and digests what it holds already.
    pub fn open(path: PathBuf) -> Result<Self> {
        let failed = || format!("cannot open {}", path.display());
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).with_context(failed)?;
        let (mut digest, mut bytes) = (Sha256::new(), 0);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = file.read(&mut buffer).with_context(failed)?;
            if read == 0 {
                break;
            }
            digest.update(&buffer[..read]);
            bytes += read as u64;
        }
        Ok(Self { path, file, bytes, digest })
    }

    /// Empties the file.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).with_context(|| format!("cannot truncate {}", self.path.display()))?;
        self.bytes = 0;
        self.digest = Sha256::new();
        Ok(())
    }

    /// The path, and the SHA-256 of the content, which has reached the disk.
    pub fn finish(self) -> Result<(PathBuf, String)> {
        self.file.sync_all().with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok((self.path, hex(&self.digest.finalize())))
    }
}

impl Write for DigestFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text can be a SHA-256 in hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
