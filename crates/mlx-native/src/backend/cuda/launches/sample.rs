//! Drawing a token: penalty, ranking, draw.

use super::args::{SampleArgs, SampleLive};
use super::{Bound, Launch, Library, PipelineKey, Plan};
use crate::Result;
use crate::backend::gpu::{Fault, u32_of};
use crate::ops::Sample;

/// Logits that a block sorts, `CHUNK` in sample.cu, by half as many threads.
const CHUNK: usize = 2048;
/// Tokens that are drawn from by a thread each: `TOGETHER` there.
const TOGETHER: usize = 1024;
/// Logits of which a block finds the best, and its threads: `PART` and `FRONT_THREADS` there.
const PART: usize = 4096;
const FRONT_THREADS: u32 = 256;

pub(super) fn sample(op: &Sample) -> Result<Plan> {
    let params = &op.params;
    let args = SampleArgs {
        dim: u32_of("dim", op.dim)?,
        top_k: u32_of("top_k", params.top_k.min(op.dim))?,
        temperature: params.temperature,
        top_p: params.top_p,
        min_p: params.min_p,
        penalty: params.repetition_penalty,
    };
    let history = op.history.as_ref().filter(|_| params.repetition_penalty != 1.0);
    let history_len = history.map_or(0, |history| history.len / 4);
    let live = SampleLive { uniform: params.uniform(), history_len: u32_of("history", history_len)? };
    let fault = Fault { ids: op.logits.clone(), limit: None, words: ["sample", "logit", ""] };
    let mut plan = Plan { fault: Some(fault), ..Plan::default() };
    let chunks = op.dim.div_ceil(CHUNK);
    let best = plan.scratch(8);
    let fronts = plan.scratch(op.dim.div_ceil(PART) * 16);
    let penalised = history.map(|history| (history, plan.scratch(op.dim * 4), plan.scratch(op.dim.div_ceil(32) * 4)));
    let ranking = (params.temperature > 0.0).then(|| {
        let [keys, sums] = [(); 2].map(|()| plan.scratch(chunks * CHUNK * 8));
        // Sums of the weights that tokens are cut off by, where these are others than those of the draw; few tokens are added up as they are drawn.
        let few = params.top_k > 0 && params.top_k < op.dim && params.top_k <= TOGETHER;
        let others = params.top_p < 1.0 && params.temperature != 1.0 && !few;
        let cuts = if others { plan.scratch(chunks * CHUNK * 8) } else { sums.clone() };
        [keys, sums, cuts]
    });
    let (args, output) = (Bound::value(&args), Bound::view(&op.output));
    let mut launch = |function: &str, bindings: Vec<Bound>, blocks: usize, threads: u32| -> Result<()> {
        let grid = [u32_of("blocks", blocks)?, 1, 1];
        plan.launches.push(Launch::new(PipelineKey::new(Library::Sample, function), bindings, grid, threads));
        Ok(())
    };
    let dim = Bound::value(&u32_of("dim", op.dim)?);
    let mut logits = Bound::view(&op.logits);
    if let Some((history, copy, marks)) = penalised {
        let copied = vec![logits, copy.clone(), marks.clone(), dim.clone()];
        launch("sample_copy<>", copied, op.dim.div_ceil(256), 256)?;
        let bindings = vec![copy.clone(), marks, Bound::view(history), args.clone(), Bound::live(&live)];
        // The grid of a longer history serves a shorter one too: a captured list lasts for many tokens.
        launch("sample_penalise<>", bindings, history_len.next_power_of_two().div_ceil(256), 256)?;
        logits = copy;
    }
    launch("sample_fronts<>", vec![logits.clone(), fronts.clone(), dim], op.dim.div_ceil(PART), FRONT_THREADS)?;
    let found = vec![fronts, best.clone(), output.clone(), args.clone(), Bound::Fault];
    launch("sample_best<>", found, 1, FRONT_THREADS)?;
    if let Some([keys, sums, cuts]) = ranking {
        let sorted = vec![logits, best.clone(), keys.clone(), sums.clone(), cuts.clone(), args.clone()];
        launch("sample_sort<>", sorted, chunks, (CHUNK / 2) as u32)?;
        let chunk_count = Bound::value(&u32_of("chunks", chunks)?);
        launch("sample_draw<>", vec![best, keys, sums, cuts, output, chunk_count, args, Bound::live(&live)], 1, 1024)?;
    }
    Ok(plan)
}
