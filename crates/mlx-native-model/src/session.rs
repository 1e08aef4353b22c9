//! One context: its cache, and the forward pass over new tokens.

use mlx_native::{
    AttentionParams, Binary, CommandEncoder, DType, EmbeddingParams, ExpertGateParams, GgmlType, MlxBuffer,
    RmsNormParams, RopeParams, SampleParams, Weight,
};

use crate::activations::{Activations, GatedActivations, Inputs};
use crate::config::{Experts, QkNorm};
use crate::kv_cache::{KvCache, LayerCache};
use crate::weights::{ExpertWeights, FeedForward, Gated, LayerWeights, Weights};
use crate::{Model, ModelConfig, ModelError, Result, SessionOptions};

/// Tokens whose logits all exist at once.
const LOGITS: usize = 512;

/// Tokens in context, and what computing further ones needs.
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m Model,
    options: SessionOptions,
    cache: KvCache,
    position: usize,
    /// For one token, which is every step of generation.
    one: Activations,
    /// Steps at even and odd positions begin with these: while the device runs one, the next is recorded, which begins with what that one chooses.
    steps: [Inputs; 2],
    /// For the last other number of tokens, which a prompt's batches share.
    many: Option<(Inputs, Activations)>,
    /// `[vocabulary]`, after [`Session::forward`]; absent only while that runs.
    logits: Option<MlxBuffer>,
}

impl<'m> Session<'m> {
    pub(crate) fn new(model: &'m Model, options: SessionOptions) -> Result<Session<'m>> {
        let context = model.context(&options);
        if context == 0 || !matches!(options.kv_dtype, DType::F16 | DType::F32) {
            return Err(ModelError::Config(format!("session: {options:?} is out of range")));
        }
        let vocabulary = model.vocabulary();
        let batch = match options.batch {
            0 => model.device.pace().batch,
            batch => batch,
        };
        Ok(Session {
            model,
            options: SessionOptions { batch, ..options },
            cache: KvCache::new(&model.device, &model.config, context, options.kv_dtype)?,
            position: 0,
            one: Activations::new(model, 1)?,
            steps: [Inputs::new(model, 1)?, Inputs::new(model, 1)?],
            many: None,
            logits: Some(model.device.alloc_buffer(vocabulary * 4, DType::F32, vec![1, vocabulary])?),
        })
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Tokens in context.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Positions that fit.
    pub fn context(&self) -> usize {
        self.cache.shape.capacity
    }

    /// Bytes of the key-value cache.
    pub fn cache_bytes(&self) -> usize {
        self.cache.byte_len()
    }

    /// Bytes of the cache that attention reads for a token at `position`: of layers with a window no more than that.
    pub fn cache_bytes_at(&self, position: usize) -> usize {
        let config = &self.model.config;
        let seen = position + 1;
        let positions = |layer: usize| match &config.sliding {
            Some(sliding) if sliding.covers(layer) => seen.min(sliding.window),
            _ => seen,
        };
        let per_position = self.cache_bytes() / self.context() / config.n_layers;
        (0..config.n_layers).map(|layer| positions(layer) * per_position).sum()
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.position = self.position.min(len);
    }

    /// Appends tokens to the context and returns the logits of what follows the last one, `[vocabulary]`.
    ///
    /// # Errors
    ///
    /// No tokens, an unknown one, more than fit the context, or an error of the device; the context is then as before.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.check(tokens)?;
        let start = self.position;
        let batch = self.options.batch;
        let split = (tokens.len() - 1) / batch * batch;
        let (before, last) = tokens.split_at(split);
        let vocabulary = self.model.vocabulary();
        let mut logits = match self.logits.take() {
            Some(logits) => logits,
            None => self.model.device.alloc_buffer(vocabulary * 4, DType::F32, vec![1, vocabulary])?,
        };
        let result = before.chunks(batch).try_for_each(|tokens| self.run(tokens, None));
        let result = result.and_then(|()| self.run(last, Some((&mut logits, 1))));
        let logits = self.logits.insert(logits);
        if let Err(error) = result {
            self.position = start;
            return Err(error);
        }
        Ok(logits.as_slice()?)
    }

    /// Appends tokens and returns the logits after each of them, `[tokens, vocabulary]`.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.check(tokens)?;
        let start = self.position;
        let vocabulary = self.model.vocabulary();
        let mut all = Vec::with_capacity(tokens.len() * vocabulary);
        for tokens in tokens.chunks(self.options.batch.min(LOGITS)) {
            let rows = tokens.len();
            let shape = vec![rows, vocabulary];
            let result =
                self.model.device.alloc_buffer(rows * vocabulary * 4, DType::F32, shape).map_err(ModelError::from);
            let result = result.and_then(|mut logits| {
                self.run(tokens, Some((&mut logits, rows)))?;
                all.extend_from_slice(logits.as_slice()?);
                Ok(())
            });
            if let Err(error) = result {
                self.position = start;
                return Err(error);
            }
        }
        Ok(all)
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let (vocabulary, context) = (self.model.vocabulary(), self.context());
        if tokens.is_empty() {
            return Err(ModelError::EmptyPrompt);
        }
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ModelError::UnknownToken { id, vocabulary });
        }
        let total = self.position + tokens.len();
        if total > context {
            return Err(ModelError::ContextFull { tokens: total, context });
        }
        Ok(())
    }

    /// Computes one batch; `logits` takes those after the last rows, as many as it says.
    fn run(&mut self, tokens: &[u32], logits: Option<(&mut MlxBuffer, usize)>) -> Result<()> {
        let n_tokens = tokens.len();
        let (inputs, act) = match n_tokens {
            1 => (&mut self.steps[0], &mut self.one),
            _ => {
                if self.many.as_ref().is_none_or(|(_, many)| many.n_tokens != n_tokens) {
                    // The old ones are freed first, so that two never exist at once.
                    self.many = None;
                    self.many = Some((Inputs::new(self.model, n_tokens)?, Activations::new(self.model, n_tokens)?));
                }
                match &mut self.many {
                    Some((inputs, many)) => (inputs, many),
                    None => return Err(ModelError::Config("session: no activations".into())),
                }
            }
        };
        inputs.ids.as_mut_slice::<u32>()?.copy_from_slice(tokens);
        inputs.set_positions(self.position)?;
        let mut encoder = self.model.device.command_encoder()?;
        let mut pass = Pass {
            config: &self.model.config,
            frequency_factors: self.model.weights.frequency_factors.as_ref(),
            cache_shape: self.cache.shape,
            start: self.position,
            encoder: &mut encoder,
            commits: Commits::Doubling,
            inputs,
            act,
        };
        pass.layers(&self.model.weights, &mut self.cache)?;
        if let Some((logits, rows)) = logits {
            pass.logits(&self.model.weights.output, rows, logits)?;
        }
        encoder.commit_and_wait()?;
        self.position += n_tokens;
        Ok(())
    }

    /// Queues a step that chooses a token, behind `queued` other ones. The first begins with `last`, each further one with what the one
    /// before it chooses. The context grows as the steps are taken, not here.
    pub(crate) fn queue_step(
        &mut self,
        encoder: &mut CommandEncoder,
        queued: usize,
        last: u32,
        params: &SampleParams,
    ) -> Result<()> {
        let vocabulary = self.model.vocabulary();
        let start = self.position + queued;
        let [even, odd] = &mut self.steps;
        let (inputs, next) = if start.is_multiple_of(2) { (even, odd) } else { (odd, even) };
        if queued == 0 {
            inputs.ids.as_mut_slice::<u32>()?.fill(last);
        }
        inputs.set_positions(start)?;
        let logits = match &mut self.logits {
            Some(logits) => logits,
            none => none.insert(self.model.device.alloc_buffer(vocabulary * 4, DType::F32, vec![1, vocabulary])?),
        };
        let mut pass = Pass {
            config: &self.model.config,
            frequency_factors: self.model.weights.frequency_factors.as_ref(),
            cache_shape: self.cache.shape,
            start,
            encoder,
            commits: Commits::First,
            inputs,
            act: &mut self.one,
        };
        pass.layers(&self.model.weights, &mut self.cache)?;
        pass.logits(&self.model.weights.output, 1, logits)?;
        encoder.sample(logits, None, &mut next.ids, params)?;
        // The choice refuses NaN. What else the host refuses shows in the logit of what was chosen.
        let column = Weight::ggml(GgmlType::F32, vocabulary, 1, logits.clone())?;
        encoder.embedding(&column, &next.ids, &mut next.logit, &EmbeddingParams { n_tokens: 1, scale: 1.0 })?;
        encoder.commit();
        Ok(())
    }

    /// What the first of the queued steps has chosen, and its logit; the caller has waited for it, and for the step after to have read the token.
    /// The context is then longer by the token that the step began with.
    pub(crate) fn take_step(&mut self) -> Result<(u32, f32)> {
        let chosen = &self.steps[(self.position + 1) % 2];
        let taken = (chosen.ids.as_slice::<u32>()?[0], chosen.logit.as_slice::<f32>()?[0]);
        // A step that is done again must find the context as it was.
        self.position += usize::from(taken.1.is_finite());
        Ok(taken)
    }
}

/// Where a pass is cut into lists.
#[derive(Clone, Copy)]
enum Commits {
    /// The device waits for the pass: it begins with some layers while as many again are recorded, which takes less time than they do.
    Doubling,
    /// The device is still busy with the pass before: one cut, after which nothing reads the pass's tokens any more.
    First,
}

impl Commits {
    /// Whether the list ends with the attention of layer `index`.
    fn after(self, index: usize) -> bool {
        match self {
            Commits::Doubling => index > 0 && (index + 1).is_power_of_two(),
            Commits::First => index == 1,
        }
    }
}

/// One forward pass while it is recorded.
struct Pass<'a> {
    config: &'a ModelConfig,
    frequency_factors: Option<&'a MlxBuffer>,
    cache_shape: mlx_native::KvCacheParams,
    /// Position of the first token.
    start: usize,
    encoder: &'a mut CommandEncoder,
    commits: Commits,
    inputs: &'a Inputs,
    act: &'a mut Activations,
}

impl Pass<'_> {
    fn norm_params(&self, rows: usize, dim: usize) -> RmsNormParams {
        RmsNormParams { rows, dim, eps: self.config.norm_eps }
    }

    fn hidden_norm(&self) -> RmsNormParams {
        self.norm_params(self.act.n_tokens, self.config.hidden)
    }

    /// From the tokens to the last layer's output, normed.
    fn layers(&mut self, weights: &Weights, cache: &mut KvCache) -> Result<()> {
        self.embed(&weights.embedding)?;
        for (i, (layer, cache)) in weights.layers.iter().zip(&mut cache.layers).enumerate() {
            self.attention(layer, cache, i)?;
            let next_norm = weights.layers.get(i + 1).map_or(&weights.output_norm, |next| &next.attn_norm);
            self.feed_forward(layer, i, next_norm)?;
        }
        Ok(())
    }

    fn embed(&mut self, embedding: &Weight) -> Result<()> {
        let params = EmbeddingParams { n_tokens: self.act.n_tokens, scale: self.config.embedding_scale };
        Ok(self.encoder.embedding(embedding, &self.inputs.ids, &mut self.act.hidden_out, &params)?)
    }

    /// The first layer's input is not normed by the layer before it, so layer 0 does it here.
    fn attention(&mut self, layer: &LayerWeights, cache: &mut LayerCache, index: usize) -> Result<()> {
        let config = self.config;
        let params = self.hidden_norm();
        let act = &mut *self.act;
        let encoder = &mut *self.encoder;
        if index == 0 {
            encoder.rms_norm(&act.hidden, &layer.attn_norm, &mut act.normed, &params)?;
        }
        encoder.matmul(&act.normed, &layer.q, &mut act.q_out)?;
        encoder.matmul(&act.normed, &layer.k, &mut act.k_out)?;
        encoder.matmul(&act.normed, &layer.v, &mut act.v_out)?;
        for (bias, value, value_out) in [
            (&layer.q_bias, &act.q, &mut act.q_out),
            (&layer.k_bias, &act.k, &mut act.k_out),
            (&layer.v_bias, &act.v, &mut act.v_out),
        ] {
            if let Some(bias) = bias {
                encoder.binary(Binary::Add, value, bias, value_out)?;
            }
        }
        let sliding = config.sliding.filter(|sliding| sliding.covers(index));
        let rope = sliding.map_or(config.rope, |sliding| sliding.rope);
        for (norm, value, value_out, n_heads) in [
            (&layer.q_norm, &act.q, &mut act.q_out, config.n_heads),
            (&layer.k_norm, &act.k, &mut act.k_out, config.n_kv_heads),
        ] {
            if let Some(norm) = norm {
                let (rows, dim) = match config.qk_norm {
                    QkNorm::Tokens => (act.n_tokens, n_heads * config.head_dim),
                    QkNorm::None | QkNorm::Heads => (act.n_tokens * n_heads, config.head_dim),
                };
                let params = RmsNormParams { rows, dim, eps: config.norm_eps };
                encoder.rms_norm(value, norm, value_out, &params)?;
            }
        }
        for (value, value_out, n_heads) in
            [(&act.q, &mut act.q_out, config.n_heads), (&act.k, &mut act.k_out, config.n_kv_heads)]
        {
            let params = RopeParams {
                n_tokens: act.n_tokens,
                n_heads,
                head_dim: config.head_dim,
                n_rot: config.n_rot,
                base: rope.base,
                frequency_scale: rope.frequency_scale,
                style: config.rope_style,
            };
            encoder.rope(value, &self.inputs.positions, self.frequency_factors, value_out, &params)?;
        }
        encoder.store_kv(&act.k, &mut cache.k, &self.cache_shape, self.start, act.n_tokens)?;
        encoder.store_kv(&act.v, &mut cache.v, &self.cache_shape, self.start, act.n_tokens)?;
        let attention = AttentionParams {
            cache: self.cache_shape,
            n_heads: config.n_heads,
            n_tokens: act.n_tokens,
            start: self.start,
            scale: config.attention_scale,
            window: sliding.map(|sliding| sliding.window),
            soft_cap: None,
        };
        encoder.attention(&act.q, &cache.k, &cache.v, &mut act.attended, &attention)?;
        if self.commits.after(index) && encoder.device().pace().runs_ahead {
            encoder.commit();
        }
        encoder.matmul(&act.attended, &layer.attn_output, &mut act.delta_out)?;
        if let Some(bias) = &layer.attn_output_bias {
            encoder.binary(Binary::Add, &act.delta, bias, &mut act.delta_out)?;
        }
        if let Some(norm) = &layer.post_attn_norm {
            encoder.rms_norm(&act.delta, norm, &mut act.delta_out, &params)?;
        }
        let residual = (&act.delta, &mut act.hidden_out);
        Ok(encoder.add_rms_norm(&act.hidden, residual, &layer.ffn_norm, &mut act.normed, &params)?)
    }

    /// Ends with the norm that follows the layer: the next layer's, or the output's.
    fn feed_forward(&mut self, layer: &LayerWeights, index: usize, next_norm: &MlxBuffer) -> Result<()> {
        let params = self.hidden_norm();
        match (&layer.feed_forward, self.config.experts_of(index)) {
            (FeedForward::Experts(weights), Some(experts)) => self.experts(weights, experts)?,
            (FeedForward::Dense(weights), _) => {
                let Activations { normed, delta_out, dense: Some(gated), .. } = &mut *self.act else {
                    return Err(absent());
                };
                dense(self.encoder, self.config, weights, normed, gated, delta_out)?;
            }
            (FeedForward::Experts(_), None) => return Err(absent()),
        }
        let act = &mut *self.act;
        let encoder = &mut *self.encoder;
        if let Some(norm) = &layer.post_ffn_norm {
            encoder.rms_norm(&act.delta, norm, &mut act.delta_out, &params)?;
        }
        let residual = (&act.delta, &mut act.hidden_out);
        Ok(encoder.add_rms_norm(&act.hidden, residual, next_norm, &mut act.normed, &params)?)
    }

    /// A mixture of experts: the router chooses, the chosen ones compute, and their weighted sum is the layer's.
    fn experts(&mut self, weights: &ExpertWeights, experts: &Experts) -> Result<()> {
        let config = self.config;
        let encoder = &mut *self.encoder;
        let Activations { n_tokens, normed, delta, delta_out, experts: Some(act), .. } = &mut *self.act else {
            return Err(absent());
        };
        let n_tokens = *n_tokens;
        let &Experts { n_experts, top_k, normalize, .. } = experts;
        encoder.matmul(normed, &weights.router, &mut act.router)?;
        let gate = ExpertGateParams { n_tokens, n_experts, top_k, normalize };
        encoder.expert_gate(&act.router, &mut act.ids, &mut act.shares, &gate)?;
        encoder.matmul_id(normed, &weights.experts.gate, &act.ids, &mut act.gated.gate_out, None)?;
        encoder.matmul_id(normed, &weights.experts.up, &act.ids, &mut act.gated.up, None)?;
        let GatedActivations { gate, gate_out, up } = &mut act.gated;
        encoder.gated_activation(config.activation, gate, up, gate_out)?;
        // Every chosen expert's row is a row of its own here.
        encoder.matmul_id(gate, &weights.experts.down, &act.ids, &mut act.outputs, None)?;
        encoder.expert_sum(&act.outputs, &act.shares, delta_out, n_tokens, top_k, config.hidden)?;
        let (Some(weights), Some(shared)) = (&weights.shared, &mut act.shared) else { return Ok(()) };
        dense(encoder, config, &weights.expert, normed, &mut shared.gated, &mut shared.output)?;
        encoder.matmul(normed, &weights.gate, &mut shared.pair_out)?;
        encoder.softmax(&shared.pair, &mut shared.pair_out, 2, 1.0)?;
        encoder.matmul(&shared.pair, &weights.first, &mut shared.share)?;
        encoder.expert_sum(&shared.output, &shared.share, &mut shared.weighted, n_tokens, 1, config.hidden)?;
        Ok(encoder.binary(Binary::Add, delta, &shared.weighted, delta_out)?)
    }

    /// The logits after the last `rows` tokens; the last layer has left its output normed.
    fn logits(&mut self, output: &Weight, rows: usize, logits: &mut MlxBuffer) -> Result<()> {
        let hidden = self.config.hidden;
        let skip = (self.act.n_tokens - rows) * hidden * DType::F32.size_of();
        let last = self.act.normed.try_slice_view(skip as u64, rows * hidden)?;
        Ok(self.encoder.matmul(&last, output, logits)?)
    }
}

/// A gated feed-forward layer.
fn dense(
    encoder: &mut CommandEncoder,
    config: &ModelConfig,
    weights: &Gated,
    input: &MlxBuffer,
    act: &mut GatedActivations,
    output: &mut MlxBuffer,
) -> Result<()> {
    encoder.matmul(input, &weights.gate, &mut act.gate_out)?;
    encoder.matmul(input, &weights.up, &mut act.up)?;
    encoder.gated_activation(config.activation, &act.gate, &act.up, &mut act.gate_out)?;
    Ok(encoder.matmul(&act.gate, &weights.down, output)?)
}

/// Weights and activations are both made from the configuration, so that each has what the other needs.
fn absent() -> ModelError {
    ModelError::Config("session: no activations for this kind of layer".into())
}
