//! Reads the structure of a shader: scopes, functions, kernels, function constants; decides what becomes of each token.

use std::collections::{HashMap, HashSet};

use super::emit::defined_flag;
use super::lexer::Tokens;
use super::{Constant, Entry, KernelFunction, Param, Tables, TranslateError};

/// What is written instead of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edit {
    Keep,
    Blank,
    Text(String),
}

type Result<T> = std::result::Result<T, TranslateError>;

const SPACES: [&str; 6] = ["device", "threadgroup", "thread", "threadgroup_imageblock", "object_data", "ray_data"];

/// Attributes of kernel parameters that carry a thread's coordinates.
const COORDINATES: [(&str, &str); 17] = [
    ("thread_position_in_grid", "MH_THREAD_POSITION_IN_GRID"),
    ("thread_position_in_threadgroup", "MH_THREAD_POSITION_IN_THREADGROUP"),
    ("threadgroup_position_in_grid", "MH_THREADGROUP_POSITION_IN_GRID"),
    ("threads_per_threadgroup", "MH_THREADS_PER_THREADGROUP"),
    ("dispatch_threads_per_threadgroup", "MH_DISPATCH_THREADS_PER_THREADGROUP"),
    ("threadgroups_per_grid", "MH_THREADGROUPS_PER_GRID"),
    ("threads_per_grid", "MH_THREADS_PER_GRID"),
    ("thread_index_in_threadgroup", "MH_THREAD_INDEX_IN_THREADGROUP"),
    ("thread_index_in_simdgroup", "MH_THREAD_INDEX_IN_SIMDGROUP"),
    ("simdgroup_index_in_threadgroup", "MH_SIMDGROUP_INDEX_IN_THREADGROUP"),
    ("simdgroups_per_threadgroup", "MH_SIMDGROUPS_PER_THREADGROUP"),
    ("dispatch_simdgroups_per_threadgroup", "MH_SIMDGROUPS_PER_THREADGROUP"),
    ("threads_per_simdgroup", "MH_THREADS_PER_SIMDGROUP"),
    ("thread_execution_width", "MH_THREADS_PER_SIMDGROUP"),
    ("quadgroup_index_in_threadgroup", "MH_QUADGROUP_INDEX_IN_THREADGROUP"),
    ("thread_index_in_quadgroup", "MH_THREAD_INDEX_IN_QUADGROUP"),
    ("quadgroups_per_threadgroup", "MH_QUADGROUPS_PER_THREADGROUP"),
];

pub(super) fn scan(tokens: &Tokens) -> Result<(Tables, Vec<Edit>)> {
    let mut s = Scanner {
        t: tokens,
        edits: vec![Edit::Keep; tokens.len()],
        tables: Tables::default(),
        templates: HashMap::new(),
        functions: HashMap::new(),
        constant_names: HashSet::new(),
        variables: 0,
    };
    s.erase_keywords();
    s.scope(0, tokens.len(), &[], false)?;
    s.rewrite_defined_queries();
    s.rewrite_range_initialisers();
    Ok((s.tables, s.edits))
}

pub(super) struct Scanner<'t, 'a> {
    pub t: &'t Tokens<'a>,
    pub edits: Vec<Edit>,
    tables: Tables,
    /// Kernel templates by name.
    templates: HashMap<String, (String, KernelFunction)>,
    /// Signatures seen, without address spaces, and the text that each had with them.
    functions: HashMap<String, String>,
    /// Function constants and what is computed from them.
    constant_names: HashSet<String>,
    /// Threadgroup variables so far.
    pub variables: usize,
}

impl Scanner<'_, '_> {
    /// Blanks pragmas, attributes and address spaces; `constant` becomes `const` where none stands beside it.
    fn erase_keywords(&mut self) {
        let mut i = 0;
        while i < self.t.len() {
            if let Some(end) = self.t.attribute_end(i) {
                self.blank(i, end + 1);
                i = end + 1;
                continue;
            }
            let s = self.t.str(i);
            if self.t.is_directive(i) {
                if s[1..].trim_start().starts_with("pragma") {
                    self.edits[i] = Edit::Blank;
                }
            } else if SPACES.contains(&s) || s == "kernel" {
                self.edits[i] = Edit::Blank;
            } else if s == "constant" {
                // Behind a parameter list it says where the object lies.
                let text = if self.qualified_const(i) || self.t.is(i - usize::from(i > 0), ")") {
                    Edit::Blank
                } else {
                    Edit::Text("const".into())
                };
                self.edits[i] = text;
            }
            i += 1;
        }
    }

    /// Whether the run of specifiers around `constant` says `const` already.
    fn qualified_const(&self, i: usize) -> bool {
        let specifier =
            |k: usize| matches!(self.t.str(k), "const" | "constexpr" | "static" | "inline" | "constant" | "volatile");
        let mut k = i;
        while k > 0 && specifier(k - 1) {
            k -= 1;
            if matches!(self.t.str(k), "const" | "constant") {
                return true;
            }
        }
        k = i + 1;
        while specifier(k) {
            if self.t.is(k, "const") {
                return true;
            }
            k += 1;
        }
        // A type of one word with the qualifier behind it: `constant T const&`.
        self.t.is_ident(k) && self.t.is(k + 1, "const")
    }

    pub fn blank(&mut self, begin: usize, end: usize) {
        for i in (begin..end).filter(|&i| !self.t.is_directive(i)) {
            self.edits[i] = Edit::Blank;
        }
    }

    /// Namespace or class scope between `begin` and `end`.
    fn scope(&mut self, begin: usize, end: usize, path: &[String], class: bool) -> Result<()> {
        let mut i = begin;
        while i < end {
            if self.t.is_directive(i) || self.t.is(i, ";") {
                i += 1;
                continue;
            }
            if matches!(self.t.str(i), "public" | "private" | "protected") && self.t.is(i + 1, ":") {
                i += 2;
                continue;
            }
            i = self.statement(i, end, path, class, begin)?;
        }
        Ok(())
    }

    /// One declaration that starts at `start`; returns the index after it.
    fn statement(&mut self, start: usize, end: usize, path: &[String], class: bool, scope: usize) -> Result<usize> {
        let mut head = start;
        while self.t.is(head, "template") && self.t.is(head + 1, "<") {
            head = self
                .t
                .after_angle(head + 1)
                .ok_or_else(|| self.t.error(head, "template parameters do not end".into()))?;
        }
        let (mut k, mut initialiser) = (head, false);
        while k < end {
            match self.t.str(k) {
                "(" | "[" => k = self.t.partner(k) + 1,
                "=" if !self.in_operator(k) && !self.t.is(k + 1, "=") && !self.t.is(k - 1, "=") => {
                    initialiser = true;
                    k += 1;
                }
                ";" => {
                    self.declaration(start, head, k, path, class, scope)?;
                    return Ok(k + 1);
                }
                "{" => {
                    let close = self.t.partner(k);
                    let first = self.t.str(head);
                    let first = if matches!(first, "inline" | "typedef") { self.t.str(head + 1) } else { first };
                    if first == "namespace" || self.t.is(head, "extern") && self.t.str(head + 1).starts_with('"') {
                        let mut inner = path.to_vec();
                        inner.extend(
                            (head..k)
                                .filter(|&n| self.t.is_ident(n))
                                .map(|n| self.t.str(n).to_string())
                                .filter(|n| !matches!(n.as_str(), "namespace" | "inline" | "extern")),
                        );
                        self.scope(k + 1, close, &inner, false)?;
                        return Ok(close + 1);
                    }
                    let params = if initialiser { None } else { self.parameter_list(head, k) };
                    if let Some(open) = params {
                        // A member initialiser in braces is not the body yet.
                        if matches!(self.t.str(close + 1), "," | "{") {
                            k = close + 1;
                            continue;
                        }
                        self.function(start, head, open, k, close, path, scope)?;
                        return Ok(close + 1);
                    }
                    if !initialiser && matches!(first, "struct" | "class" | "union") {
                        if head != start && self.merge(start, head, k, k, None, scope) {
                            let after = if self.t.is(close + 1, ";") { close + 2 } else { close + 1 };
                            self.blank(start, after);
                            return Ok(after);
                        }
                        self.scope(k + 1, close, path, true)?;
                    }
                    k = close + 1;
                }
                _ => k += 1,
            }
        }
        Ok(end)
    }

    /// Whether the token is part of an operator's name, as in `operator<<=`.
    fn in_operator(&self, k: usize) -> bool {
        (1..=3)
            .any(|back| k >= back && self.t.is(k - back, "operator") && (k + 1 - back..k).all(|i| !self.t.is_ident(i)))
    }

    /// The `(` that opens a function's parameters in a declaration's head.
    fn parameter_list(&self, head: usize, end: usize) -> Option<usize> {
        let mut k = head;
        while k < end {
            match self.t.str(k) {
                "operator" if self.t.is(k + 1, "(") => return Some(k + 3).filter(|&o| self.t.is(o, "(")),
                "decltype" | "alignas" | "__attribute__" | "noexcept" | "requires" if self.t.is(k + 1, "(") => {
                    k = self.t.partner(k + 1)
                }
                "[" => k = self.t.partner(k),
                "<" if !self.in_operator(k) => {
                    if let Some(after) = self.t.after_angle(k).filter(|&after| after <= end) {
                        k = after - 1;
                    }
                }
                "(" => return Some(k),
                _ => {}
            }
            k += 1;
        }
        None
    }

    /// Records a signature without its address spaces. True when one with other address spaces was there before, so
    /// that the host compiler would take this one for a second definition.
    fn merge(
        &mut self,
        start: usize,
        head: usize,
        open: usize,
        end: usize,
        name_params: Option<(usize, usize)>,
        scope: usize,
    ) -> bool {
        let mut key = format!("{scope}:");
        let push = |key: &mut String, begin: usize, end: usize, tail: bool| {
            let mut const_before = false;
            let mut k = begin;
            while k < end {
                if let Some(e) = self.t.attribute_end(k) {
                    k = e + 1;
                    continue;
                }
                let s = self.t.str(k);
                let s = if s == "constant" && !tail { "const" } else { s };
                let skip = s == "constant"
                    || SPACES.contains(&s)
                    || self.t.is_directive(k)
                    || matches!(s, "METAL_FUNC" | "inline" | "static");
                let repeated = s == "const" && const_before;
                if !skip && !repeated {
                    key.push_str(s);
                    key.push(' ');
                    const_before = s == "const";
                }
                k += 1;
            }
        };
        push(&mut key, start, head, false);
        push(&mut key, head, open, false);
        if let Some((begin, close)) = name_params {
            for (b, e) in self.t.split(begin, close) {
                let e = (b..e).find(|&k| self.t.is(k, "=")).unwrap_or(e);
                // The last word names the parameter unless it is all there is.
                let words = (b..e)
                    .filter(|&k| {
                        !SPACES.contains(&self.t.str(k)) && !self.t.is(k, "const") && !self.t.is(k, "constant")
                    })
                    .count();
                let e = if words > 1 && self.t.is_ident(e - 1) { e - 1 } else { e };
                push(&mut key, b, e, false);
                key.push(',');
            }
            push(&mut key, close, end, true);
        }
        let text = self.t.joined(start, end);
        match self.functions.get(&key) {
            Some(before) => *before != text,
            None => {
                self.functions.insert(key, text);
                false
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // token positions of one head
    fn function(
        &mut self,
        start: usize,
        head: usize,
        open: usize,
        body: usize,
        close: usize,
        path: &[String],
        scope: usize,
    ) -> Result<()> {
        let params_end = self.t.partner(open);
        let mut tail = params_end;
        while tail < body && !(self.t.is(tail, ":") && !self.t.is(tail + 1, ":") && !self.t.is(tail - 1, ":")) {
            tail += 1;
        }
        if self.merge(start, head, open, tail, Some((open + 1, params_end)), scope) {
            self.blank(start, close + 1);
            return Ok(());
        }
        if !(start..open).any(|k| self.t.is(k, "kernel")) {
            return Ok(());
        }
        let name = self.t.str(open - 1).to_string();
        let qualified = path.iter().cloned().chain([name.clone()]).collect::<Vec<_>>().join("::");
        let function = KernelFunction {
            params: self.params(open + 1, params_end)?,
            max_threads: self.attribute(start, open, "max_total_threads_per_threadgroup"),
        };
        if head == start {
            let host_name = self.host_name(start, open).unwrap_or(name);
            self.tables.entries.push(Entry { host_name, expression: qualified, function });
        } else {
            self.templates.insert(name, (qualified, function));
        }
        self.threadgroup_variables(body + 1, close);
        Ok(())
    }

    fn params(&self, begin: usize, end: usize) -> Result<Vec<Param>> {
        let parts = self.t.split(begin, end);
        let given: HashSet<String> = parts.iter().filter_map(|&(b, e)| self.attribute(b, e, "buffer")).collect();
        let mut free_buffers = (0usize..).filter(|n| !given.contains(&n.to_string()));
        let mut threadgroups = 0usize;
        let mut out = Vec::new();
        for (b, e) in parts {
            let declarator_end = (b..e).find(|&k| self.t.attribute_end(k).is_some()).unwrap_or(e);
            let name =
                (b..declarator_end).rev().find(|&k| self.t.is_ident(k)).map_or("", |k| self.t.str(k)).to_string();
            let pointer = (b..declarator_end).any(|k| matches!(self.t.str(k), "*" | "&"));
            let in_threadgroup = (b..declarator_end).any(|k| self.t.is(k, "threadgroup"));
            let coordinate = COORDINATES.iter().find(|(a, _)| self.attribute(b, e, a).is_some());
            let conditional = self.attribute(b, e, "function_constant").is_some();
            let (source, index) = if let Some(n) = self.attribute(b, e, "buffer") {
                ("MH_BUFFER", n)
            } else if let Some(n) = self.attribute(b, e, "threadgroup") {
                ("MH_THREADGROUP_MEMORY", n)
            } else if let Some((_, source)) = coordinate {
                (*source, "0".into())
            } else if pointer && in_threadgroup {
                threadgroups += 1;
                ("MH_THREADGROUP_MEMORY", (threadgroups - 1).to_string())
            } else if pointer {
                ("MH_BUFFER", free_buffers.next().unwrap_or_default().to_string())
            } else {
                let attributes = self.t.joined(declarator_end, e);
                let found = if attributes.is_empty() { "none".into() } else { format!("`{attributes}`") };
                return Err(self.t.error(b, format!("kernel parameter `{name}`: expected a buffer, threadgroup memory or a thread coordinate, found attributes: {found}")));
            };
            out.push(Param { source, index, name, conditional });
        }
        Ok(out)
    }

    /// The argument of an attribute within `[begin, end)`, empty when it has none.
    fn attribute(&self, begin: usize, end: usize, name: &str) -> Option<String> {
        let mut k = begin;
        while k < end {
            if let Some(close) = self.t.attribute_end(k) {
                for i in k..close {
                    if self.t.is(i, name) && self.t.is_ident(i) {
                        let argument = self.t.is(i + 1, "(").then(|| self.t.joined(i + 2, self.t.partner(i + 1)));
                        return Some(argument.unwrap_or_default());
                    }
                }
                k = close;
            }
            k += 1;
        }
        None
    }

    fn host_name(&self, begin: usize, end: usize) -> Option<String> {
        let literals = self.attribute(begin, end, "host_name")?;
        Some(literals.split('"').skip(1).step_by(2).collect())
    }

    /// A declaration that ends with the `;` at `stop`.
    fn declaration(
        &mut self,
        start: usize,
        head: usize,
        stop: usize,
        path: &[String],
        class: bool,
        scope: usize,
    ) -> Result<()> {
        if self.t.is(start, "template") && head == start {
            return self.instantiation(start, stop);
        }
        if class {
            if let Some(open) = self.parameter_list(head, stop) {
                let close = self.t.partner(open);
                let end = (close..stop).find(|&k| self.t.is(k, "=")).unwrap_or(stop);
                if self.merge(start, head, open, end, Some((open + 1, close)), scope) {
                    self.blank(start, stop + 1);
                }
            }
            return Ok(());
        }
        let Some(space) = (head..stop).find(|&k| self.t.is(k, "constant")) else { return Ok(()) };
        if let Some(index) = self.attribute(head, stop, "function_constant") {
            let end = (head..stop).find(|&k| self.t.attribute_end(k).is_some()).unwrap_or(stop);
            let Some(at) = (head..end).rev().find(|&k| self.t.is_ident(k)) else { return Ok(()) };
            let name = self.t.str(at).to_string();
            let qualified = path.iter().cloned().chain([name.clone()]).collect::<Vec<_>>().join("::");
            self.edits[space] = Edit::Text("static".into());
            self.edits[stop] = Edit::Text(format!("; static bool {};", defined_flag(&name)));
            self.constant_names.insert(name.clone());
            self.tables.constants.push(Constant { index, name, qualified });
            return Ok(());
        }
        // What is computed from function constants is computed again at every dispatch.
        let Some(equals) = (head..stop).find(|&k| self.t.is(k, "=")) else { return Ok(()) };
        let depends = (equals..stop).any(|k| {
            self.t.is_ident(k)
                && (self.constant_names.contains(self.t.str(k)) || self.t.is(k, "is_function_constant_defined"))
        });
        if depends && self.t.is_ident(equals - 1) {
            let name = self.t.str(equals - 1).to_string();
            let qualified = path.iter().cloned().chain([name.clone()]).collect::<Vec<_>>().join("::");
            let mut value = String::new();
            let mut k = equals + 1;
            while k < stop {
                if self.t.is(k, "is_function_constant_defined") && self.t.is(k + 1, "(") {
                    value.push_str(&defined_flag(&self.t.joined(k + 2, self.t.partner(k + 1)).replace(' ', "")));
                    k = self.t.partner(k + 1);
                } else if !self.t.is_directive(k) {
                    value.push_str(self.t.str(k));
                }
                value.push(' ');
                k += 1;
            }
            for k in (head..equals).filter(|&k| matches!(self.t.str(k), "constant" | "const" | "constexpr" | "static"))
            {
                self.edits[k] = Edit::Blank;
            }
            self.edits[head] = Edit::Text(format!(
                "static {}",
                if matches!(self.t.str(head), "constant" | "const" | "constexpr" | "static") {
                    ""
                } else {
                    self.t.str(head)
                }
            ));
            self.blank(equals, stop);
            self.constant_names.insert(name);
            self.tables.derived.push((qualified, value.trim().to_string()));
        }
        Ok(())
    }

    /// `template [[host_name("…")]] [[kernel]] void f<A>(…);` or `… decltype(f<A>) f<A>;`
    fn instantiation(&mut self, start: usize, stop: usize) -> Result<()> {
        if !(start..stop).any(|k| self.t.is(k, "kernel")) {
            return Ok(());
        }
        let mut k = start + 1;
        let mut id = None;
        while k < stop {
            if let Some(e) = self.t.attribute_end(k) {
                k = e;
            } else if self.t.is(k, "decltype") && self.t.is(k + 1, "(") {
                id = Some((k + 2, self.t.partner(k + 1)));
                break;
            } else if self.t.is_ident(k) && self.t.is(k + 1, "<") {
                let after = self.t.after_angle(k + 1).unwrap_or(stop);
                if after == stop || self.t.is(after, "(") {
                    id = Some((k, after));
                    break;
                }
            }
            k += 1;
        }
        let Some((b, e)) = id else {
            return Err(self.t.error(start, "an instantiation of a kernel names its template arguments: f<…>".into()));
        };
        let angle = (b..e).find(|&k| self.t.is(k, "<")).unwrap_or(e);
        let name = self.t.str(angle - 1);
        let Some((qualified, function)) = self.templates.get(name).cloned() else {
            return Err(self.t.error(
                start,
                format!("`{name}` is instantiated as a kernel, but no kernel template of that name was seen before"),
            ));
        };
        let mut arguments = String::new();
        for k in angle + 1..e - 1 {
            let s = self.t.str(k);
            if !SPACES.contains(&s) && !self.t.is_directive(k) {
                arguments.push_str(if s == "constant" { "const" } else { s });
                // `::` and `->` are two tokens each.
                let glued = s == ":" && self.t.is(k + 1, ":") || s == "-" && self.t.is(k + 1, ">");
                if !glued && k + 2 < e {
                    arguments.push(' ');
                }
            }
        }
        let expression = format!("{qualified}<{}>", arguments.trim());
        let host_name = self.host_name(start, stop).unwrap_or_else(|| expression.replace(' ', ""));
        self.tables.entries.push(Entry { host_name, expression, function });
        self.blank(start, stop + 1);
        Ok(())
    }
}
