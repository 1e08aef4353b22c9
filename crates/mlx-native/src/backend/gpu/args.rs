//! Argument structs: each exists once, here, and is rendered into the text of the kernels that read it.

use std::fmt::Write;

/// A type of an argument, and its name in kernels: Metal's, which the prelude of CUDA's declares too.
pub(crate) trait ArgType {
    const NAME: &'static str;
}

macro_rules! arg_types {
    ($($ty:ty: $name:literal),*) => { $(impl ArgType for $ty { const NAME: &'static str = $name; })* };
}
arg_types!(u32: "uint", u64: "ulong", f32: "float");

/// Struct fields as rendered: type and name.
pub(crate) type Fields = &'static [(&'static str, &'static str)];

/// The text of a struct without padding, its size asserted.
pub(crate) fn render_struct(name: &str, fields: Fields, bytes: usize) -> String {
    let mut text = format!("struct {name} {{\n");
    for (ty, field) in fields {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {ty} {field};");
    }
    let _ = writeln!(text, "}};\nstatic_assert(sizeof({name}) == {bytes}, \"{name} is {bytes} bytes\");");
    text
}

/// A struct of kernel arguments. `Pod` refuses padding, so both languages agree on every offset.
macro_rules! args {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub $field: $ty,)*
        }

        impl $name {
            /// The struct as source text.
            #[allow(dead_code)] // Not every backend's kernels take every struct.
            pub(crate) fn render() -> String {
                render_struct(
                    stringify!($name),
                    &[$((<$ty as ArgType>::NAME, stringify!($field)),)*],
                    size_of::<$name>(),
                )
            }
        }
    };
}

#[cfg(feature = "cuda")]
pub(crate) use args;

args! {
    /// Elementwise operations.
    ElementArgs {
        /// Elements.
        len: u64,
        /// Elements of the second operand, which repeats.
        b_len: u64,
        /// The soft-cap.
        cap: f32,
        pad: u32,
    }
}

args! {
    /// Operations on rows: norms, softmax, argmax.
    RowArgs {
        /// Values of a row.
        dim: u64,
        /// Added to a mean square.
        eps: f32,
        /// Factor on every value.
        scale: f32,
    }
}

args! {
    /// Rotary embedding.
    RopeArgs {
        n_heads: u32,
        head_dim: u32,
        n_rot: u32,
        /// 0 when positions are signed.
        positions_unsigned: u32,
        has_factors: u32,
        interleaved: u32,
        /// Pairs of all heads of all tokens, plus the values that do not turn.
        len: u64,
    }
}

args! {
    /// Products with weights, and rows of weights.
    MatmulArgs {
        /// Bytes from one input row to the next.
        x_row: u64,
        /// Bytes from one input batch to the next.
        x_batch: u64,
        /// Bytes of a weight row.
        w_row: u64,
        /// Bytes from one matrix to the next: blocks or packed values, scales, biases.
        w_matrix: u64,
        s_matrix: u64,
        b_matrix: u64,
        /// Input rows (ids for rows of a weight), output features, input features.
        m: u32,
        n: u32,
        k: u32,
        /// 0 for rows; else the input is [k / head_dim, m, head_dim].
        head_dim: u32,
        /// Values that share a scale, scales of a row (MLX formats).
        group_size: u32,
        groups: u32,
        /// Products that share a matrix.
        batch_ratio: u32,
        /// Lanes that share a weight row: 4, 8, 16 or 32.
        lanes: u32,
        /// Experts of a token, experts.
        top_k: u32,
        n_experts: u32,
        /// Factor on the rows of a weight.
        scale: f32,
        pad: u32,
    }
}

args! {
    /// Storing into a cache.
    StoreArgs {
        n_kv_heads: u32,
        capacity: u32,
        head_dim: u32,
        start: u32,
        len: u64,
    }
}

args! {
    /// Attention.
    AttentionArgs {
        n_heads: u32,
        n_kv_heads: u32,
        capacity: u32,
        head_dim: u32,
        start: u32,
        /// Positions that a token sees, itself included; the capacity where there is no window.
        window: u32,
        scale: f32,
        /// 0 for none.
        soft_cap: f32,
    }
}

args! {
    /// Attention by simdgroup matrices.
    FlashArgs {
        n_tokens: u32,
        n_heads: u32,
        n_kv_heads: u32,
        capacity: u32,
        head_dim: u32,
        start: u32,
        /// Positions that a token sees, itself included; the capacity where there is no window.
        window: u32,
        /// Parts that the positions are dealt into, a threadgroup each.
        parts: u32,
        scale: f32,
        /// 0 for none.
        soft_cap: f32,
    }
}

args! {
    /// Drawing a token.
    SampleArgs {
        /// In units of 2^-32, at least 1.
        top_p: u64,
        /// Logits, ids in the history.
        dim: u32,
        history: u32,
        /// 0 keeps all.
        top_k: u32,
        has_top_p: u32,
        /// The largest logit, whatever the rest says.
        greedy: u32,
        /// The random number, in units of 2^-24.
        draw: u32,
        /// A weight has three times as many bits after the point.
        bits: u32,
        /// The weight 1.
        one: f32,
        temperature: f32,
        penalty: f32,
        min_p: f32,
        pad: u32,
    }
}

args! {
    /// Routing to experts.
    ExpertArgs {
        /// Output elements (of the sum).
        len: u64,
        n_experts: u32,
        top_k: u32,
        normalize: u32,
        n: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_rendered_in_order_with_their_size() {
        let text = RowArgs::render();
        assert_eq!(
            text,
            "struct RowArgs {\n    ulong dim;\n    float eps;\n    float scale;\n};\n\
             static_assert(sizeof(RowArgs) == 16, \"RowArgs is 16 bytes\");\n"
        );
    }
}
