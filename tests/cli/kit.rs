//! That the suites' own kit says what went wrong.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use rustix::process::Signal;

use crate::support::process::{Ends, Process, wait_for};
use crate::support::same::assert_same;

/// The words of the panic that this ends in.
fn panic_of(test: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(test)).expect_err("a panic");
    panic.downcast_ref::<String>().expect("words").clone()
}

fn start(script: &str, ends: Ends) -> (Process, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    (Process::start("the server", &mut command, &dir.path().join("log"), ends), dir)
}

#[test]
fn a_death_is_noticed_by_whatever_is_waited_for_and_its_log_is_shown() {
    let (_process, _dir) = start("echo no luck; exit 7", Ends::WhenTold);
    // One that came to its own end would not panic.
    let words = panic_of(|| assert!(wait_for(|| None::<()>).is_none()));
    assert!(words.contains("the server has ended by itself with 7: no luck"), "{words}");
}

#[test]
fn an_end_that_was_asked_for_is_no_death() {
    let (server, _dir) = start("exec sleep 1000", Ends::WhenTold);
    let (sender, _dir) = start("exit 0", Ends::WhenDone);
    server.signal(Signal::TERM);
    let have_ended = || (server.exited().is_some() && sender.exited().is_some()).then_some(());
    assert!(wait_for(have_ended).is_some());
    let mut looks = 0;
    wait_for(|| {
        looks += 1;
        (looks == 3).then_some(())
    });
    assert_eq!((server.wait_exit(), sender.wait_exit()), (Some(-15), Some(0)));
}

#[test]
fn of_much_that_is_compared_the_difference_is_shown() {
    let of = |entries: &[(&str, i64)]| -> BTreeMap<String, Vec<i64>> {
        entries
            .iter()
            .map(|(name, last)| {
                ((*name).to_owned(), vec![7; 1000].into_iter().chain([*last]).collect())
            })
            .collect()
    };
    let expected = of(&[("a", 1), ("b", 2), ("c", 3)]);
    assert_same("all", &expected, &expected);
    let found = of(&[("a", 1), ("b", 8), ("d", 4)]);
    let words = panic_of(|| assert_same("all", &found, &expected));
    assert!(words.starts_with("all: 3 differences of 3 entries and 3 expected ones:"), "{words}");
    for part in ["\"c\" is missing", "\"d\" is not expected", "7, 8]…, expected", "7, 2]…"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert!(words.len() < 1000, "{} bytes", words.len());
}
