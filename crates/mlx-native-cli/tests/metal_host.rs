//! `mlxn` on the Metal kernels, run by metal-host.
#![cfg(feature = "metal-host")]

mod support;

use support::{error_of, folder, mlxn, stdout_of};

#[test]
fn selftest_runs_the_kernels() {
    let cache = folder("metal-host-selftest");
    let args = ["selftest", "--device", "metal-host", "--filter", "matmul/Q4_K", "--verbose"];
    let out = stdout_of(&mut mlxn(&cache, &args));
    for words in ["[Auto, batch_invariant]", "mv_r1", "mm_f32", " passed, 0 failed"] {
        assert!(out.contains(words), "{words}: {out}");
    }
}

#[test]
fn parts_have_numbers_from_one() {
    let cache = folder("metal-host-parts");
    let args = |part| ["selftest", "--device", "metal-host", "--filter", "softmax", "--shard", part];
    assert!(stdout_of(&mut mlxn(&cache, &args("2/2"))).contains(" passed, 0 failed"));
    assert!(
        error_of(&mut mlxn(&cache, &["selftest", "--device", "metal-host", "--filter", "nothing"])).contains("nothing")
    );
    for part in ["0/2", "3/2", "1", "a/b"] {
        let out = mlxn(&cache, &args(part)).output().expect("mlxn starts");
        assert_eq!(out.status.code(), Some(2), "{part}");
    }
}
