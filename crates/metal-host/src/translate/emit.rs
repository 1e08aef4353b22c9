//! Writes the C++ text: the tokens with their edits, then the tables.

use std::fmt::Write as _;

use super::Tables;
use super::lexer::Tokens;
use super::scan::Edit;

/// The text between tokens is kept as it is, so that every token stays on its line.
pub(super) fn emit(tokens: &Tokens, tables: &Tables, edits: Vec<Edit>) -> String {
    let mut out = String::with_capacity(tokens.text.len() + 4096);
    out.push_str("#include <metal_host/all.h>\n");
    let mut from = 0;
    for (token, edit) in tokens.list.iter().zip(edits) {
        out.push_str(&tokens.text[from..token.start]);
        match edit {
            Edit::Keep => out.push_str(&tokens.text[token.start..token.end]),
            Edit::Blank => out.push(' '),
            Edit::Text(t) => out.push_str(&t),
        }
        from = token.end;
    }
    out.push_str(&tokens.text[from..]);
    out.push_str("\n# 1 \"metal-host tables\"\n");
    write_tables(&mut out, tables);
    out
}

fn write_tables(out: &mut String, tables: &Tables) {
    for (i, e) in tables.entries.iter().enumerate() {
        let _ = write!(out, "static const mh_param mh_params_{i}[] = {{");
        for p in &e.function.params {
            let _ = write!(out, "{{{}, ({}), \"{}\", {}}}, ", p.source, p.index, p.name, u8::from(p.conditional));
        }
        out.push_str("{}};\n");
        let _ = writeln!(out, "static void mh_entry_{i}() {{ mh::enter<&{}>::run(mh_params_{i}); }}", e.expression);
    }
    out.push_str("extern \"C\" void mh_derive_constants() {\n");
    for (name, value) in &tables.derived {
        let _ = writeln!(out, "  {name} = {value};");
    }
    out.push_str("}\nextern \"C\" {\nextern const mh_constant mh_constants[] = {");
    for c in &tables.constants {
        let defined = defined_flag(&c.qualified);
        let _ = write!(out, "mh::constant(({}), &{}, &{defined}, \"{}\"), ", c.index, c.qualified, c.name);
    }
    let _ = writeln!(out, "{{}}}};\nextern const uint32_t mh_constant_count = {};", tables.constants.len());
    out.push_str("extern const mh_kernel mh_kernels[] = {");
    for (i, e) in tables.entries.iter().enumerate() {
        let max = e.function.max_threads.as_deref().unwrap_or("0");
        let count = e.function.params.len();
        let _ = write!(out, "\n  {{\"{}\", mh_entry_{i}, mh_params_{i}, {count}, ({max})}},", e.host_name);
    }
    let _ = writeln!(out, "{{}}}};\nextern const uint32_t mh_kernel_count = {};\n}}", tables.entries.len());
}

/// The variable that says whether a function constant was given a value.
pub(super) fn defined_flag(name: &str) -> String {
    match name.rsplit_once("::") {
        Some((path, last)) => format!("{path}::mh_defined_{last}"),
        None => format!("mh_defined_{name}"),
    }
}
