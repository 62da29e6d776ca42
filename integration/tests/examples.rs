//! The configuration file of the examples is one that a router takes, with every key there is.

use std::path::Path;

use weft::config::{Gathered, KEYS, Settings, gather};

const FILE: &str = include_str!("../../examples/weft.toml");

fn parse(text: &str) -> Settings {
    let gathered = gather(Gathered::new(), |_| None, Some((Path::new("weft.toml"), text)));
    let gathered = gathered.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    Settings::parse(&gathered, "this-host", Path::new("/")).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

/// The file with the keys that are off switched on.
fn all_on() -> String {
    FILE.lines().map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

#[test]
fn the_example_is_a_valid_configuration() {
    let settings = parse(FILE);
    assert_eq!(settings.peers, ["host1.example", "host2.example:6783"]);
    assert_eq!(settings.name, "this-host");
    assert!(settings.secret_file.is_some());
}

#[test]
fn every_key_of_the_example_may_be_switched_on() {
    let settings = parse(&all_on());
    assert_eq!(settings.name, "host1");
    assert_eq!(settings.advertise.len(), 1);
}

#[test]
fn the_example_has_every_key() {
    let text = all_on();
    for key in KEYS {
        let start = format!("{} = ", key.name);
        assert!(text.lines().any(|line| line.starts_with(&start)), "examples/weft.toml lacks `{}`", key.name);
    }
}
