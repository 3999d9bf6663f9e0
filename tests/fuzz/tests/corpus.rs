//! The quick search of CI: every input that is kept, and a fixed number of others for each target.

use fuzz::search::{Until, search};
use fuzz::targets;

/// Inputs for each target, those of the corpus among them.
const INPUTS: u64 = 2_000;

#[test]
fn every_property_holds_for_the_corpus_and_for_what_a_fixed_seed_makes_of_it() {
    for target in targets::ALL {
        let name = target.name;
        match search(*target, 1, Until::Inputs(INPUTS)) {
            Ok(searched) => {
                assert!(searched.inputs >= INPUTS, "{name}");
                println!("{name}: {} inputs", searched.inputs);
            }
            Err(found) => panic!(
                "{name}, input {}: {}\n{}\nto repeat it, run\n  cargo run --package fuzz -- --target {name} --seed 1 \
                 --inputs {INPUTS}",
                found.number,
                found.message,
                found.input.escape_ascii()
            ),
        }
    }
}
