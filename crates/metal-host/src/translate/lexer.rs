//! Tokens of preprocessed shader text.

use super::TranslateError;

/// What a token is. Punctuation is one character each; `[[` is two tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ident,
    Number,
    Text,
    Punct(u8),
    /// A whole line that starts with `#`.
    Directive,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

/// The tokens of a text and, for each bracket, the index of the one that matches it.
pub(super) struct Tokens<'a> {
    pub text: &'a str,
    pub list: Vec<Token>,
    partner: Vec<usize>,
}

impl<'a> Tokens<'a> {
    pub fn new(text: &'a str) -> Result<Self, TranslateError> {
        let list = lex(text);
        let mut tokens = Tokens { text, partner: vec![usize::MAX; list.len()], list };
        let mut open: Vec<usize> = Vec::new();
        for i in 0..tokens.list.len() {
            let Kind::Punct(c) = tokens.list[i].kind else { continue };
            match c {
                b'(' | b'[' | b'{' => open.push(i),
                b')' | b']' | b'}' => {
                    let wanted = match c {
                        b')' => b'(',
                        b']' => b'[',
                        _ => b'{',
                    };
                    match open.pop() {
                        Some(o) if tokens.list[o].kind == Kind::Punct(wanted) => {
                            tokens.partner[o] = i;
                            tokens.partner[i] = o;
                        }
                        _ => return Err(tokens.error(i, format!("`{}` closes nothing", c as char))),
                    }
                }
                _ => {}
            }
        }
        match open.pop() {
            Some(o) => Err(tokens.error(o, format!("`{}` is never closed", tokens.str(o)))),
            None => Ok(tokens),
        }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The text of a token; empty past the end, so that looking ahead needs no checks.
    pub fn str(&self, i: usize) -> &'a str {
        self.list.get(i).map_or("", |t| &self.text[t.start..t.end])
    }

    pub fn is(&self, i: usize, s: &str) -> bool {
        self.str(i) == s
    }

    pub fn is_ident(&self, i: usize) -> bool {
        self.list.get(i).is_some_and(|t| t.kind == Kind::Ident)
    }

    pub fn is_directive(&self, i: usize) -> bool {
        self.list.get(i).is_some_and(|t| t.kind == Kind::Directive)
    }

    /// The bracket that matches the one at `i`.
    pub fn partner(&self, i: usize) -> usize {
        self.partner[i]
    }

    /// The index after the `>` that closes the `<` at `i`. Brackets in between are stepped over.
    pub fn after_angle(&self, i: usize) -> Option<usize> {
        let mut depth = 0usize;
        let mut k = i;
        while k < self.len() {
            match self.str(k) {
                "<" => depth += 1,
                ">" if k > 0 && self.is(k - 1, "-") => {}
                ">" => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(k + 1);
                    }
                }
                "(" | "[" | "{" => k = self.partner(k),
                ";" | ")" | "]" | "}" => return None,
                _ => {}
            }
            k += 1;
        }
        None
    }

    /// If an attribute `[[…]]` starts at `i`, the index of its last bracket.
    pub fn attribute_end(&self, i: usize) -> Option<usize> {
        let inner = i + 1;
        if !self.is(i, "[") || !self.is(inner, "[") || self.list[inner].start != self.list[i].end {
            return None;
        }
        (self.partner(inner) + 1 == self.partner(i)).then(|| self.partner(i))
    }

    /// Splits `[begin, end)` at commas outside of every bracket and angle.
    pub fn split(&self, begin: usize, end: usize) -> Vec<(usize, usize)> {
        let mut parts = Vec::new();
        let (mut from, mut k) = (begin, begin);
        while k < end {
            match self.str(k) {
                "(" | "[" | "{" => k = self.partner(k),
                "<" => {
                    if let Some(after) = self.after_angle(k).filter(|&a| a <= end) {
                        k = after - 1;
                    }
                }
                "," => {
                    parts.push((from, k));
                    from = k + 1;
                }
                _ => {}
            }
            k += 1;
        }
        if from < end {
            parts.push((from, end));
        }
        parts
    }

    /// The tokens of `[begin, end)` with one space in between, without directives.
    pub fn joined(&self, begin: usize, end: usize) -> String {
        let mut out = String::new();
        for i in (begin..end).filter(|&i| !self.is_directive(i)) {
            if !out.is_empty() {
                out.push(' ');
            }
            out.push_str(self.str(i));
        }
        out
    }

    /// `file:line` of a token, from the line markers before it.
    pub fn location(&self, i: usize) -> String {
        let at = self.list.get(i).map_or(self.text.len(), |t| t.start);
        let (mut file, mut line) = (String::from("shader"), 0usize);
        for l in self.text[..at].split('\n') {
            match parse_marker(l) {
                Some((n, f)) => {
                    line = n.saturating_sub(1);
                    file = f.to_string();
                }
                None => line += 1,
            }
        }
        format!("{file}:{line}")
    }

    pub fn error(&self, i: usize, message: String) -> TranslateError {
        TranslateError { location: self.location(i), message }
    }
}

/// `# 12 "file"` and `#line 12 "file"`.
fn parse_marker(line: &str) -> Option<(usize, &str)> {
    let rest = line.strip_prefix('#')?.trim_start();
    let rest = rest.strip_prefix("line").unwrap_or(rest).trim_start();
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    let number = rest[..digits].parse().ok()?;
    let file = rest[digits..].trim_start().strip_prefix('"')?;
    Some((number, &file[..file.find('"')?]))
}

fn lex(text: &str) -> Vec<Token> {
    let b = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    let mut line_start = true;
    while i < b.len() {
        let c = b[i];
        if c == b'\n' {
            line_start = true;
            i += 1;
            continue;
        }
        if c.is_ascii_whitespace() {
            i += 1;
            continue;
        }
        let start = i;
        let kind = if c == b'#' && line_start {
            while i < b.len() && b[i] != b'\n' {
                i += 1 + usize::from(b[i] == b'\\');
            }
            i = i.min(b.len());
            Kind::Directive
        } else if c == b'/' && b.get(i + 1) == Some(&b'/') {
            while i < b.len() && b[i] != b'\n' {
                i += 1;
            }
            continue;
        } else if c == b'/' && b.get(i + 1) == Some(&b'*') {
            i = text[i + 2..].find("*/").map_or(b.len(), |n| i + n + 4);
            continue;
        } else if c.is_ascii_alphabetic() || c == b'_' {
            while i < b.len() && (b[i].is_ascii_alphanumeric() || b[i] == b'_') {
                i += 1;
            }
            Kind::Ident
        } else if c.is_ascii_digit() || (c == b'.' && b.get(i + 1).is_some_and(u8::is_ascii_digit)) {
            while i < b.len() {
                let exponent = matches!(b[i], b'+' | b'-') && matches!(b[i - 1], b'e' | b'E' | b'p' | b'P');
                let hex_e = exponent && matches!(b[i - 1], b'e' | b'E') && text[start..i].starts_with("0x");
                if !(b[i].is_ascii_alphanumeric() || matches!(b[i], b'.' | b'_' | b'\'') || (exponent && !hex_e)) {
                    break;
                }
                i += 1;
            }
            Kind::Number
        } else if c == b'"' || c == b'\'' {
            i += 1;
            while i < b.len() && b[i] != c {
                i += 1 + usize::from(b[i] == b'\\');
            }
            i = (i + 1).min(b.len());
            Kind::Text
        } else {
            // Anything else is one character, which may be several bytes of UTF-8.
            i += text[i..].chars().next().map_or(1, char::len_utf8);
            Kind::Punct(c)
        };
        line_start = false;
        out.push(Token { kind, start, end: i });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_their_text() {
        let t =
            Tokens::new("# 3 \"a.metal\"\nkernel void f(device float* x [[buffer(0)]]) { x[0] = 1.e-3f; }").unwrap();
        let all: Vec<_> = (0..t.len()).map(|i| t.str(i)).collect();
        assert_eq!(all[1..6], ["kernel", "void", "f", "(", "device"]);
        assert!(all.contains(&"1.e-3f"));
        let a = (0..t.len()).find(|&i| t.attribute_end(i).is_some()).unwrap();
        assert_eq!(t.joined(a, t.attribute_end(a).unwrap() + 1), "[ [ buffer ( 0 ) ] ]");
        assert_eq!(t.location(1), "a.metal:3");
    }

    #[test]
    fn nested_angles_and_brackets_split_once() {
        let t = Tokens::new("f<int, 4>, (a, b), vec<vec<T, 2>, (1 > 0)> x").unwrap();
        assert_eq!(t.split(0, t.len()).len(), 3);
    }

    #[test]
    fn an_open_brace_is_an_error_with_its_line() {
        let e = Tokens::new("# 1 \"k.metal\"\nvoid f() {\n").err().unwrap();
        assert!(e.to_string().contains("k.metal:1"), "{e}");
    }
}
