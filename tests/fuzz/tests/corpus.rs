//! Every input that is kept.

use fuzz::{corpus, shipped, targets};

#[test]
fn every_property_holds_for_the_corpus() {
    for target in targets::ALL {
        let files =
            corpus(*target).into_iter().flat_map(|folder| std::fs::read_dir(folder).expect("a folder"));
        let mut count = 0;
        for path in files.map(|file| file.expect("a file").path()) {
            println!("{}: {}", target.name, path.display());
            (target.check)(&std::fs::read(path).expect("a readable file"));
            count += 1;
        }
        assert!(count > 0, "{} has no corpus", target.name);
        shipped(*target).iter().for_each(|input| (target.check)(input));
    }
}
