//! Reading Envoy's `/stats/prometheus`.

use std::collections::BTreeMap;

/// One line of the exposition: name, labels, value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

#[derive(Clone, Debug)]
pub struct Scrape(Vec<Sample>);

impl Scrape {
    /// Parses the text format. Label values of our metrics have no escapes.
    pub fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(parse_sample)
            .collect();
        Self(samples)
    }

    pub fn named(&self, name: &str) -> Vec<&Sample> {
        self.0.iter().filter(|s| s.name == name).collect()
    }

    pub fn starting_with(&self, prefix: &str) -> Vec<&Sample> {
        self.0.iter().filter(|s| s.name.starts_with(prefix)).collect()
    }

    /// The value of the sample with this name and all of these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fitting: Vec<_> = self
            .named(name)
            .into_iter()
            .filter(|sample| {
                labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
            })
            .collect();
        assert!(fitting.len() <= 1, "{name} {labels:?} fits {fitting:?}");
        fitting.first().map(|sample| sample.value)
    }
}

fn parse_sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.trim_end_matches('}')),
        None => (series, ""),
    };
    let labels = labels
        .split("\",")
        .filter(|label| !label.is_empty())
        .map(|label| {
            let (name, value) = label.split_once("=\"").expect("a label has a value");
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        })
        .collect();
    let value = match value.parse() {
        Ok(value) => value,
        Err(error) => panic!("{line:?}: {error}"),
    };
    Sample { name: name.to_owned(), labels, value }
}
