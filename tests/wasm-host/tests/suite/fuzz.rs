//! A fixed number of callback sequences, the same in every run, and the kept sequences.

use wasm_host::fuzz;

/// About ten seconds on one slow core.
const INPUTS: u64 = 250;

#[test]
fn arbitrary_sequences_of_callbacks_never_trap_and_every_request_is_answered() {
    let mut total = fuzz::Summary::default();
    for index in 0..INPUTS {
        match fuzz::run_sequence(&fuzz::input(7, index)) {
            Ok(summary) => total.add(&summary),
            Err(text) => panic!("{text}\ncargo run -p wasm-host -- fuzz --seed 7 --from {index} --inputs 1"),
        }
    }
    println!("{total:#?}");
    // The sequences reach the intended code.
    assert!(total.count("requests") > INPUTS * 2, "{total:?}");
    assert!(total.count("answered") > INPUTS / 4 && total.count("forwarded") > INPUTS / 4, "{total:?}");
    assert!(total.count("refused") > INPUTS / 50 && total.count("failed_calls") > INPUTS / 50, "{total:?}");
    assert!(total.count("connections") > INPUTS / 10, "{total:?}");
}

#[test]
fn kept_sequences_do_not_fail() {
    let files = std::fs::read_dir(fuzz::corpus_path()).expect("the corpus");
    let mut count = 0;
    for file in files.map(|entry| entry.expect("an entry").path()) {
        let bytes = std::fs::read(&file).expect("a file of the corpus");
        if let Err(text) = fuzz::run_sequence(&bytes) {
            panic!("{}: {text}", file.display());
        }
        count += 1;
    }
    assert!(count > 0, "the corpus is empty");
}
