//! Tokens known by their text.
//!
//! Files do not list the tokens that end a generation, and some mark tokens that are structure as ordinary text. The texts
//! below are those of published vocabularies; llama.cpp goes by the same list, so both stop at the same tokens.

use std::collections::{BTreeSet, HashMap};

use super::data::{TokenKind, TokenizerData};

/// Tokens that end a turn, the ones that name a turn's end proper first.
const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

/// Further tokens that end a generation.
const END_OF_GENERATION: &[&str] = &[
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];

/// Tokens of code completion that end the part to fill in: padding, the next repository, the next file. Of each kind the first
/// that exists.
const END_OF_INFILL: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// Tokens of code completion that frame the part to fill in.
const INFILL: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];

/// Structure inside a turn of the harmony format, which callers need to see in the output.
const VISIBLE: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// The roles of a vocabulary's tokens.
pub(super) struct Roles {
    /// Each token's kind, with tokens that are structure marked as such.
    pub kinds: Vec<TokenKind>,
    /// End of turn.
    pub eot: Option<u32>,
    /// The tokens that end a generation.
    pub end_of_generation: BTreeSet<u32>,
}

impl Roles {
    /// Finds the roles in `data`, which is valid.
    pub fn new(data: &TokenizerData) -> Self {
        let mut kinds = data.kinds.clone();
        kinds.resize(data.tokens.len(), TokenKind::Normal);

        let known = [END_OF_TURN, END_OF_GENERATION, INFILL, VISIBLE].concat();
        let known: BTreeSet<&str> = known.into_iter().chain(END_OF_INFILL.concat()).collect();
        let mut ids: HashMap<&str, u32> = HashMap::new();
        for (id, token) in data.tokens.iter().enumerate() {
            if let Some(text) = std::str::from_utf8(token).ok().filter(|text| known.contains(text)) {
                ids.entry(text).or_insert(id as u32);
            }
        }
        let id_of = |text: &&str| ids.get(text).copied();

        let eot = data.eot.or_else(|| END_OF_TURN.iter().find_map(id_of));
        let infill_ends = END_OF_INFILL.iter().filter_map(|texts| texts.iter().find_map(id_of));
        let mut end_of_generation: BTreeSet<u32> =
            END_OF_TURN.iter().chain(END_OF_GENERATION).filter_map(id_of).chain(infill_ends).collect();
        for id in end_of_generation.iter().copied().chain(INFILL.iter().filter_map(id_of)) {
            kinds[id as usize] = TokenKind::Control;
        }
        end_of_generation.extend([data.eos, eot, data.eom].into_iter().flatten().chain(data.ends.iter().copied()));
        for id in VISIBLE.iter().filter_map(id_of) {
            kinds[id as usize] = TokenKind::UserDefined;
        }

        // `<|end|>` closes a message, not a turn, where other tokens close the turn.
        let has = |text: &str| ids.contains_key(text);
        let calls = has("<|call|>") || has("<|calls|>");
        if calls
            && (has("<|return|>") || has("<|flush|>"))
            && let Some(id) = id_of(&"<|end|>")
        {
            end_of_generation.remove(&id);
            kinds[id as usize] = TokenKind::UserDefined;
        }
        // `</s>` is HTML's end of strike-through in a vocabulary that ends turns in its own way.
        if has("<|tool_response>")
            && let Some(id) = id_of(&"</s>")
        {
            end_of_generation.remove(&id);
            kinds[id as usize] = TokenKind::Normal;
        }
        Roles { kinds, eot, end_of_generation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(tokens: &[&str], eos: Option<u32>) -> Roles {
        let tokens = tokens.iter().map(|t| t.as_bytes().to_vec()).collect();
        Roles::new(&TokenizerData { tokens, eos, ..Default::default() })
    }

    #[test]
    fn ends_are_known_by_text_and_by_id() {
        let roles = roles(&["a", "<|im_end|>", "<reponame>", "b", "<|endoftext|>"], Some(3));
        assert_eq!(roles.end_of_generation.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(roles.eot, Some(1));
        assert_eq!(roles.kinds[1], TokenKind::Control);
        assert_eq!(roles.kinds[3], TokenKind::Normal);
    }

    #[test]
    fn harmony_messages_do_not_end_a_turn() {
        let roles = roles(&["<|end|>", "<|return|>", "<|call|>", "<|channel|>"], None);
        assert_eq!(roles.end_of_generation.into_iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(roles.kinds[0], TokenKind::UserDefined);
        assert_eq!(roles.kinds[3], TokenKind::UserDefined);
    }
}
