//! `ringest load` where there is nobody to send to.

use std::net::TcpListener;

use crate::program::{run, words};

#[test]
fn who_sends_to_nobody_is_told_at_once_and_gets_a_summary() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("--url=http://127.0.0.1:{port}");
    let read_url = format!("--read-url=http://127.0.0.1:{port}/api/v1/read");
    let line = ["load", &url, &read_url, "--rounds=1", "--series=10", "--retry-for=1s", "--verify"];
    let output = run(&words(&line));
    let (said, told) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.starts_with("ringest load: trying again: Connection refused"), "{told}");
    // Reading back fails as well, after what is known of the sending was told.
    assert!(said.contains("connection errors") && !said.contains("verified"), "{said}");
    assert!(told.contains("remote read at http://127.0.0.1"), "{told}");
}
