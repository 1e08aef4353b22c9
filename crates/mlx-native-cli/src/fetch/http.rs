//! HTTP: one client, the errors that a user can act on, and addresses.

use anyhow::{Error, Result, anyhow, bail};
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{HeaderMap, Response, header};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

/// The largest answer that is read into memory: a listing of files.
const MAX_PAGE_BYTES: u64 = 64 << 20;

/// A client that trusts the system's certificates and goes through the environment's proxy.
pub struct Http {
    agent: Agent,
    /// Sent as a bearer token, to the first host only and never after a redirect.
    token: Option<String>,
}

impl Http {
    /// A client; nothing is connected yet.
    pub fn new(token: Option<String>) -> Self {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("mlxn/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .build()
            .into();
        Self { agent, token }
    }

    /// Whether a token is sent.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// GET from byte `start` on; a server may ignore `start` and answer 200 instead of 206.
    pub fn get(&self, url: &str, start: u64) -> Result<Response<Body>> {
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header(header::RANGE, format!("bytes={start}-"));
        }
        request.call().map_err(|error| explain(url, error))
    }

    /// GET of a page that fits in memory: status, content type and text.
    pub fn page(&self, url: &str, accept: &str) -> Result<(u16, String, String)> {
        let mut request = self.agent.get(url).header(header::ACCEPT, accept);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut response = request.call().map_err(|error| explain(url, error))?;
        let kind = text(response.headers(), "content-type").unwrap_or_default().to_owned();
        let body = response.body_mut().with_config().limit(MAX_PAGE_BYTES).read_to_string();
        Ok((response.status().as_u16(), kind, body.map_err(|error| explain(url, error))?))
    }

    /// HEAD without following a redirect.
    pub fn head(&self, url: &str) -> Result<Response<Body>> {
        let mut request = self.agent.head(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.config().max_redirects(0).max_redirects_will_error(false).build();
        request.call().map_err(|error| explain(url, error))
    }
}

/// A header's text.
pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Says what to do when a host cannot be reached.
pub fn explain(url: &str, error: ureq::Error) -> Error {
    let host = shown(url);
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Io(_) | ureq::Error::Timeout(_) => {
            anyhow!(error).context(format!(
                "cannot reach {host}: check the network connection (HTTPS_PROXY names a proxy), \
                 or fetch a GGUF file elsewhere and pass its path instead"
            ))
        }
        error => anyhow!(error).context(format!("request to {host} failed")),
    }
}

/// Checks an address that comes from a setting.
pub fn address<'a>(setting: &str, url: &'a str) -> Result<&'a str> {
    if !["https://", "http://"].iter().any(|scheme| url.starts_with(scheme)) {
        bail!("{setting}: expected an address that begins with https:// or http://, found {}", shown(url));
    }
    Ok(url)
}

/// An address as it may be printed: without a user's name and password.
pub fn shown(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let authority = rest.find('/').unwrap_or(rest.len());
            let start = rest[..authority].rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}://{}", &rest[start..])
        }
        None => url.to_owned(),
    }
}

/// The address that `link` means on the page at `base` (RFC 3986, section 5.2, for http and https).
pub fn join(base: &str, link: &str) -> String {
    if link.contains("://") {
        return link.to_owned();
    }
    let Some((scheme, rest)) = base.split_once("://") else { return link.to_owned() };
    if let Some(rest) = link.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let mut parts: Vec<&str> = match link.starts_with('/') {
        true => Vec::new(),
        // Everything after the last slash of the base is replaced.
        false => path.rsplit_once('/').map_or("", |(folder, _)| folder).split('/').filter(|p| !p.is_empty()).collect(),
    };
    for part in link.trim_start_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("{scheme}://{authority}/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::{join, shown};

    #[test]
    fn links_are_resolved() {
        let base = "https://index.example/simple/package/";
        assert_eq!(join(base, "https://files.example/a.whl"), "https://files.example/a.whl");
        assert_eq!(join(base, "//files.example/a.whl"), "https://files.example/a.whl");
        assert_eq!(join(base, "/files/a.whl"), "https://index.example/files/a.whl");
        assert_eq!(join(base, "../../files/a.whl"), "https://index.example/files/a.whl");
        assert_eq!(join(base, "a.whl"), "https://index.example/simple/package/a.whl");
    }

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(shown("https://user:secret@index.example/simple/"), "https://index.example/simple/");
        assert_eq!(shown("https://index.example/a@b"), "https://index.example/a@b");
    }
}
