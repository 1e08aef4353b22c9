//! The names of a model's tensors in GGUF files and in Hugging Face's layout.
//!
//! This crate uses GGUF's: `blk.3.attn_q.weight`. The other layout has `model.layers.3.self_attn.q_proj.weight`.

/// A layer's parts that the architectures name alike: GGUF, Hugging Face.
const LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The norm between attention and feed-forward layer.
const NORMS: &[(&str, &str)] = &[("ffn_norm", "post_attention_layernorm")];
/// Gemma has norms before and behind both.
const GEMMA_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Experts, stacked by MLX's converter.
const EXPERTS: &[(&str, &str)] = &[
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.switch_mlp.gate_proj"),
    ("ffn_up_exps", "mlp.switch_mlp.up_proj"),
    ("ffn_down_exps", "mlp.switch_mlp.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];
/// Mixtral's.
const MIXTRAL_EXPERTS: &[(&str, &str)] = &[
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_exps", "block_sparse_moe.switch_mlp.gate_proj"),
    ("ffn_up_exps", "block_sparse_moe.switch_mlp.up_proj"),
    ("ffn_down_exps", "block_sparse_moe.switch_mlp.down_proj"),
];

/// Outside the layers.
const MODEL: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const SUFFIXES: [&str; 2] = [".weight", ".bias"];

fn layer_tables(architecture: &str) -> [&'static [(&'static str, &'static str)]; 3] {
    let norms = if architecture == "gemma3" { GEMMA_NORMS } else { NORMS };
    let experts = if architecture == "llama" { MIXTRAL_EXPERTS } else { EXPERTS };
    [LAYER, norms, experts]
}

/// The name of GGUF's tensor `name` in Hugging Face's layout; `None` where that has no such tensor.
pub fn to_mlx(architecture: &str, name: &str) -> Option<String> {
    let (part, suffix) = SUFFIXES.iter().find_map(|suffix| Some((name.strip_suffix(suffix)?, suffix)))?;
    let find = |table: &'static [(&'static str, &'static str)], part: &str| {
        table.iter().find(|(gguf, _)| *gguf == part).map(|(_, mlx)| *mlx)
    };
    match part.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => {
            let part = layer_tables(architecture).into_iter().find_map(|table| find(table, part))?;
            Some(format!("model.layers.{layer}.{part}{suffix}"))
        }
        None => Some(format!("{}{suffix}", find(MODEL, part)?)),
    }
}

/// The other way.
pub fn to_gguf(architecture: &str, name: &str) -> Option<String> {
    let (part, suffix) = SUFFIXES.iter().find_map(|suffix| Some((name.strip_suffix(suffix)?, suffix)))?;
    let find = |table: &'static [(&'static str, &'static str)], part: &str| {
        table.iter().find(|(_, mlx)| *mlx == part).map(|(gguf, _)| *gguf)
    };
    match part.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) if layer.bytes().all(|byte| byte.is_ascii_digit()) => {
            let part = layer_tables(architecture).into_iter().find_map(|table| find(table, part))?;
            Some(format!("blk.{layer}.{part}{suffix}"))
        }
        Some(_) => None,
        None => Some(format!("{}{suffix}", find(MODEL, part)?)),
    }
}

/// The matrix of one expert before MLX's converter has stacked them, for the stack `stacked` in Hugging Face's layout.
pub fn single_expert(stacked: &str, expert: usize) -> Option<String> {
    let (before, part) = stacked.split_once(".switch_mlp.")?;
    let (part, suffix) = part.split_once('.')?;
    let part = match (before.ends_with("block_sparse_moe"), part) {
        (true, "gate_proj") => "w1",
        (true, "down_proj") => "w2",
        (true, "up_proj") => "w3",
        (_, part) => part,
    };
    Some(format!("{before}.experts.{expert}.{part}.{suffix}"))
}

/// The stack that a single expert's matrix belongs to, and the expert: the inverse of [`single_expert`].
pub fn stack_of(name: &str) -> Option<(String, usize)> {
    let (before, rest) = name.split_once(".experts.")?;
    let (expert, part) = rest.split_once('.')?;
    let (part, suffix) = part.split_once('.')?;
    let part = match part {
        "w1" => "gate_proj",
        "w2" => "down_proj",
        "w3" => "up_proj",
        part => part,
    };
    Some((format!("{before}.switch_mlp.{part}.{suffix}"), expert.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (architecture, gguf, mlx) in [
            ("llama", "blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight"),
            ("llama", "blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
            ("gemma3", "blk.0.ffn_norm.weight", "model.layers.0.pre_feedforward_layernorm.weight"),
            ("gemma3", "blk.11.post_ffw_norm.weight", "model.layers.11.post_feedforward_layernorm.weight"),
            ("qwen2", "blk.1.attn_k.bias", "model.layers.1.self_attn.k_proj.bias"),
            ("llama", "blk.1.ffn_gate_inp.weight", "model.layers.1.block_sparse_moe.gate.weight"),
            ("qwen3moe", "blk.1.ffn_up_exps.weight", "model.layers.1.mlp.switch_mlp.up_proj.weight"),
            ("qwen2moe", "blk.1.ffn_gate_inp_shexp.weight", "model.layers.1.mlp.shared_expert_gate.weight"),
            ("llama", "token_embd.weight", "model.embed_tokens.weight"),
            ("llama", "output.weight", "lm_head.weight"),
        ] {
            assert_eq!(to_mlx(architecture, gguf).as_deref(), Some(mlx));
            assert_eq!(to_gguf(architecture, mlx).as_deref(), Some(gguf));
        }
        assert_eq!(to_mlx("llama", "rope_freqs.weight"), None);
        assert_eq!(to_gguf("llama", "vision_tower.blocks.0.weight"), None);
    }

    #[test]
    fn single_experts_belong_to_stacks() {
        for (stack, expert) in [
            (
                "model.layers.2.block_sparse_moe.switch_mlp.up_proj.weight",
                "model.layers.2.block_sparse_moe.experts.7.w3.weight",
            ),
            ("model.layers.2.mlp.switch_mlp.up_proj.weight", "model.layers.2.mlp.experts.7.up_proj.weight"),
        ] {
            assert_eq!(single_expert(stack, 7).as_deref(), Some(expert));
            assert_eq!(stack_of(expert), Some((stack.to_owned(), 7)));
        }
    }
}
