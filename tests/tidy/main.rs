//! What the house says of itself is true: the layers that `lib.rs` draws are those of the code.

mod dependencies;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longer lines of documentation are not read to their end. The mark before them is not in it.
const DOC_COLUMNS_MAX: usize = 100;

/// What reaches the clock, the one way that is not by [`ringest::clock`].
const CLOCKS: [&str; 2] = ["src/clock.rs", "src/log.rs"];

/// Files of the library with the room that they are in: the module below the root.
fn files_by_room() -> Vec<(String, PathBuf)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut directories = vec![src.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let inside = path.strip_prefix(&src).unwrap();
            let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
            let room = first.strip_suffix(".rs").unwrap_or(first).to_owned();
            let is_source = path.extension().is_some_and(|extension| extension == "rs");
            if is_source && room != "lib" && room != "main" {
                files.push((room, path));
            }
        }
    }
    files.sort();
    files
}

/// The picture in `lib.rs`: rooms by row, the highest row first. A name that is written before
/// three blanks or at a line's beginning is a room's, up to the words that explain it.
fn rows() -> Vec<Vec<String>> {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    let source = source.unwrap();
    let picture = source.split("//! # Layers").nth(1).unwrap();
    let picture = picture.split("//! ```").nth(1).unwrap();
    let lines = picture.lines().filter_map(|line| line.strip_prefix("//! "));
    let lines = lines.filter(|line| !line.trim().is_empty() && *line != "text");
    let rooms = |line: &str| {
        let names = line.split_at(line.len().min(ROOMS_COLUMNS)).0;
        names.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    lines.map(rooms).filter(|row| !row.is_empty()).collect()
}

/// Where the picture's words begin.
const ROOMS_COLUMNS: usize = 26;

/// The lines of a file that are built without tests.
fn lines_of_code(path: &Path) -> Vec<(usize, String)> {
    let source = fs::read_to_string(path).unwrap();
    let code = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let lines = code.lines().enumerate().filter(|(_, line)| is_code(line));
    lines.map(|(index, line)| (index + 1, line.to_owned())).collect()
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.file_stem().is_some_and(|stem| stem == "tests")
}

/// The rooms that code names, with the numbers of the lines: `crate::room`, or each in
/// `crate::{room::..., room::{...}}`, over however many lines.
fn rooms_in(lines: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut depth: usize = 0;
    for (number, line) in lines {
        let mut rest = line.as_str();
        while !rest.is_empty() {
            if depth == 0 {
                let Some((_, after)) = rest.split_once("crate::") else { break };
                rest = after;
                if let Some(list) = rest.strip_prefix('{') {
                    (depth, rest) = (1, list);
                } else {
                    found.push((*number, name_at(rest)));
                }
                continue;
            }
            // At the first depth of a list stand rooms, each before what is used of it.
            let end = rest.find(['{', '}', ',']).unwrap_or(rest.len());
            let (item, mark) = rest.split_at(end);
            if depth == 1 {
                found.push((*number, name_at(item.trim_start())));
            }
            match mark.chars().next() {
                Some('{') => depth += 1,
                Some('}') => depth -= 1,
                _ => {}
            }
            rest = mark.get(1..).unwrap_or_default();
        }
    }
    found.retain(|(_, room)| !room.is_empty());
    found
}

fn name_at(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn rooms_are_found_in_lists_of_several_lines() {
    let code =
        "use crate::{a, b::c};\nuse crate::{\n    d::{e, f},\n    g,\n};\nlet x = crate::h::i();";
    let lines: Vec<_> = (1..).zip(code.lines().map(str::to_owned)).collect();
    let rooms = rooms_in(&lines);
    let rooms: Vec<_> = rooms.iter().map(|(line, room)| (*line, room.as_str())).collect();
    assert_eq!(rooms, [(1, "a"), (1, "b"), (3, "d"), (4, "g"), (6, "h")]);
}

#[test]
fn no_room_uses_one_that_stands_above_or_beside_it() {
    let rows = rows();
    let rank: BTreeMap<&str, usize> = rows
        .iter()
        .enumerate()
        .flat_map(|(rank, row)| row.iter().map(move |room| (room.as_str(), rank)))
        .collect();
    assert!(rank.len() > 15, "the picture was not found: {rows:?}");
    let mut faults = Vec::new();
    let mut arrows = 0;
    for (room, path) in files_by_room() {
        let Some(own) = rank.get(room.as_str()) else {
            faults.push(format!("{} is in no row of lib.rs' picture", path.display()));
            continue;
        };
        if is_test(&path) {
            continue;
        }
        let used = rooms_in(&lines_of_code(&path));
        for (number, used) in used.into_iter().filter(|(_, used)| *used != room) {
            arrows += 1;
            if rank.get(used.as_str()).is_none_or(|rank| rank <= own) {
                faults.push(format!("{}:{number}: {room} uses {used}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(arrows > 300, "{arrows} uses found");
}

#[test]
fn every_room_of_the_picture_is_there() {
    let rooms: Vec<String> = files_by_room().into_iter().map(|(room, _)| room).collect();
    for room in rows().concat() {
        assert!(rooms.contains(&room), "{room} is drawn and does not exist");
    }
}

#[test]
fn lines_of_documentation_can_be_read() {
    let mut faults = Vec::new();
    for (_, path) in files_by_room() {
        let source = fs::read_to_string(&path).unwrap();
        for (index, line) in source.lines().enumerate() {
            let Some(text) = line.trim_start().strip_prefix("//") else { continue };
            let indent = line.len() - line.trim_start().len();
            let text = text.trim_start_matches(['/', '!']);
            // Neither an address nor a row of a table can be broken.
            let is_whole = text.contains("://") || text.trim_start().starts_with('|');
            if !is_whole && indent + text.chars().count() > DOC_COLUMNS_MAX + 1 {
                faults.push(format!("{}:{}", path.display(), index + 1));
            }
        }
    }
    assert!(faults.is_empty(), "over {DOC_COLUMNS_MAX} columns: {faults:#?}");
}

/// Whether a path begins with `name` somewhere in the line.
fn names(line: &str, name: &str) -> bool {
    let is_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name).any(|(at, _)| !line[..at].ends_with(is_of_word))
}

#[test]
fn storage_reaches_the_disk_by_its_door_and_nobody_else_asks_the_clock() {
    let mut faults = Vec::new();
    for (room, path) in files_by_room().into_iter().filter(|(_, path)| !is_test(path)) {
        let is_storage = matches!(room.as_str(), "tsdb" | "multi_tsdb");
        let has_clock = CLOCKS.iter().any(|clock| path.ends_with(clock));
        for (number, line) in lines_of_code(&path) {
            let past_the_door = is_storage
                && ["std::fs", "fs::", "File::open"]
                    .iter()
                    .any(|name| names(&line, name) && !line.contains("rustix::fs"));
            let past_the_clock = !has_clock && line.contains("SystemTime::now");
            // It takes an error for absence.
            let guesses = line.contains(".exists()");
            if past_the_door || past_the_clock || guesses {
                faults.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
