//! Replays every input that was worth keeping, without the fuzzer.

// A measurement or a test that panics has failed.
#![allow(clippy::restriction)]

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use nats_gateway_fuzz::TARGETS;

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn every_input_of_the_corpus() {
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        let inputs = files(&corpus().join(name));
        assert!(!inputs.is_empty(), "no corpus for {name}");
        for path in inputs {
            let bytes = fs::read(&path).expect("an input");
            // Every beginning of the input is replayed, too, because that is how most bytes arrive.
            if catch_unwind(|| (0..=bytes.len().min(64)).for_each(|end| target(&bytes[..end])))
                .and_then(|()| catch_unwind(|| target(&bytes)))
                .is_err()
            {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

#[test]
fn every_folder_has_a_target() {
    for path in files(&corpus()) {
        assert!(
            TARGETS.iter().any(|(name, _)| path.ends_with(name)),
            "{path:?}"
        );
    }
}
