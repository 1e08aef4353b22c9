//! Turns preprocessed MSL into C++ for the host compiler.
//!
//! Address spaces and attributes have no meaning to the host: they are read here and then blanked, line by line, so that
//! positions stay what they were. What is left is C++ plus a table of kernels, each with an entry that fetches the
//! kernel's arguments for the running thread.

mod emit;
mod lexer;
mod rewrite;
mod scan;

use std::fmt;

/// Why a text cannot be translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TranslateError {
    /// `file:line`
    pub location: String,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for TranslateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.message)
    }
}

/// One parameter of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Param {
    /// Name of the `mh_source` enumerator.
    source: &'static str,
    /// A C++ constant expression: the buffer or threadgroup index.
    index: String,
    name: String,
    conditional: bool,
}

/// A kernel as written: the parameters of a function or of a function template.
#[derive(Debug, Clone, Default)]
struct KernelFunction {
    params: Vec<Param>,
    max_threads: Option<String>,
}

/// A kernel that can be dispatched.
#[derive(Debug, Clone)]
struct Entry {
    host_name: String,
    /// What the entry takes the address of: `ns::name<arguments>`.
    expression: String,
    function: KernelFunction,
}

/// A function constant, `index` being a C++ expression.
#[derive(Debug, Clone)]
struct Constant {
    index: String,
    name: String,
    qualified: String,
}

/// Everything that the tables at the end of the C++ text are made of.
#[derive(Debug, Default)]
struct Tables {
    entries: Vec<Entry>,
    constants: Vec<Constant>,
    /// Constants computed from function constants, in order: qualified name and initialiser.
    derived: Vec<(String, String)>,
}

/// Translates preprocessed MSL to a C++ translation unit.
///
/// # Errors
/// Unbalanced brackets, a kernel parameter whose attribute is missing or not supported, an instantiation of a template
/// that is not a kernel.
pub(crate) fn translate(preprocessed: &str) -> Result<String, TranslateError> {
    let tokens = lexer::Tokens::new(preprocessed)?;
    let (tables, edits) = scan::scan(&tokens)?;
    Ok(emit::emit(&tokens, &tables, edits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpp(msl: &str) -> String {
        translate(msl).unwrap()
    }

    #[test]
    fn address_spaces_and_attributes_go() {
        let out = cpp("[[kernel]] void f(device const float* x [[buffer(2)]], constant uint& n [[buffer(0)]], \
                       uint3 t [[thread_position_in_grid]]) {}");
        assert!(!out.contains("device") && !out.contains("[[buffer"), "{out}");
        assert!(out.contains("const uint& n"), "{out}");
        for entry in
            ["{MH_BUFFER, (2), \"x\", 0}", "{MH_BUFFER, (0), \"n\", 0}", "{MH_THREAD_POSITION_IN_GRID, (0), \"t\", 0}"]
        {
            assert!(out.contains(entry), "{entry} in {out}");
        }
    }

    #[test]
    fn host_names_of_instantiations() {
        let out = cpp("template <typename T, int N> [[kernel]] void g(device T* x [[buffer(0)]]) {}\n\
                       template [[host_name(\"g_\" \"float_4\")]] [[kernel]] void g<float, 4>(device float*);\n\
                       template [[host_name(\"g_half\")]] [[kernel]] decltype(g<half, 2>) g<half, 2>;");
        assert!(out.contains("\"g_float_4\"") && out.contains("&g<float , 4>"), "{out}");
        assert!(out.contains("\"g_half\"") && out.contains("&g<half , 2>"), "{out}");
    }

    #[test]
    fn kernel_scope_threadgroup_memory_moves_to_the_arena() {
        let out = cpp(
            "kernel void f(device float* x [[buffer(0)]]) { threadgroup float a[4], b[2][8]; threadgroup float* p = a; p[0] = b[0][0]; }",
        );
        assert_eq!(out.matches("mh_threadgroup_variable").count(), 2, "{out}");
        assert!(out.contains("typedef float mh_type_b[2][8]"), "{out}");
    }

    #[test]
    fn overloads_that_differ_in_address_space_are_merged() {
        let out = cpp(
            "float get(device const float* p) { return *p; }\nfloat get(threadgroup const float* q) { return *q; }\n\
                       float get(constant int* q) { return *q; }",
        );
        assert_eq!(out.matches("float get").count(), 2, "{out}");
    }

    #[test]
    fn function_constants_and_what_is_computed_from_them() {
        let out = cpp(
            "constant bool fast [[function_constant(3)]];\nconstant int width [[function_constant(1 + 1)]];\n\
                       constant bool wide = is_function_constant_defined(width) ? width > 4 : false;\nconstant int table[2] = {1, 2};\n\
                       kernel void f() {}",
        );
        assert!(out.contains("mh::constant((3), &fast, &mh_defined_fast, \"fast\")"), "{out}");
        assert!(out.contains("mh::constant((1 + 1), &width"), "{out}");
        assert!(out.contains("wide = mh_defined_width ? width > 4 : false"), "{out}");
        assert!(out.contains("const int table[2]"), "{out}");
    }

    #[test]
    fn range_initialisers_become_loops() {
        let out = cpp("kernel void f() { float s[4] = {[0 ... 3] = -1.0f}; int t[2] = {1, 2}; }");
        assert!(out.contains("float s[4] ; for (auto& mh_each : s) mh_each = - 1.0f"), "{out}");
        assert!(out.contains("int t[2] = {1, 2};"), "{out}");
    }

    #[test]
    fn a_parameter_without_attribute_is_named() {
        let e = translate("# 7 \"x.metal\"\nkernel void f(uint n) {}").unwrap_err();
        assert_eq!(e.location, "x.metal:7");
        assert!(e.message.contains("`n`"), "{e}");
    }

    #[test]
    fn missing_buffer_indices_are_filled_in() {
        let out = cpp(
            "kernel void f(device float* a, device float* b [[buffer(0)]], constant int& c, threadgroup float* s) {}",
        );
        for entry in ["{MH_BUFFER, (1), \"a\"", "{MH_BUFFER, (2), \"c\"", "{MH_THREADGROUP_MEMORY, (0), \"s\""] {
            assert!(out.contains(entry), "{entry} in {out}");
        }
    }
}
