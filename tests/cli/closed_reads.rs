//! Taking the place of `thanos receive` opens nothing: where another listener asks for certificates,
//! the HTTP port, which cannot, shows neither data nor tenants.

use crate::support::certificates::Authority;
use crate::support::http::{Request, ask};
use crate::support::node::Node;

#[test]
fn reads_are_closed_where_writers_need_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let ca = dir.path().join("ca.crt");
    authority.write(&ca);
    let (cert, key) = authority.issue(dir.path(), "127.0.0.1");
    let flag = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    for listener in ["grpc-server-tls", "remote-write.server-tls"] {
        for is_open in [false, true] {
            let data = dir.path().join(format!("{listener}-{is_open}"));
            let mut flags = vec![
                flag("tsdb.path", &data),
                "--label=a=\"b\"".to_owned(),
                flag(&format!("{listener}-cert"), &cert),
                flag(&format!("{listener}-key"), &key),
                flag(&format!("{listener}-client-ca"), &ca),
            ];
            if is_open {
                flags.extend(["--http.open-reads".to_owned(), "--no-receive.capnproto".to_owned()]);
            }
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let receiver = Node::launch_with(&flags);
            let address = receiver.address("http/server");
            let said = if is_open { "--http.open-reads:" } else { "answer 403" };
            let line = receiver.line_with(&["level=warn", said]);
            assert!(line.contains(&format!("--{listener}-client-ca")), "{line}");
            let status = |method, path| {
                let mut request = Request::new(method, path);
                request.body = (method == "POST").then(|| b"\x00".to_vec());
                let answer = ask(&address, &request);
                (answer.status, answer.text())
            };
            for (method, path) in
                [("POST", "/api/v1/read"), ("GET", "/api/v1/ring"), ("POST", "/api/v1/ring/take")]
            {
                let (status, text) = status(method, path);
                assert_eq!(status == 403, !is_open, "{method} {path}: {status} {text}");
                assert_eq!(text.contains("--http.open-reads"), !is_open, "{text}");
            }
            // What holds no data is open in any case.
            for path in ["/-/healthy", "/metrics"] {
                assert_eq!(status("GET", path).0, 200, "{path}");
            }
            let capnproto = "service=capnproto/server";
            if is_open {
                for service in ["gRPC/server", "remote-write/server"] {
                    receiver.address(service);
                }
                assert!(!receiver.lines().iter().any(|line| line.contains(capnproto)));
            } else {
                receiver.line_with(&[capnproto, "address="]);
            }
            let advised = receiver.lines().iter().any(|line| {
                line.contains("level=warn") && line.contains("--no-receive.capnproto closes it")
            });
            assert_eq!(advised, !is_open && listener == "grpc-server-tls");
        }
    }
}
