//! Every flag of `ringest receive`: those of `thanos receive` with the same name, grammar and
//! default, hidden ones included, then our own.
//!
//! No flag is taken and then ignored. One whose function is still to come is [`Support::NotYet`]:
//! its default is taken, any other value refused at start. Where no data is lost and no answer
//! changed until then it is [`Support::Awaited`]: taken, and the log says what does not happen yet.
//! One that steers something which only the original has is [`Support::NoMeaning`]: taken, and the
//! log says so.

use crate::config::command_line::{self, Value};

/// How a flag's value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `--name` or `--no-name`.
    Switch,
    Text,
    Path,
    /// Configuration given inline.
    Content,
    /// `host:port`, `:port` for all interfaces, or nothing for a free port on all interfaces.
    Address,
    /// `name="value"`
    Label,
    Int,
    Uint,
    Float,
    /// A size with a unit, a power of 1024.
    Bytes,
    DurationModel,
    DurationGo,
    Choice(&'static [&'static str]),
    /// `--name` or `--name=strict`
    Check,
}

/// Where a flag may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Before or after the command.
    Global,
    /// After `receive`.
    Receive,
}

/// What a flag does in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    Implemented,
    NotYet,
    /// Nothing yet, and nobody is worse off for it: what this version does instead.
    Awaited(&'static str),
    /// Nothing, ever, for this reason.
    NoMeaning(&'static str),
}

/// One flag.
#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    /// As it would be written; empty for none.
    pub default: &'static str,
    pub repeatable: bool,
    /// Left out of `--help`.
    pub hidden: bool,
    pub scope: Scope,
    pub support: Support,
    /// Ours, unknown to Thanos.
    pub own: bool,
    pub help: &'static str,
}

impl Flag {
    pub fn default_value(&self) -> Value {
        match command_line::parse_value(self.kind, self.default) {
            Ok(value) => value,
            Err(error) => unreachable!("the default of --{} parses: {error}", self.name),
        }
    }

    const fn hidden(self) -> Flag {
        Flag { hidden: true, ..self }
    }

    const fn global(self) -> Flag {
        Flag { scope: Scope::Global, ..self }
    }

    const fn repeatable(self) -> Flag {
        Flag { repeatable: true, ..self }
    }

    const fn not_yet(self) -> Flag {
        Flag { support: Support::NotYet, ..self }
    }

    const fn awaited(self, instead: &'static str) -> Flag {
        Flag { support: Support::Awaited(instead), ..self }
    }

    const fn no_meaning(self, why: &'static str) -> Flag {
        Flag { support: Support::NoMeaning(why), ..self }
    }

    const fn own(self) -> Flag {
        Flag { own: true, ..self }
    }
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        kind,
        default,
        repeatable: false,
        hidden: false,
        scope: Scope::Receive,
        support: Support::Implemented,
        own: false,
        help,
    }
}

const fn switch(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    flag(name, Kind::Switch, default, help)
}

/// Switches on or off by default.
const ON: &str = "true";
const OFF: &str = "false";
/// No default.
const NONE: &str = "";

const TLS_VERSIONS: Kind = Kind::Choice(&["1.0", "1.1", "1.2", "1.3"]);

/// Configuration that is given inline or as a file, never both, with `$(VARIABLE)`s expanded in
/// either.
#[derive(Debug)]
pub struct ContentPair {
    /// The flag that gives it inline.
    pub name: &'static str,
    /// The flag of the file.
    pub file: &'static str,
}

pub static CONTENT_PAIRS: [ContentPair; 5] = [
    ContentPair { name: "tracing.config", file: "tracing.config-file" },
    ContentPair { name: "objstore.config", file: "objstore.config-file" },
    ContentPair { name: "receive.relabel-config", file: "receive.relabel-config-file" },
    ContentPair { name: "request.logging-config", file: "request.logging-config-file" },
    ContentPair { name: "receive.limits-config", file: "receive.limits-config-file" },
];

const GO_RUNTIME: &str = "it sets a memory limit of Go's runtime";
const NO_CACHE: &str = "this version has no such cache";
const NO_SNAPSHOT: &str = "the head is rebuilt from its log";
const NOT_OUT_OF_ORDER: &str = "this version takes no samples out of order";
const BYTES_NOT_FRAMES: &str = "what is read ahead is bounded in bytes";
const BYTES_NOT_WORKERS: &str = "forwards to a peer are bounded in bytes, not in number";
const NO_EFFECT_IN_THANOS: &str = "it has no effect in Thanos either";

/// The table.
#[rustfmt::skip]
pub static FLAGS: &[Flag] = &[
    switch("help", OFF, "Print this help; --help-long adds the hidden flags.").global(),
    switch("help-long", OFF, "Print help with the hidden flags.").global().hidden(),
    switch("help-man", OFF, "Print a manual page.").global().hidden(),
    switch("completion-bash", OFF, "Print words for shell completion.").global().hidden(),
    switch("completion-script-bash", OFF, "Print a completion script for bash.").global().hidden(),
    switch("completion-script-zsh", OFF, "Print a completion script for zsh.").global().hidden(),
    switch("version", OFF, "Print the version.").global(),
    flag("debug.name", Kind::Text, NONE, "Add name=<value> to every log line.").global().hidden(),
    flag("log.level", Kind::Choice(&["error", "warn", "info", "debug"]), "info", "Lowest level that is logged: error, warn, info or debug.").global(),
    flag("log.format", Kind::Choice(&["logfmt", "json", "journald"]), "logfmt", "Format of the log: logfmt, json or journald.").global(),
    flag("tracing.config-file", Kind::Path, NONE, "File with the tracing configuration (YAML).").global().not_yet(),
    flag("tracing.config", Kind::Content, NONE, "Tracing configuration (YAML), instead of the file.").global().not_yet(),
    switch("enable-auto-gomemlimit", OFF, "Accepted; there is no Go runtime to limit.").global().no_meaning(GO_RUNTIME),
    flag("auto-gomemlimit.ratio", Kind::Float, "0.9", "Accepted; there is no Go runtime to limit.").global().no_meaning(GO_RUNTIME),

    flag("http-address", Kind::Address, "0.0.0.0:10902", "host:port for metrics, probes and remote read."),
    flag("http-grace-period", Kind::DurationModel, "2m", "Time that open HTTP requests have after a stop signal."),
    flag("http.config", Kind::Path, NONE, "File with TLS and authentication settings of the HTTP address.").not_yet(),
    flag("grpc-address", Kind::Address, "0.0.0.0:10901", "host:port for gRPC (StoreAPI)."),
    flag("grpc-server-tls-cert", Kind::Path, NONE, "Certificate of the gRPC server (PEM), read again when it changes; plain text without it and its key."),
    flag("grpc-server-tls-key", Kind::Path, NONE, "Key of the gRPC server's certificate."),
    flag("grpc-server-tls-client-ca", Kind::Path, NONE, "Certificate authority of gRPC clients, which need a certificate then."),
    flag("grpc-server-tls-min-version", TLS_VERSIONS, "1.3", "Lowest TLS version of the gRPC server, taken for 1.2 if it is lower."),
    flag("grpc-server-tls-ciphers", Kind::Text, NONE, "Cipher suite of the gRPC server below TLS 1.3, as Go names it; without any, all.").repeatable(),
    flag("grpc-server-tls-curves", Kind::Text, NONE, "Key exchange of the gRPC server: CurveP256, CurveP384, X25519, X25519MLKEM768 or SecP256r1MLKEM768.").repeatable(),
    flag("grpc-server-max-connection-age", Kind::DurationGo, "60m", "Age at which gRPC connections are closed; 0 for never."),
    flag("grpc-grace-period", Kind::DurationGo, "2m", "Time that open gRPC calls have after a stop signal."),
    flag("store.limits.request-series", Kind::Uint, "0", "Series that one Series call may touch; 0 for no limit.").not_yet(),
    flag("store.limits.request-samples", Kind::Uint, "0", "Samples that one Series call may touch; 0 for no limit.").not_yet(),
    flag("remote-write.address", Kind::Address, "0.0.0.0:19291", "host:port for remote write."),
    flag("remote-write.server-tls-cert", Kind::Path, NONE, "Certificate of the remote-write server (PEM), read again when it changes; plain text without it and its key."),
    flag("remote-write.server-tls-key", Kind::Path, NONE, "Key of the remote-write server's certificate."),
    flag("remote-write.server-tls-client-ca", Kind::Path, NONE, "Certificate authority of remote-write clients, which need a certificate then."),
    flag("remote-write.server-tls-min-version", TLS_VERSIONS, "1.3", "Lowest TLS version of the remote-write server, taken for 1.2 if it is lower."),
    flag("remote-write.server-tls-ciphers", Kind::Text, NONE, "Cipher suite of the remote-write server below TLS 1.3, as Go names it; without any, all.").repeatable(),
    flag("remote-write.server-tls-curves", Kind::Text, NONE, "Key exchange of the remote-write server, as of the gRPC server.").repeatable(),
    flag("remote-write.client-tls-cert", Kind::Path, NONE, "Certificate shown to peers (PEM), read again when it changes."),
    flag("remote-write.client-tls-key", Kind::Path, NONE, "Key for the certificate shown to peers."),
    switch("remote-write.client-tls-secure", OFF, "Use TLS towards peers; the other flags of it do nothing without."),
    switch("remote-write.client-tls-skip-verify", OFF, "Do not verify peers' certificates."),
    flag("remote-write.client-tls-ca", Kind::Path, NONE, "Certificate authority of peers (PEM), read again when it changes; without it, those of the system."),
    flag("remote-write.client-server-name", Kind::Text, NONE, "Name that peers' certificates must have; without it, the host of their endpoint."),
    flag("remote-write.client-tls-min-version", TLS_VERSIONS, "1.3", "Lowest TLS version towards peers, taken for 1.2 if it is lower."),
    flag("tsdb.path", Kind::Path, "./data", "Data directory; one directory per tenant in it."),
    flag("label", Kind::Label, NONE, "External label, as name=\"value\" with the quotes (repeatable). Without any it is replica=\"<hostname>\".").repeatable(),
    flag("objstore.config-file", Kind::Path, NONE, "File with the object storage configuration (YAML): where blocks are shipped to."),
    flag("objstore.config", Kind::Content, NONE, "Object storage configuration (YAML), instead of the file."),
    flag("tsdb.retention", Kind::DurationModel, "15d", "How long blocks are kept; 0 for ever."),
    flag("receive.hashrings-file", Kind::Path, NONE, "File with the hashrings (JSON); watched."),
    flag("receive.hashrings", Kind::Content, NONE, "Hashrings (JSON); the file wins."),
    flag("receive.hashrings-algorithm", Kind::Choice(&["hashmod", "ketama"]), "hashmod", "Placement in rings that name none: hashmod or ketama."),
    flag("receive.hashrings-file-refresh-interval", Kind::DurationModel, "5m", "How often the hashrings file is read in any case."),
    flag("receive.local-endpoint", Kind::Text, NONE, "This node's endpoint as the hashrings name it."),
    flag("receive.tenant-header", Kind::Text, "THANOS-TENANT", "HTTP header that names the tenant of a write."),
    flag("receive.artificial-max-delay", Kind::DurationModel, "0s", "Longest random delay of forwards to the second peer, at least 1s, for tests; 0s for none.").hidden(),
    flag("receive.tenant-certificate-field", Kind::Choice(&["", "organization", "organizationalUnit", "commonName"]), NONE, "Field of the client certificate that names the tenant.").not_yet(),
    flag("receive.default-tenant-id", Kind::Text, "default-tenant", "Tenant of writes that name none."),
    flag("receive.split-tenant-label-name", Kind::Text, NONE, "Label that names the tenant of each series.").not_yet(),
    flag("receive.tenant-label-name", Kind::Text, "tenant_id", "External label that names the tenant to queriers."),
    flag("receive.replica-header", Kind::Text, "THANOS-REPLICA", "HTTP header with the replica number of a write."),
    flag("receive.forward.async-workers", Kind::Uint, "5", "Accepted; forwards to a peer are bounded in bytes.").no_meaning(BYTES_NOT_WORKERS),
    flag("receive.grpc-compression", Kind::Choice(&["snappy", "none"]), "snappy", "Compression towards peers: snappy or none."),
    flag("receive.replication-factor", Kind::Uint, "1", "Copies of each series."),
    flag("receive.replication-protocol", Kind::Choice(&["protobuf", "capnproto"]), "protobuf", "Protocol towards peers: protobuf or capnproto."),
    flag("receive.capnproto-address", Kind::Address, "0.0.0.0:19391", "host:port for Cap'n Proto replication; always plain TCP, see --receive.capnproto."),
    flag("receive.grpc-service-config", Kind::Content, NONE, "gRPC service configuration towards peers (JSON); timeout, maxRequestMessageBytes and retryPolicy of a method count."),
    flag("receive-forward-timeout", Kind::DurationModel, "5s", "Deadline of forwarding one request.").hidden(),
    flag("receive-forward-max-backoff", Kind::DurationModel, "5s", "Longest back-off from a failing peer.").hidden(),
    flag("receive.relabel-config-file", Kind::Path, NONE, "File with relabelling rules (YAML).").not_yet(),
    flag("receive.relabel-config", Kind::Content, NONE, "Relabelling rules (YAML), instead of the file.").not_yet(),
    flag("tsdb.min-block-duration", Kind::DurationModel, "2h", "Time range of a head's block, at least 30s.").hidden(),
    flag("tsdb.max-block-duration", Kind::DurationModel, "2h", "Time range of a block that is cut from a head, and how often that is; at least 30s.").hidden(),
    flag("tsdb.too-far-in-future.time-window", Kind::DurationModel, "0s", "Refuse samples that are further ahead of the clock; 0s takes any."),
    flag("tsdb.out-of-order.time-window", Kind::DurationModel, "0s", "Take samples that are older than the newest by at most this; 0s for none.").not_yet(),
    flag("tsdb.out-of-order.cap-max", Kind::Int, "0", "Samples in an out-of-order chunk; 0 for 32.").awaited(NOT_OUT_OF_ORDER),
    switch("tsdb.allow-overlapping-blocks", OFF, "Accepted; has no effect.").no_meaning(NO_EFFECT_IN_THANOS),
    flag("tsdb.max-retention-bytes", Kind::Bytes, "0", "Bytes of blocks and log kept per tenant; 0 for no limit."),
    switch("tsdb.wal-compression", ON, "Compress the write-ahead log with snappy."),
    switch("tsdb.no-lockfile", OFF, "Make no lock file in tenants' directories."),
    flag("tsdb.head.expanded-postings-cache-size", Kind::Uint, "0", "Bytes of postings cache per head; 0 for none.").awaited(NO_CACHE),
    flag("tsdb.block.expanded-postings-cache-size", Kind::Uint, "0", "Bytes of postings cache per block; 0 for none.").awaited(NO_CACHE),
    flag("tsdb.max-exemplars", Kind::Int, "0", "Exemplars kept per tenant; 0 for none."),
    flag("tsdb.write-queue-size", Kind::Int, "0", "Accepted; there is no such queue.").hidden().no_meaning("there is no queue before the head's chunk files"),
    switch("tsdb.memory-snapshot-on-shutdown", OFF, "Write a snapshot of the head on shutdown.").hidden().awaited(NO_SNAPSHOT),
    switch("tsdb.enable-native-histograms", ON, "Accepted; has no effect.").no_meaning(NO_EFFECT_IN_THANOS),
    flag("hash-func", Kind::Choice(&["", "SHA256"]), NONE, "Hash of files in a shipped block's meta.json: SHA256 or none."),
    switch("shipper.allow-out-of-order-uploads", OFF, "Go on with later blocks when one fails to upload.").hidden(),
    switch("shipper.skip-corrupted-blocks", OFF, "Go on with later blocks when one is damaged.").hidden(),
    flag("shipper.upload-concurrency", Kind::Int, "0", "Chunk files of a block uploaded at a time; 0 for one."),
    flag("matcher-cache-size", Kind::Int, "0", "Matchers kept compiled; 0 for none.").awaited(NO_CACHE),
    flag("request.logging-config-file", Kind::Path, NONE, "File with the request logging configuration (YAML).").not_yet(),
    flag("request.logging-config", Kind::Content, NONE, "Request logging configuration (YAML), instead of the file.").not_yet(),
    flag("receive.limits-config-file", Kind::Path, NONE, "File with tenants' limits (YAML); watched.").hidden().not_yet(),
    flag("receive.limits-config", Kind::Content, NONE, "Tenants' limits (YAML), instead of the file.").hidden().not_yet(),
    flag("receive.limits-config-reload-timer", Kind::DurationGo, "1s", "How often the limits file is looked at.").hidden().not_yet(),
    switch("receive.otlp-enable-target-info", ON, "Make target_info series of OTLP resources."),
    flag("receive.otlp-promote-resource-attributes", Kind::Text, NONE, "OTLP resource attribute copied to labels.").repeatable(),
    flag("enable-feature", Kind::Text, NONE, "Feature to switch on; this version has none.").repeatable(),
    flag("receive.lazy-retrieval-max-buffered-responses", Kind::Int, "20", "Frames read ahead per tenant in a Series call.").awaited(BYTES_NOT_FRAMES),

    flag("check", Kind::Check, NONE, "Read the flags and all files that they name, build the rings, tell what was found, a line each, and end: 0 if a start would succeed. With =strict, flags that have no effect or none yet are errors, too.").own(),
    flag("tsdb.wal-sync", Kind::Choice(&["interval", "always", "segment"]), "interval", "When the write-ahead log reaches the medium: at least every second (interval), before a write is answered (always), or when a segment of 128 MiB is full, as in Prometheus (segment). A crash of the process alone loses nothing with any of them.").own(),
    switch("tsdb.wal-truncate-by-head-chunks", OFF, "Let the log lose what synced files in chunks_head have, not only what blocks have: it is a fraction as long, and a start reads as much less. Damage in chunks_head then costs the samples that it hits; a Prometheus that opens the directory drops the damaged file and all later ones.").own(),
    switch("tsdb.flush-on-shutdown", ON, "Cut the heads into blocks when the process is told to stop, as Thanos does. Off, what is not cut stays in the log, and a sender's late retries are still taken after the restart.").own(),
    flag("tsdb.flush-timeout", Kind::DurationModel, "2m", "Longest time of that; heads that are not cut by then stay in the log.").own(),
    flag("tsdb.max-compacted-block-duration", Kind::DurationModel, "0s", "Where no blocks are shipped: time range up to which they are merged, three blocks into one at each step. 0s for a tenth of --tsdb.retention, at most 31 days; 2h, what a head's block has, for none.").own(),
    flag("tsdb.head-series-max", Kind::Uint, "50000000", "Series in one tenant's head; samples of further ones are refused.").own(),
    flag("receive.tenants-max", Kind::Uint, "10000", "Tenants on this node; writes of further ones are refused.").own(),
    // Prometheus, vmagent and the OpenTelemetry collector send well under 10 MB at a time; they can
    // be told to send more, but hardly to send this much.
    flag("receive.request-bytes-max", Kind::Bytes, "64MB", "Size of a write request as sent; larger ones answer 413.").own(),
    flag("receive.decoded-bytes-max", Kind::Bytes, "256MB", "Size of a write request when decompressed; larger ones answer 413.").own(),
    flag("receive.otlp-decoded-bytes-max", Kind::Bytes, "32MB", "Size of an OTLP request when decompressed; larger ones answer 413.").own(),
    flag("receive.inflight-bytes-max", Kind::Bytes, "640MB", "Memory for the bytes of all write requests being served, decompressed ones included; writes beyond it answer 503.").own(),
    flag("receive.forward.inflight-bytes-max", Kind::Bytes, "256MB", "Memory for all forwards under way to other nodes. Half of it is divided among the nodes, the other half is there for all of them; a forward beyond it is not made.").own(),
    flag("receive.forward.calls-max", Kind::Uint, "1024", "Forwards under way to one other node; further ones are not made.").own(),
    flag("receive.body-read-timeout", Kind::DurationGo, "30s", "Time that a client has to send its request's body.").own(),
    flag("receive.head-bytes-max", Kind::Bytes, "1MB", "Size of a request's head, on all listeners; larger ones answer 431, over gRPC RESOURCE_EXHAUSTED.").own(),
    flag("receive.head-headers-max", Kind::Uint, "10000", "Headers of a request, likewise.").own(),
    flag("receive.connections-max", Kind::Uint, "0", "Connections that each listener may have open; others wait. 0 for what the limit of open files allows: three quarters of it for all listeners, one sixteenth of that for each alone.").own(),
    // Others refuse from 30 (Mimir) or 40 (VictoriaMetrics) labels on. Thanos takes any number, so
    // this has to stand well above real series: those with the most, kube-state-metrics' kube_*_labels
    // and kube_*_annotations, carry a label per label of a Kubernetes object, up to some hundred.
    flag("receive.series-labels-max", Kind::Uint, "1000", "Labels of a series; series with more are refused.").own(),
    flag("receive.ring-hold", Kind::DurationModel, "2m", "How long a changed hashrings file is held back at most while no replica set of its rings reaches its quorum and one of those in force does; 0 for never. POST /api/v1/ring/take ends it at once.").own(),
    flag("receive.label-bytes-max", Kind::Bytes, "64KB", "Names and values of a series' labels together; series with more are refused.").own(),
    switch("receive.capnproto", ON, "Listen for Cap'n Proto replication. That port is plain TCP, so --no-receive.capnproto is advised where gRPC asks for client certificates.").own(),
    flag("http.metrics-tenants-max", Kind::Uint, "10000", "Tenants that have lines of their own on the metrics page; those of further ones are summed under the tenant /other.").own(),
    switch("http.open-reads", OFF, "Serve remote read and the pages that name tenants on the HTTP address to everybody, even where another listener asks for client certificates.").own(),
    flag("query.inflight-bytes-max", Kind::Bytes, "512MB", "Memory for all reads being answered, over gRPC and HTTP; reads beyond it are refused.").own(),
];

/// The flag of this name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The flag of a name that is written in our code.
pub fn named(name: &str) -> &'static Flag {
    match find(name) {
        Some(flag) => flag,
        None => unreachable!("--{name} is in the table"),
    }
}
