//! `DELTARUN_TARGET=grammar cargo +nightly fuzz run target`: one of the targets of `targets.rs`.
#![no_main]

#[path = "../targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let name = std::env::var("DELTARUN_TARGET").unwrap_or("grammar".to_owned());
    let (_, target) = targets::TARGETS.iter().find(|(known, _)| *known == name).expect("a name of a target");
    let folder = tempfile::tempdir().expect("a folder to write to");
    target(bytes, folder.path());
});
