//! Generates text with a GGUF model: `cargo run --release -p mlx-native-model --example generate -- model.gguf "Once upon a time"`.

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;

use mlx_native::io::gguf::GgufFile;
use mlx_native::{Activations, DeviceOptions, MlxDevice};
use mlx_native_model::sampler::SamplerConfig;
use mlx_native_model::tokenizer::{EncodeOptions, Tokenizer};
use mlx_native_model::{GenerationOptions, Model, SessionOptions, generate};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(prompt)) = (args.next(), args.next()) else {
        return Err("usage: generate MODEL.gguf PROMPT".into());
    };
    let file = GgufFile::open(path)?;
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let device = MlxDevice::with_options(DeviceOptions { activations: Activations::Q8, ..Default::default() })?;
    let model = Model::from_gguf(&file, &device)?;
    let mut session = model.session(SessionOptions::default())?;
    let ids = tokenizer.encode(&prompt, EncodeOptions::default())?;
    let options = GenerationOptions { max_tokens: 100, sampler: SamplerConfig::greedy(), ..Default::default() };
    let done = generate(&mut session, &tokenizer, &ids, &options, |text| {
        print!("{text}");
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    println!();
    eprintln!("{}: {:.1} tokens/s", device.name(), done.decode_tokens_per_second().unwrap_or(f64::NAN));
    Ok(())
}
