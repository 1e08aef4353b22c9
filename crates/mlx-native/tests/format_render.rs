//! The rendered structs and codebooks, compiled as plain C++: sizes, offsets and values are those of the Rust side.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use mlx_native::GgmlType;
use mlx_native::format::ggml::codebooks::{TABLES, TableData};
use mlx_native::format::{Language, render};

/// What the languages have and C++ has not.
fn shim(language: Language) -> &'static str {
    match language {
        Language::Msl => "#define constant static const\ntypedef unsigned short half;\ntypedef unsigned long ulong;\n",
        Language::Cuda => "#define __device__\ntypedef unsigned short half;\n",
    }
}

/// A program that returns 0 when every struct and codebook is as the Rust side says.
fn program(language: Language) -> String {
    let types: Vec<GgmlType> = GgmlType::all().collect();
    let mut text = format!("#include <cstddef>\n{}{}", shim(language), render(language, &types));
    for format in types.iter().map(|ty| ty.block_format()).filter(|format| format.values > 1) {
        for field in format.fields {
            let (name, field, offset) = (format.struct_name, field.name, field.offset);
            writeln!(text, "static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");").unwrap();
        }
    }
    let mut checks = String::new();
    let mut check = |left: String, right: String| writeln!(checks, "    if ({left} != {right}) return 1;").unwrap();
    for table in &TABLES {
        let name = table.name;
        // Coordinate i of a point is the byte at i in memory too.
        let byte = |point, i| format!("((const signed char*)&{name}[{point}])[{i}]");
        match table.data {
            TableData::Scalar(value) => check(name.into(), format!("{value:?}f")),
            TableData::I8(values) => {
                values.iter().enumerate().for_each(|(i, x)| check(format!("{name}[{i}]"), x.to_string()));
            }
            TableData::U8(values) => {
                values.iter().enumerate().for_each(|(i, x)| check(format!("{name}[{i}]"), x.to_string()));
            }
            TableData::I8x4(points) => {
                for (point, x) in points.iter().enumerate().step_by(37) {
                    (0..4).for_each(|i| check(byte(point, i), x[i].to_string()));
                }
            }
            TableData::I8x8(points) => {
                for (point, x) in points.iter().enumerate().step_by(37) {
                    (0..8).for_each(|i| check(byte(point, i), x[i].to_string()));
                }
            }
        }
    }
    text + "int main() {\n" + &checks + "    return 0;\n}\n"
}

#[test]
fn rendered_text_means_the_same_in_cpp() {
    if Command::new("g++").arg("--version").output().is_err() {
        eprintln!("skipped: there is no g++ to compile the rendered text with");
        return;
    }
    for language in [Language::Msl, Language::Cuda] {
        let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("format_{language:?}.cpp"));
        let binary = source.with_extension("bin");
        std::fs::write(&source, program(language)).unwrap();
        let compiled = Command::new("g++")
            .args(["-std=c++17", "-Wall", "-Werror", "-Wno-unused-variable", "-o"])
            .args([&binary, &source])
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        assert!(Command::new(&binary).status().unwrap().success(), "{language:?}: a value differs");
    }
}

#[test]
fn each_piece_is_rendered_once() {
    let text = render(Language::Msl, &[GgmlType::IQ2_XXS, GgmlType::IQ2_XS, GgmlType::IQ2_XXS, GgmlType::F16]);
    assert_eq!(text.matches("struct ").count(), 2);
    assert_eq!(text.matches("EVEN_SIGNS[128]").count(), 1);
    assert!(render(Language::Cuda, &[GgmlType::F32]).is_empty());
}
