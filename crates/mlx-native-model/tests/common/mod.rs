//! Where the tests find real models.

use std::path::PathBuf;

/// The model file of this name, such as `smollm2.gguf`: in the directory that `MLX_NATIVE_TEST_MODELS` names, else in the cache directory's
/// `mlx-native/models`, where `mlxn pull` stores it. Says so and gives `None` where it is absent.
pub fn model(file: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("MLX_NATIVE_TEST_MODELS").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        Some(cache?.join("mlx-native/models"))
    })?;
    let path = dir.join(file);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: there is no {}; set MLX_NATIVE_TEST_MODELS to the directory that holds {file}", path.display());
    None
}
