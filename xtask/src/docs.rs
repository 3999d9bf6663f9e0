//! Checks the documents: the files and headings of their links, and our own commands in them.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap::error::ErrorKind;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::{Subcommand, workspace};

/// The checked parts of a document.
struct Document {
    path: PathBuf,
    links: Vec<String>,
    /// GitHub's anchors of the headings.
    anchors: Vec<String>,
    /// All code, inline and in blocks.
    code: Vec<String>,
}

/// The documents at the root and in `docs`.
fn documents() -> Vec<Document> {
    let folders = [workspace::root().to_owned(), workspace::root().join("docs")];
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).expect("a folder"));
    let paths = files.map(|file| file.expect("a file").path());
    let documents: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "md")).map(read).collect();
    assert!(documents.len() >= 5, "found {} documents", documents.len());
    documents
}

fn read(path: PathBuf) -> Document {
    let text = fs::read_to_string(&path).expect("a document");
    let mut document = Document { path, links: Vec::new(), anchors: Vec::new(), code: Vec::new() };
    let (mut heading, mut block) = (None, None);
    for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. }) => document.links.push(dest_url.into_string()),
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                document.anchors.extend(heading.take().map(|text| anchor(&text)))
            }
            Event::Start(Tag::CodeBlock(_)) => block = Some(String::new()),
            Event::End(TagEnd::CodeBlock) => document.code.extend(block.take()),
            Event::Text(text) if block.is_some() => block.as_mut().expect("inside").push_str(&text),
            Event::Text(text) => heading.iter_mut().for_each(|heading| heading.push_str(&text)),
            Event::Code(text) => {
                heading.iter_mut().for_each(|heading| heading.push_str(&text));
                document.code.push(text.into_string());
            }
            _ => {}
        }
    }
    document
}

/// GitHub's anchor of a heading: lower case, hyphens for spaces, no punctuation.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The error of a link, if it is broken.
fn broken(link: &str, from: &Document, documents: &[Document]) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, fragment) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let folder = from.path.parent().unwrap_or(Path::new("."));
    let target = if file.is_empty() { from.path.clone() } else { folder.join(file) };
    let Ok(target) = target.canonicalize() else {
        return Some(format!("{} links to {link}: there is no such file", from.path.display()));
    };
    let to = documents.iter().find(|other| other.path.canonicalize().is_ok_and(|path| path == target));
    match (fragment, to) {
        (None, _) => None,
        (Some(anchor), Some(to)) if to.anchors.iter().any(|known| known == anchor) => None,
        (Some(_), _) => Some(format!("{} links to {link}: there is no such heading", from.path.display())),
    }
}

/// The words of every `cargo xtask …` in a piece of code.
fn commands(code: &str) -> impl Iterator<Item = Vec<&str>> {
    code.lines().filter_map(|line| {
        let (_, rest) = line.split_once("cargo xtask")?;
        // These characters start a comment, a redirection, or another command.
        let end = rest.find(['#', ';', '|', '&', '<', '>', ')', '…', '`', '"']).unwrap_or(rest.len());
        Some(rest[..end].split_whitespace().collect())
    })
}

#[test]
fn every_link_resolves() {
    let documents = documents();
    let links = documents.iter().flat_map(|from| from.links.iter().map(move |link| (link, from)));
    let found: Vec<_> = links.filter_map(|(link, from)| broken(link, from, &documents)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_xtask_command_in_a_document_is_valid() {
    let mut seen = 0;
    for document in documents() {
        for words in document.code.iter().flat_map(|code| commands(code)) {
            let line = [&["cargo xtask"], words.as_slice()].concat();
            if let Err(error) = Subcommand::command().try_get_matches_from(&line) {
                let is_help = [ErrorKind::DisplayHelp, ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand];
                let (path, line) = (document.path.display(), line.join(" "));
                assert!(is_help.contains(&error.kind()), "{path}: `{line}`: {error}");
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "found {seen} commands");
}

#[test]
fn missing_files_headings_and_commands_are_detected() {
    let documents = documents();
    let readme = documents.iter().find(|document| document.path.ends_with("README.md")).expect("README.md");
    for link in ["docs/nowhere.md", "#nowhere", "docs/testing.md#nowhere", "src/lib.rs#L3"] {
        assert!(broken(link, readme, &documents).is_some(), "{link}");
    }
    for link in ["#try-it", "docs/operating.md#reasons", "xtask", "https://example.org/nowhere"] {
        assert_eq!(broken(link, readme, &documents), None, "{link}");
    }
    let words = commands("XTASK=1 cargo xtask test e2e -- x  # why\nls\n`cargo xtask demo`");
    assert_eq!(words.collect::<Vec<_>>(), [vec!["test", "e2e", "--", "x"], vec!["demo"]]);
    for line in [["", "demos", ""], ["", "demo", "--wtch"], ["", "test", "e3e"]] {
        let error = Subcommand::command().try_get_matches_from(line).expect_err("no such command");
        assert_ne!(error.kind(), ErrorKind::DisplayHelp, "{line:?}");
    }
}
