//! What is locked is what `deny.toml` allows. `cargo deny` knows more, and is not on every machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The texts in quotes of the list that follows `before`.
fn list(text: &str, before: &str) -> BTreeSet<String> {
    let list = text.split(before).nth(1).unwrap().split("\n]").next().unwrap();
    let lines = list.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.filter_map(|line| Some(line.split('"').nth(1)?.to_owned())).collect()
}

/// Whether one may choose allowed licences only. `and` binds tighter than `or`; `/` is an old `or`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (verdict, rest) = any_of(&words, allowed);
    verdict && rest.is_empty()
}

fn any_of<'w>(words: &'w [&'w str], allowed: &BTreeSet<String>) -> (bool, &'w [&'w str]) {
    let (mut verdict, mut rest) = all_of(words, allowed);
    while let ["OR", behind @ ..] = rest {
        let (other, behind) = all_of(behind, allowed);
        (verdict, rest) = (verdict | other, behind);
    }
    (verdict, rest)
}

fn all_of<'w>(words: &'w [&'w str], allowed: &BTreeSet<String>) -> (bool, &'w [&'w str]) {
    let (mut verdict, mut rest) = one(words, allowed);
    while let ["AND", behind @ ..] = rest {
        let (other, behind) = one(behind, allowed);
        (verdict, rest) = (verdict & other, behind);
    }
    (verdict, rest)
}

fn one<'w>(words: &'w [&'w str], allowed: &BTreeSet<String>) -> (bool, &'w [&'w str]) {
    match words {
        ["(", behind @ ..] => match any_of(behind, allowed) {
            (verdict, [")", rest @ ..]) => (verdict, rest),
            (_, rest) => (false, rest),
        },
        // What an exception allows beyond the licence is not needed.
        [license, "WITH", _, rest @ ..] | [license, rest @ ..] => {
            (allowed.contains(*license), rest)
        }
        [] => (false, words),
    }
}

#[test]
fn licences_are_judged_as_they_are_written() {
    let allowed = ["MIT", "ISC"].map(str::to_owned).into();
    for good in ["MIT", "X OR MIT", "X/ISC", "MIT AND (ISC OR X)", "X AND Y OR MIT", "MIT WITH X"] {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in ["X", "", "MIT AND X", "(X OR Y) AND MIT", "(MIT", "MIT X", "X WITH MIT"] {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}

#[test]
fn dependencies_have_licences_that_are_allowed() {
    let allowed = list(&file("deny.toml"), "\nallow = [");
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version=1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&metadata.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&metadata.stderr)));
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{} packages", packages.len());
    let faults: Vec<_> = packages
        .iter()
        .filter(|package| !is_allowed(package["license"].as_str().unwrap_or_default(), &allowed))
        .map(|package| format!("{}: {}", package["name"], package["license"]))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn what_is_banned_is_not_locked_and_all_comes_from_the_registry() {
    let (banned, lock) = (list(&file("deny.toml"), "\ndeny = ["), file("Cargo.lock"));
    assert!(banned.contains("openssl"), "{banned:?}");
    for name in banned {
        assert!(!lock.contains(&format!("\nname = \"{name}\"\n")), "{name} is locked");
    }
    let registry = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let others: Vec<_> =
        lock.lines().filter(|line| line.starts_with("source = ") && *line != registry).collect();
    assert!(others.is_empty(), "{others:?}");
}
