//! The commands that run a model, on one whose answers are known: after each token of its vocabulary comes the next.

mod support;

use mlx_native::GgmlType;
use mlx_native::io::gguf::GgufWriter;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::{error_of, folder, mlxn, run, stdout_of};

/// In byte-level spelling: Ã and © are the bytes of é, Ċ is a line break. From y to ? the tokens go in a circle.
const TOKENS: [&str; HIDDEN] = [
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w",
    "x", "Ã", "©", "Ċ", "xw", "<end>", "y", "z", "?",
];
const END: usize = 28;
/// As many as tokens, so that an embedding is one value of 1 among zeros.
const HIDDEN: usize = 32;

/// The model: attention and feed-forward add nothing, and the output's rows are the embedding of the token before.
fn model(folder: &Path) -> PathBuf {
    let path = folder.join("next.gguf");
    let one_hot = |hot: &dyn Fn(usize) -> usize| -> Vec<u8> {
        let value = |row: usize, column: usize| if hot(row) == column { 1f32 } else { 0.0 };
        (0..HIDDEN).flat_map(|row| (0..HIDDEN).flat_map(move |column| value(row, column).to_le_bytes())).collect()
    };
    let before = |token: usize| match token {
        0 => END,
        29 => 31,
        token => token - 1,
    };
    let (embedding, output) = (one_hot(&|token| token), one_hot(&before));
    let (zeros, ones) = (vec![0u8; HIDDEN * HIDDEN * 4], 1f32.to_le_bytes().repeat(HIDDEN));
    let kinds: Vec<i32> = (0..HIDDEN).map(|token| if token == END { 3 } else { 1 }).collect();

    let mut writer = GgufWriter::new();
    let mut fill = || -> mlx_native::Result<()> {
        writer.metadata("general.architecture", "llama")?;
        for (key, value) in [
            ("block_count", 1),
            ("context_length", 4096),
            ("embedding_length", HIDDEN as u32),
            ("feed_forward_length", HIDDEN as u32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 2),
        ] {
            writer.metadata(&format!("llama.{key}"), value)?;
        }
        writer.metadata("tokenizer.ggml.model", "gpt2")?;
        writer.metadata("tokenizer.ggml.pre", "default")?;
        writer.metadata("tokenizer.ggml.tokens", &TOKENS[..])?;
        writer.metadata("tokenizer.ggml.token_type", &kinds[..])?;
        writer.metadata("tokenizer.ggml.merges", &["x w"][..])?;
        writer.metadata("tokenizer.ggml.eos_token_id", END as u32)?;
        writer.metadata("tokenizer.ggml.add_bos_token", false)?;
        let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
        writer.metadata("tokenizer.chat_template", template)?;
        let matrix = [HIDDEN as u64; 2];
        writer.tensor("token_embd.weight", &matrix, GgmlType::F32, &embedding[..])?;
        writer.tensor("output.weight", &matrix, GgmlType::F32, &output[..])?;
        for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            writer.tensor(&format!("blk.0.{name}.weight"), &matrix, GgmlType::F32, &zeros[..])?;
        }
        for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
            writer.tensor(&format!("{name}.weight"), &matrix[..1], GgmlType::F32, &ones[..])?;
        }
        Ok(())
    };
    fill().expect("a model");
    writer.write(&path).expect("a file");
    path
}

/// `mlxn COMMAND MODEL OPTIONS… --device cpu`
fn on(model: &Path, command: &[&str], options: &[&str]) -> Command {
    let mut command = mlxn(model.parent().expect("its folder"), command);
    command.arg(model).args(options).args(["--device", "cpu", "--threads", "1"]);
    command
}

/// Runs a command with `input` on standard input.
fn with_input(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("mlxn starts");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("its output")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn run_continues_the_prompt() {
    let model = model(&folder("run"));
    let answer = |options: &[&str]| stdout_of(&mut on(&model, &["run"], &[options, &["--temperature", "0"]].concat()));
    assert_eq!(answer(&["--raw", "a", "-n", "5"]), "bcdef\n");
    assert_eq!(answer(&["c", "-n", "2"]), "de\n");
    assert_eq!(answer(&["--prompt", "c", "--system", "ab", "--max-tokens", "2"]), "de\n");
    assert_eq!(answer(&["a", "--stop", "ef", "--stop", "xyz"]), "bcd\n");
    assert_eq!(answer(&["w"]), "xé\nxw\n", "whole characters, up to the end token");
    assert_eq!(answer(&["a", "-n", "3", "--activations", "exact"]), "bcd\n");

    let piped = with_input(on(&model, &["run"], &["-n", "2", "--temperature", "0"]), "m");
    assert_eq!(text(&piped.stdout), "no\n");
    let statistics = text(&piped.stderr);
    assert!(statistics.contains("prompt 1 tokens") && statistics.contains("answer 2 tokens"), "{statistics}");
    let none = with_input(on(&model, &["run"], &["-n", "0"]), "m");
    assert!(text(&none.stderr).contains("prompt 1 tokens; answer 0 tokens"), "{}", text(&none.stderr));
    let quiet = with_input(on(&model, &["run"], &["-n", "2", "--quiet"]), "m");
    assert_eq!(text(&quiet.stderr), "");
}

#[test]
fn a_seed_repeats_an_answer() {
    let model = model(&folder("seed"));
    let answer = |seed: &str| {
        let random = ["--temperature", "50", "--top-k", "0", "--top-p", "1", "--min-p", "0"];
        stdout_of(&mut on(&model, &["run"], &[&["a", "-n", "40", "--seed", seed], &random[..]].concat()))
    };
    assert_eq!(answer("1"), answer("1"));
    assert_ne!((answer("1"), answer("2")), (answer("2"), answer("3")));
}

#[test]
fn run_refuses() {
    let model = model(&folder("refuse"));
    let long = "a".repeat(100);
    let error = error_of(&mut on(&model, &["run"], &[&long, "--ctx", "64"]));
    assert!(error.contains("100") && error.contains("64"), "both numbers: {error}");
    let error = error_of(&mut on(&model, &["run"], &["a", "--temperature=-1"]));
    assert!(error.contains("temperature"), "{error}");
    let error = error_of(&mut mlxn(Path::new("."), &["run", "smollm2", "a", "--device", "gpu"]));
    assert!(error.contains("`gpu`") && error.contains("cuda"), "{error}");
    let error = error_of(&mut on(&model, &["run"], &["a", "-n", "99999999999999", "--ctx", "99999999999999"]));
    assert!(error.contains("cannot hold a context of 99999999999999 tokens"), "{error}");
    for (option, value) in [("--threads", "0"), ("--ctx", "0"), ("-n", "-1"), ("--seed", "-1"), ("--top-k", "-2")] {
        let output = run(&mut on(&model, &["run"], &["a", option, value]));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{option} {value}: {said}");
        assert!(said.contains(&format!("invalid value '{value}'")), "{said}");
    }
    let empty = with_input(on(&model, &["run"], &[]), "");
    assert_eq!(empty.status.code(), Some(1));
    assert!(text(&empty.stderr).contains("prompt is empty"), "{}", text(&empty.stderr));
    assert_eq!(run(&mut on(&model, &["run"], &["a", "--prompt", "b"])).status.code(), Some(2));
}

/// Starts an answer without an end and waits for its beginning.
fn endless(model: &Path) -> std::process::Child {
    let mut command = on(model, &["run"], &["y", "-n", "1000000", "--ctx", "1000000", "--temperature", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mlxn starts");
    let mut begin = [0; 6];
    child.stdout.as_mut().expect("its output").read_exact(&mut begin).expect("a beginning");
    assert_eq!(text(&begin), "z?yz?y");
    child
}

#[test]
fn run_ends_with_its_reader() {
    let mut child = endless(&model(&folder("reader")));
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("its end");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
#[cfg(target_os = "linux")]
fn full_outputs_are_said_or_borne() {
    let model = model(&folder("full"));
    let full = || std::fs::File::create("/dev/full").expect("a device that is always full");
    for command in [&["run"][..], &["info"], &["tokenize"]] {
        let mut command =
            if command == ["run"] { on(&model, command, &["a", "-n", "3"]) } else { mlxn(Path::new("."), command) };
        if command.get_args().count() == 1 {
            command.arg(&model);
        }
        command.stdin(Stdio::piped()).stdout(full()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("mlxn starts");
        let _ = child.stdin.take().expect("its input").write_all(b"abc");
        let output = child.wait_with_output().expect("its output");
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(text(&output.stderr).starts_with("error: cannot write standard output: No space"), "{command:?}");
    }
    for log in ["", "kernels"] {
        let mut command = on(&model, &["run"], &["a", "-n", "3", "--temperature", "0"]);
        let output = command.env("MLX_NATIVE_LOG", log).stderr(full()).output().expect("mlxn");
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "bcd\n"));
    }
    let output = on(&model, &["run"], &["a", "--temperature", "-1"]).stderr(full()).output().expect("mlxn");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
#[cfg(target_os = "linux")]
fn paths_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let folder = folder("bytes");
    let path = folder.join(std::ffi::OsStr::from_bytes(b"\xff.gguf"));
    std::fs::rename(model(&folder), &path).expect("renamed");
    assert_eq!(stdout_of(&mut on(&path, &["run"], &["a", "-n", "3", "--temperature", "0"])), "bcd\n");
    std::fs::remove_file(&path).expect("removed");
    assert!(error_of(&mut on(&path, &["run"], &["a"])).contains("no such file"));
}

#[test]
#[cfg(unix)]
fn run_ends_with_ctrl_c_and_when_told_to_terminate() {
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let child = endless(&model(&folder(&format!("interrupt-{signal}"))));
        send(signal, &child);
        let output = child.wait_with_output().expect("its end");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(status), "\n"));
    }
}

#[cfg(unix)]
fn send(signal: &str, child: &std::process::Child) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
}

#[test]
#[cfg(unix)]
fn chat_outlives_ctrl_c_but_not_the_signal_to_terminate() {
    let model = model(&folder("chat-interrupt"));
    let mut command = on(&model, &["chat"], &["-n", "1000000", "--ctx", "1000000", "--temperature", "0", "--quiet"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mlxn");
    let mut questions = child.stdin.take().expect("its input");
    let mut answers = child.stdout.take().expect("its output");
    let mut read = |until: char| {
        let mut byte = [0];
        while byte[0] != until as u8 {
            answers.read_exact(&mut byte).expect("more of an answer");
        }
    };
    for signal in ["INT", "TERM"] {
        questions.write_all(b"y\n").expect("a question");
        read('?');
        send(signal, &child);
        read('\n');
    }
    assert_eq!(child.wait().expect("its end").code(), Some(143));
}

#[test]
fn chat_goes_on_with_the_conversation() {
    let model = model(&folder("chat"));
    let options = ["-n", "3", "--temperature", "0", "--quiet"];
    let output = with_input(on(&model, &["chat"], &options), "a\nm\n/reset\nq\n/quit\nz\n");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("bcd\nnop\nrst\n", ""));

    // Eight positions: the third question finds room after the first exchange was forgotten.
    let output = with_input(on(&model, &["chat"], &[&options[..], &["--ctx", "8"]].concat()), "a\nm\nq\n");
    assert_eq!(text(&output.stdout), "bcd\nnop\nrst\n");
    assert!(text(&output.stderr).contains("forgotten"), "{}", text(&output.stderr));

    // A line that is no text is refused, and the conversation goes on.
    let mut child = on(&model, &["chat"], &options);
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().expect("mlxn starts");
    child.stdin.take().expect("its input").write_all(b"\xff\na\n").expect("written");
    let output = child.wait_with_output().expect("its output");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("bcd\n", "error: this line is not UTF-8\n"));

    // So is a question that can never fit.
    let input = format!("{}\na\n", "a".repeat(20));
    let output = with_input(on(&model, &["chat"], &[&options[..], &["--ctx", "8"]].concat()), &input);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "bcd\n");
    assert!(text(&output.stderr).contains("20 tokens do not fit a context of 8"), "{}", text(&output.stderr));
}

#[test]
fn perplexity_is_that_of_the_logits() {
    let folder = folder("perplexity");
    let model = model(&folder);
    let path = folder.join("text.txt");
    std::fs::write(&path, "abcdefghijklmnopqrstuvwx").expect("a text");
    let file = path.to_str().expect("UTF-8");
    let options = [file, "--ctx", "8", "--json", "--activations", "exact"];
    let found: serde_json::Value =
        serde_json::from_str(&stdout_of(&mut on(&model, &["perplexity"], &options))).expect("JSON");
    // The norm makes the embedding's 1 a √32; all other logits are 0.
    let expected = 1.0 + 31.0 * (-32f64.sqrt()).exp();
    let perplexity = found["perplexity"].as_f64().expect("a number");
    assert!((perplexity / expected - 1.0).abs() < 1e-4, "{perplexity}, expected {expected}");
    assert_eq!((&found["tokens"], &found["chunks"]), (&24.into(), &3.into()));
    assert_eq!(found["scored_tokens"], 9, "three in the second half of each piece");

    assert_eq!(run(&mut on(&model, &["perplexity"], &[file, "--chunks", "0"])).status.code(), Some(2));
    std::fs::write(&path, "ab").expect("a text");
    let error = error_of(&mut on(&model, &["perplexity"], &[file]));
    assert!(error.contains("text.txt: the text is too short: expected at least 4 tokens, found 2"), "{error}");
    let absent = folder.join("absent.txt");
    let error = error_of(&mut on(&model, &["perplexity"], &[absent.to_str().expect("UTF-8")]));
    assert!(error.contains("absent.txt"), "{error}");
}

#[test]
fn bench_model_counts_repetitions() {
    let model = model(&folder("bench"));
    let measure = |options: &[&str]| -> serde_json::Value {
        let options = [options, &["--json"]].concat();
        serde_json::from_str(&stdout_of(&mut on(&model, &["bench", "model"], &options))).expect("JSON")
    };
    let found = measure(&["-p", "16", "-n", "4", "-r", "3"]);
    let repetitions = found["repetitions"].as_array().expect("repetitions");
    let mut rates: Vec<f64> =
        repetitions.iter().map(|repetition| repetition["decode_tokens_per_second"].as_f64().expect("a rate")).collect();
    rates.sort_by(f64::total_cmp);
    assert_eq!(found["decode_tokens_per_second"].as_f64(), Some(rates[1]), "the median of three");
    assert!(found["prefill_tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0));
    assert!(found["first_token_seconds"].is_number() && found["read_gb_per_s"].as_f64() > Some(0.0));
    for (share, rate, limit) in [
        ("prefill_share_of_peak", "prefill_gop_per_s", "int8_peak_gop_per_s"),
        ("decode_share_of_read", "decode_gb_per_s", "read_gb_per_s"),
    ] {
        let number = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("{key} in {found}"));
        assert!((number(share) * number(limit) / number(rate) - 1.0).abs() < 1e-9);
    }
    let found = measure(&["-p", "0", "-n", "2", "-r", "1", "--depth", "9", "--isa", "portable"]);
    assert!(found["prefill_tokens_per_second"].is_null() && found["decode_tokens_per_second"].is_number());
    assert!(found["first_token_seconds"].is_null() && found["device"].as_str().is_some_and(|d| d.contains("portable")));
    assert!(error_of(&mut on(&model, &["bench", "model"], &["-p", "0", "-n", "0"])).contains("nothing to measure"));
    let most = usize::MAX.to_string();
    for options in [["-p", &most], ["-d", &most], ["-n", &most], ["-p", "9999999999999"]] {
        let error = error_of(&mut on(&model, &["bench", "model"], &options));
        assert!(error.contains("cannot hold a context of"), "{options:?}: {error}");
    }
}

#[test]
fn bench_ops_measures_every_combination() {
    let cache = folder("ops");
    let shape = ["-m", "1,2", "-n", "64", "-k", "256", "--device", "cpu", "--threads", "1"];
    let options = ["bench", "ops", "--op", "matmul,matmul_id", "--format", "q4_0,Q6_K", "--json"];
    let found = stdout_of(mlxn(&cache, &options).args(shape));
    let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
    let found = found.as_array().expect("an array");
    assert_eq!(found.len(), 2 * 2 * 2);
    for measured in found {
        let number = |key: &str| measured[key].as_f64().unwrap_or_else(|| panic!("{key} in {measured}"));
        let rows = number("m") * if measured["op"] == "matmul_id" { 4.0 } else { 1.0 };
        let flops = 2.0 * rows * 64.0 * 256.0;
        assert!((number("gflop_per_s") * number("seconds") * 1e9 / flops - 1.0).abs() < 1e-9);
        assert!(number("gb_per_s") > 0.0);
    }
    let vector = "attention,rms_norm,gated_activation,rope,softmax,argmax,sample";
    let options = ["bench", "ops", "--op", vector, "--context", "40", "--heads", "4/2", "--head-dim", "8", "--json"];
    let found = stdout_of(mlxn(&cache, &options).args(shape).args(["--isa", "portable"]));
    let found: Vec<serde_json::Value> = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found.len(), 7 * 2);
    for measured in &found {
        assert!(measured["seconds"].as_f64() > Some(0.0) && measured["share_of_read"].as_f64() > Some(0.0));
        assert_eq!(measured["share_of_peak"].is_number(), measured["op"] == "attention", "{measured}");
    }
    assert!(error_of(&mut mlxn(&cache, &["bench", "ops", "--isa", "mmx"])).contains("portable"));
    assert!(error_of(&mut mlxn(&cache, &["bench", "ops", "--format", "Q9_9"])).contains("Q4_0"));
    let most = usize::MAX.to_string();
    for options in [
        &["-n", "99999999", "-k", "99999968"][..],
        &["-n", &most, "-k", "32"],
        &["-n", "32", "-k", "32", "-m", &most],
        &["-n", "32", "-k", "32", "--one-input", "99999999999"],
        &["-k", "32", "--op", "matmul_id", "--experts", &most],
        &["--op", "attention", "--context", &most, "-m", "1"],
        &["--op", "rope", "--head-dim", &most],
        &["--op", "softmax", "-n", &most],
    ] {
        let error = error_of(mlxn(&cache, &["bench", "ops", "--format", "Q4_0"]).args(options));
        assert!(error.contains("no memory") || error.contains("exceed the address space"), "{options:?}: {error}");
    }
    let error = error_of(&mut mlxn(&cache, &["bench", "ops", "--format", "Q4_K", "-k", "100"]));
    assert!(error.contains("256"), "{error}");
}

#[test]
fn selftest_passes() {
    let cache = folder("selftest");
    let found = stdout_of(&mut mlxn(&cache, &["selftest", "--device", "cpu", "--filter", "softmax"]));
    let last = found.lines().last().expect("a last line");
    let passed = last.strip_suffix(" passed, 0 failed").and_then(|count| count.parse::<u32>().ok());
    assert!(passed.is_some_and(|passed| passed > 0), "{last}");
    assert!(error_of(&mut mlxn(&cache, &["selftest", "--filter", "nonsense"])).contains("nonsense"));
    assert!(error_of(&mut mlxn(&cache, &["selftest", "--device", "gpu"])).contains("`gpu`"));
    let parts = ["selftest", "--device", "cpu", "--filter", "softmax", "--shard", "999999/999999"];
    assert!(error_of(&mut mlxn(&cache, &parts)).contains("fewer cases than parts"));
    let record = cache.join("none/record.tsv");
    let mut command = mlxn(&cache, &["selftest", "--device", "cpu", "--record"]);
    let error = error_of(command.arg(&record));
    assert!(error.contains("cannot write") && error.contains("record.tsv"), "{error}");
}
