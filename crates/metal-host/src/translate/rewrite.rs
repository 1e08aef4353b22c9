//! Statements that the host compiler does not take as they are.

use super::emit::defined_flag;
use super::scan::{Edit, Scanner};

impl Scanner<'_, '_> {
    /// `threadgroup T x[n];` in a kernel's body becomes a reference into the arena.
    pub(super) fn threadgroup_variables(&mut self, begin: usize, end: usize) {
        for i in begin..end {
            let mut before = i - 1;
            while self.t.is_directive(before) {
                before -= 1;
            }
            if !self.t.is(i, "threadgroup") || !matches!(self.t.str(before), ";" | "{" | "}" | ")") {
                continue;
            }
            let Some(stop) = (i..end).find(|&k| self.t.is(k, ";")) else { continue };
            let declarators = self.t.split(i + 1, stop);
            let Some(&(type_begin, first_end)) = declarators.first() else { continue };
            // The first declarator's name is the last word before its brackets.
            let mut k = type_begin;
            let mut first_name = None;
            let mut pointer = false;
            while k < first_end && !self.t.is(k, "[") && !self.t.is(k, "=") {
                match self.t.str(k) {
                    "<" => k = self.t.after_angle(k).unwrap_or(k + 1) - 1,
                    "(" => k = self.t.partner(k),
                    "*" | "&" => pointer = true,
                    _ if self.t.is_ident(k) => first_name = Some(k),
                    _ => {}
                }
                k += 1;
            }
            let Some(first_name) = first_name.filter(|_| !pointer) else { continue };
            let mut ty = self.t.joined(type_begin, first_name);
            for word in ["alignas ( 16 )", "const ", "volatile "] {
                ty = ty.replace(word, "");
            }
            let mut text = String::new();
            for (n, &(b, e)) in declarators.iter().enumerate() {
                let at = if n == 0 { first_name } else { b };
                let name = self.t.str(at);
                let dimensions = self.t.joined(at + 1, e).replace(' ', "");
                let dimensions =
                    if self.t.joined(at + 1, e).contains("sizeof") { self.t.joined(at + 1, e) } else { dimensions };
                let id = self.variables;
                self.variables += 1;
                text.push_str(&format!(
                    "typedef {} mh_type_{name}{dimensions}; mh_type_{name}& {name} = \
                     *(mh_type_{name}*)mh_threadgroup_variable({id}, \"{name}\", sizeof(mh_type_{name}), alignof(mh_type_{name}))",
                    ty.trim()
                ));
                text.push_str(if n + 1 < declarators.len() { "; " } else { "" });
            }
            self.blank(i, stop);
            self.edits[i] = Edit::Text(text);
        }
    }

    /// `is_function_constant_defined(x)` outside of what is computed per dispatch.
    pub(super) fn rewrite_defined_queries(&mut self) {
        for i in 0..self.t.len() {
            if self.t.is(i, "is_function_constant_defined") && self.t.is(i + 1, "(") && self.edits[i] == Edit::Keep {
                let close = self.t.partner(i + 1);
                let name = self.t.joined(i + 2, close).replace(' ', "");
                self.blank(i, close + 1);
                self.edits[i] = Edit::Text(defined_flag(&name));
            }
        }
    }
    /// `T x[n] = {[0 ... n - 1] = value};`, which clang takes from C and g++ does not, becomes a loop over the array.
    pub(super) fn rewrite_range_initialisers(&mut self) {
        for open in 2..self.t.len() {
            let range = open + 1;
            if !(self.t.is(open, "{") && self.t.is(range, "[") && self.t.is(open - 1, "=") && self.t.is(open - 2, "]"))
            {
                continue;
            }
            let (end, close) = (self.t.partner(range), self.t.partner(open));
            let dots = (range..end).any(|k| (k..k + 3).all(|i| self.t.is(i, ".")));
            let brackets = self.t.partner(open - 2);
            if !dots || !self.t.is(end + 1, "=") || brackets == 0 || !self.t.is_ident(brackets - 1) {
                continue;
            }
            let name = self.t.str(brackets - 1);
            let value = self.t.joined(end + 2, close);
            self.blank(open - 1, close + 1);
            self.edits[open - 1] = Edit::Text(format!("; for (auto& mh_each : {name}) mh_each = {value}"));
        }
    }
}
