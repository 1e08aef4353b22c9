//! What a model computes, for comparison with other programs: `scripts/oracle/mlx_directories.py` runs it.
//!
//! ```text
//! logits MODEL IDS OUT   logits after each token of the file IDS, f32 [tokens, vocabulary], to the file OUT
//! greedy MODEL IDS N     N greedy tokens behind them, one a line: id, and the distance to the runner-up's logit
//! ```

use mlx_native::{Activations, DType, DeviceOptions, MlxDevice};
use mlx_native_model::{Model, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mode, model, ids, last] = args.as_slice() else { return Err("usage: logits|greedy MODEL IDS OUT|N".into()) };
    let ids = std::fs::read_to_string(ids)?;
    let ids: Vec<u32> = ids.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let device = MlxDevice::cpu_with(DeviceOptions { activations: Activations::Exact, ..Default::default() })?;
    let model = Model::open(model, &device)?;
    let mut session = model.session(SessionOptions { kv_dtype: DType::F32, ..Default::default() })?;
    if mode == "logits" {
        let logits = session.forward_all(&ids)?;
        std::fs::write(last, logits.iter().flat_map(|logit| logit.to_le_bytes()).collect::<Vec<u8>>())?;
        return Ok(());
    }
    let mut next = ids;
    for _ in 0..last.parse()? {
        let logits = session.forward(&next)?;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.select_nth_unstable_by(1, |&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        println!("{} {}", order[0], logits[order[0]] - logits[order[1]]);
        next = vec![order[0] as u32];
    }
    Ok(())
}
