use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;

/// Keeps lines instead of writing them.
struct Kept {
    lines: LogLines,
    texts: Arc<Mutex<Vec<String>>>,
}

impl<S: Subscriber> Layer<S> for Kept {
    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        self.lines.enabled(metadata, context)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = self.lines.line(event);
        line.time = "T".to_owned();
        line.caller = "c.rs:1".to_owned();
        self.texts.lock().push(String::from_utf8(self.lines.encode(&line)).unwrap());
    }
}

fn config(level: LogLevel, format: LogFormat) -> LogConfig {
    LogConfig { level, format, debug_name: None }
}

fn kept(config: &LogConfig, events: impl FnOnce()) -> Vec<String> {
    let texts: Arc<Mutex<Vec<String>>> = Arc::default();
    let queue = Arc::new(LineQueue::start(Box::new(|_| Ok(()))).unwrap());
    let layer = Kept { lines: LogLines::new(config, queue), texts: Arc::clone(&texts) };
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, events);
    std::mem::take(&mut *texts.lock())
}

#[test]
fn a_line_has_the_keys_of_thanos_in_their_order() {
    let mut config = config(LogLevel::Info, LogFormat::Logfmt);
    config.debug_name = Some("n".to_owned());
    let lines = kept(&config, || {
        tracing::warn!(tenant = "a b", numDropped = 3, err = %"x=\"1\"\n", "samples refused");
        tracing::info!(component = "multi-tsdb", reason = "", "open");
        tracing::debug!("not at this level");
    });
    let expected = [
        "ts=T caller=c.rs:1 name=n level=warn component=receive msg=\"samples refused\" \
         tenant=\"a b\" numDropped=3 err=\"x=\\\"1\\\"\\n\"\n",
        "ts=T caller=c.rs:1 name=n level=info component=receive component=multi-tsdb msg=open \
         reason=\n",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn json_has_sorted_keys_and_the_innermost_component() {
    let lines = kept(&config(LogLevel::Debug, LogFormat::Json), || {
        tracing::debug!(component = "multi-tsdb", count = 2, ok = true, "done");
    });
    let expected = "{\"caller\":\"c.rs:1\",\"component\":\"multi-tsdb\",\"count\":2,\
                    \"level\":\"debug\",\"msg\":\"done\",\"ok\":true,\"ts\":\"T\"}\n";
    assert_eq!(lines, [expected]);
}

#[test]
fn libraries_are_heard_by_those_who_debug_and_when_they_fail() {
    let lines = kept(&config(LogLevel::Debug, LogFormat::Logfmt), || {
        tracing::info!(target: "hyper::proto", "chatter");
        tracing::warn!(target: "hyper::proto", "trouble");
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    for level in [LogLevel::Info, LogLevel::Warn] {
        let lines = kept(&config(level, LogFormat::Logfmt), || {
            tracing::warn!(target: "h2::proto::streams", "locally-reset streams reached limit");
            tracing::error!(target: "h2::proto", "trouble");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
    let lines = kept(&config(LogLevel::Error, LogFormat::Logfmt), || {
        tracing::warn!(target: "hyper::proto", "trouble");
    });
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn components_follow_from_modules() {
    assert_eq!(component_of("ringest::write::admission"), Some("receive-limiter"));
    assert_eq!(component_of("ringest::write::local"), Some("receive-writer"));
    assert_eq!(component_of("ringest::writer"), None);
    assert_eq!(component_of("ringest::app"), None);
    assert!(is_outside_receiver("ringest"));
    assert!(!is_outside_receiver("ringest::app"));
}

#[test]
fn control_characters_cannot_forge_a_line() {
    let mut text = String::new();
    push_logfmt_value(&mut text, "a\nlevel=info\u{1b}\\\t");
    assert_eq!(text, "\"a\\nlevel=info\\u001b\\\\\\t\"");
}

#[test]
fn the_journal_gets_one_datagram_per_event() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    assert!(Journal::connect(&path).is_none());
    let socket = UnixDatagram::bind(&path).unwrap();
    let journal = Journal::connect(&path).unwrap();
    let queue = LineQueue::start(Box::new(move |entry| journal.send(entry))).unwrap();
    let config = config(LogLevel::Info, LogFormat::Journald);
    let lines = LogLines::new(&config, Arc::new(queue));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
        tracing::warn!(defaultTenantID = "t", err = "a\nb", "m");
    });
    let mut datagram = [0; 4096];
    let n = socket.recv(&mut datagram).unwrap();
    let text = String::from_utf8_lossy(&datagram[..n]);
    assert!(text.starts_with("MESSAGE=m\nPRIORITY=4\n"), "{text}");
    assert!(text.contains("\nTHANOS_COMPONENT=receive\nTHANOS_DEFAULTTENANTID=t\n"), "{text}");
    assert!(text.ends_with("THANOS_ERR\n\u{3}\0\0\0\0\0\0\0a\nb\n"), "{text}");
}
