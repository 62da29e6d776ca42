//! What a reader relies on in the tree itself: files of one idea, citations and links that lead
//! somewhere, and no test that was switched off.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines, tests included.
const LINES_MAX: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn find(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && name != ".git" && name != "corpus" {
                find(&path, ending, found);
            }
        } else if path.extension().is_some_and(|found| found == ending) {
            found.push(path);
        }
    }
}

/// Every file of the repository with that ending, with its text.
fn all(ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    find(&root(), ending, &mut found);
    assert!(!found.is_empty(), "no .{ending} file found: looking in the wrong place?");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a UTF-8 file");
        (path, text)
    };
    found.into_iter().map(read).collect()
}

#[test]
fn no_source_file_has_outgrown_its_idea() {
    for (path, text) in all("rs") {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines: split it by idea", path.display());
    }
}

#[test]
fn no_test_is_switched_off() {
    let switched_off = concat!("#[", "ignore");
    for (path, text) in all("rs") {
        assert!(!text.contains(switched_off), "{} switches a test off", path.display());
    }
}

#[test]
fn every_rule_that_code_cites_stands_in_the_specification() {
    let documents = [
        ("sleeve", 'S'),
        ("control", 'C'),
        ("gossip", 'G'),
        ("ipam", 'I'),
        ("fastpath", 'F'),
        ("quic", 'Q'),
        ("kubernetes", 'K'),
        ("names", 'N'),
        ("guard", 'P'),
        ("services", 'V'),
    ];
    let specifications =
        documents.map(|(name, _)| fs::read_to_string(root().join(format!("docs/{name}.md"))).unwrap_or_default());
    let mut cited = documents.map(|_| 0);
    for (path, text) in all("rs") {
        for (((document, letter), specification), cited) in documents.iter().zip(&specifications).zip(&mut cited) {
            for (at, _) in text.match_indices(&format!("({document} {letter}")) {
                let rest = text[at + document.len() + 2..].chars();
                let rule: String = rest.take_while(char::is_ascii_alphanumeric).collect();
                *cited += 1;
                assert!(
                    specification.contains(&format!("**{rule}.")),
                    "{} cites {document} {rule}, which docs/{document}.md does not state",
                    path.display()
                );
            }
        }
    }
    assert!(cited.iter().all(|count| *count > 0), "no citation of some document: has their form changed? {cited:?}");
}

#[test]
fn every_test_that_the_documents_name_exists() {
    let text = fs::read_to_string(root().join("docs/testing.md")).expect("docs/testing.md");
    let (_, section) = text.split_once("## What is shown").expect("the table of what is shown");
    let rows = section.lines().take_while(|line| !line.starts_with("## Fuzzing")).filter(|line| line.starts_with("| "));
    let sources = all("rs");
    let (mut named, mut missing) = (0, Vec::new());
    for cell in rows.skip(1).filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | ")).map(|(_, tests)| tests) {
        // Every second piece is between back quotes; commands among them have spaces.
        for name in cell.split('`').skip(1).step_by(2).filter(|name| !name.contains([' ', '-'])) {
            let (group, test) = name.split_once("::").unwrap_or(("", name));
            let (case, function) = (format!("(\"{test}\","), format!("fn {test}("));
            let exists = sources.iter().any(|(path, text)| {
                let right = group.is_empty() || path.ends_with(format!("e2e/{group}.rs"));
                right && (text.replace("(\n        \"", "(\"").contains(&case) || text.contains(&function))
            });
            named += 1;
            if !exists {
                missing.push(name.to_owned());
            }
        }
    }
    assert!(
        named > 30 && missing.is_empty(),
        "of {named} tests that docs/testing.md names, these do not exist: {missing:?}"
    );
}

#[test]
fn the_systemd_unit_grants_what_the_documents_say_the_router_uses() {
    let unit = fs::read_to_string(root().join("packaging/weft.service")).expect("the unit");
    let granted = |key: &str| -> BTreeSet<&str> {
        let value = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("the unit has no {key}")).split_whitespace().collect()
    };
    let running = fs::read_to_string(root().join("docs/running.md")).expect("docs/running.md");
    let rows = running.lines().filter(|line| line.starts_with("| "));
    // Every second piece is between back quotes.
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let documented: BTreeSet<&str> = words.filter(|word| word.starts_with("CAP_")).collect();
    assert_eq!(granted("CapabilityBoundingSet"), documented);
    // The API; the underlay; the kernel's tables and links; the fast path's tap and guard.
    let families = BTreeSet::from(["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"]);
    assert_eq!(granted("RestrictAddressFamilies"), families);
    // A family that somebody opens by name is among them. (The lab is no part of the router.)
    for (path, text) in all("rs").iter().filter(|(path, _)| path.starts_with(root().join("src"))) {
        for (at, _) in text.match_indices("socket(libc::AF_") {
            let rest = text[at + "socket(libc::".len()..].chars();
            let family: String = rest.take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let lab = path.starts_with(root().join("src/lab"));
            assert!(lab || families.contains(family.as_str()), "{} opens {family}", path.display());
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for (path, text) in all("md") {
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let folder = path.parent().expect("a file has a folder");
            assert!(folder.join(target).exists(), "{} links to {target}, which is not there", path.display());
        }
    }
}
