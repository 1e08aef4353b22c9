//! Models split over several files: `name-00001-of-00003.gguf`, `name-00002-of-00003.gguf`, …

use std::path::{Path, PathBuf};

/// Number of this part, from 0 (u16).
pub const SPLIT_NO_KEY: &str = "split.no";
/// Number of parts (u16).
pub const SPLIT_COUNT_KEY: &str = "split.count";
/// Number of tensors of all parts together (i32).
pub const SPLIT_TENSORS_KEY: &str = "split.tensors.count";

/// The file of part `part` (from 0) of `count`: `model` or `model.gguf` becomes `model-00001-of-00003.gguf`.
pub fn split_path(base: impl AsRef<Path>, part: usize, count: usize) -> PathBuf {
    let base = base.as_ref();
    let name = base.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    base.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", part.saturating_add(1)))
}

/// The parts of a split file's name: `model-00002-of-00003.gguf` is `model`, part 1 (from 0), of 3; `None` for other names.
pub fn parse_split_path(path: impl AsRef<Path>) -> Option<(PathBuf, usize, usize)> {
    let path = path.as_ref();
    let number = |text: &str| {
        let digits = text.len() >= 5 && text.bytes().all(|b| b.is_ascii_digit());
        if digits { text.parse::<usize>().ok() } else { None }
    };
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (base, no) = rest.rsplit_once('-')?;
    let (no, count) = (number(no)?, number(count)?);
    (!base.is_empty() && (1..=count).contains(&no)).then(|| (path.with_file_name(base), no - 1, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let path = split_path("dir/a-b.gguf", 1, 12);
        assert_eq!(path, Path::new("dir/a-b-00002-of-00012.gguf"));
        assert_eq!(split_path("dir/a-b", 1, 12), path);
        assert_eq!(parse_split_path(&path), Some((PathBuf::from("dir/a-b"), 1, 12)));
    }

    #[test]
    fn other_names_are_not_parts() {
        for name in [
            "model.gguf",
            "model-00000-of-00003.gguf",
            "model-00004-of-00003.gguf",
            "model-1-of-3.gguf",
            "model-00001-of-00003.bin",
            "-00001-of-00003.gguf",
            "model-0000x-of-00003.gguf",
            "model-00001-of-+0003.gguf",
            "",
        ] {
            assert_eq!(parse_split_path(name), None, "{name}");
        }
    }
}
