//! Ringest takes remote write from Prometheus and others, keeps it in per-tenant directories that
//! Prometheus itself can open, and serves it to `thanos query` and to Prometheus' remote read. It
//! takes the place of `thanos receive`: flags, ports, metrics, answers and files are spelled as
//! there.
//!
//! # Layers
//!
//! Each uses only those in rows below its own; `tests/tidy` looks.
//!
//! ```text
//! app   load   ring_tool    the receiver, started and drained; tools beside it
//! config                    flags in their final types, in the parts that are given to others
//! http   grpc   capnproto   listeners, routes, errors to answers
//! door                      connections of clients, whatever they speak: taken, watched, ended
//! write  store              a request into a head; a query out of it
//! peer                      other nodes, and calls to them
//! multi_tsdb                tenant to database
//! shipper                   blocks of tenants to the bucket
//! objstore                  buckets: objects by name
//! hashring  tsdb            which nodes hold a series; one Prometheus directory: head, log, chunks
//! wire                      bytes from outside
//! tls                       certificates, handshakes of clients
//! clock  metrics            the time, and what is counted
//! disk   log                files as they can fail; log lines
//! model                     labels, keys, matchers, tenants (no I/O)
//! error  socket             words for errors that are told in several places; options of sockets
//! ```
//!
//! [`tsdb`] knows no tenant, no HTTP and no Thanos.
//!
//! # Words
//!
//! - *key*: a series' labels, sorted, in the one encoding by which they are compared and kept;
//!   *alias*: other bytes that mean the same labels under the rules of one endpoint.
//! - *slot*: a series' index in a head's memory; *ref*: its number in the log, for good.
//! - *manners*: whose rules an endpoint follows, Thanos' or Prometheus'.
//! - *place* of a series: its number in the request, by which a refusal names it. *To place* it is to
//!   look up which endpoints of the ring have it.
//! - *group*: series of a request that have the same endpoints, and are counted as one until they are
//!   answered differently.
//! - *batch*: what is handed on at once. To an endpoint it is groups as one replica
//!   ([`write::distribute`]), to a head samples by slot ([`tsdb::head::batch`]).
//! - *piece*: as much of something long as is made at a time, of an answer or of a message.
//! - *lane*: a tenant's queue of batches for its log. *Door*: where a listener takes connections.
//! - *shape*: what is kept of a request when its bytes are gone: groups, and samples of each series.
//! - *verdict*: what replicas' answers come to, of a series or of a request, once no other can change
//!   it. *Short* is a node that lacks its copy of what was acknowledged.
//! - *told*: said in the log or to the sender; *suppressed*: lines of a kind that were left out of the
//!   log since the last one.
//!
//! # The path of a write
//!
//! 1. [`http::remote_write`] holds the stages of a request in their order: tenant, admission by
//!    bytes, size caps, body, snappy, version. [Remote write 2.0](wire::remote_write_v2) and
//!    [OTLP](wire::otlp) become a request of 1.0 here, and nobody behind knows the difference. Writes of peers come through [`grpc`] or
//!    [`capnproto`] and [`write::peer_writes`] and join here: all go into one [`write::sink`].
//!    In a ring, [`write::distribute`] then gives each series its endpoints, and [`write::fanout`]
//!    hands batches to this node and to [`peer`]s, and answers once [`write::quorum`] has a verdict.
//! 2. [`write::local`] finds the tenant and has [`write::decode`] decode the request against the
//!    series that the tenant has, without a lock. A series that was seen before costs a
//!    [fingerprint](model::fingerprint) of its label bytes and a line of a table. Known are the
//!    *canonical key*: its labels, sorted, without empty values, in minimal protobuf encoding, which
//!    is what senders send; and other bytes once they were read in full, judged by the rules of their
//!    endpoint, and remembered as an alias. What results is a [`Batch`]: samples by slot, and
//!    the keys of new series. Nothing has changed so far. A tenant is made only now, when there is
//!    a sample to store.
//! 3. The batch takes its place in the tenant's [`AppendLane`], and the request waits without a
//!    thread. A thread for the disk takes all batches that wait there, in their order, and
//!    [`Head::append_group`] does the rest in one piece under the tenant's log mutex: make the new
//!    series, judge each sample against its series, encode the records, write them all at once, and
//!    put the samples into their chunks. A disk that hangs holds that thread; others are started for
//!    the other tenants.
//! 4. Under `--tsdb.wal-sync=always` the answer waits for the group commit of [`SyncHandle`];
//!    otherwise `multi_tsdb`'s syncer brings the log to the medium within a second.
//! 5. [`http::respond`] and [`grpc::respond`] make the answer. Nobody else picks a status.
//!
//! # The path of a query
//!
//! [`store`] (StoreAPI) and [`http::read`] (remote read) ask the tenants whose external labels and
//! time range match. A [`Querier`] asks the head and the [blocks](tsdb::block) that the range meets,
//! and makes one series of what several of them hold. The head turns matchers into slots by the
//! postings, and slots into copies of labels (by [numbers](model::pairs)) and chunks, a few hundred
//! under each short hold of its locks. Chunks in memory are copied, those in
//! [files](tsdb::head_chunks) are read afterwards, those of many series [together](tsdb::chunk_reads).
//! Answers are made piece by piece as the client reads, and charged to a budget of bytes; those of
//! StoreAPI are written as they [go over the wire](store::frames).
//!
//! # Opening
//!
//! [`Db::open`] looks through the [head chunks](tsdb::head_chunks::scan), reads the log, repairs what was
//! damaged ([`tsdb::wal::repair`] has the table of cases, [`tsdb::wal::names`] a second copy of what
//! names series) and replays it into an empty head, from where
//! the series' head chunks end ([`tsdb::head::replay`]). A tenant serves as soon as its own log is
//! replayed. It takes writes before where a [look](tsdb::wal::look) at the log's end and the
//! summaries of the rest tell enough ([`tsdb::opening`]): what is certainly later than all of the log
//! is appended behind it and read with it, all else waits. One that cannot be opened is quarantined: its writes are 503, it is tried again, and
//! the others do not notice. What cannot be read is never answered as absent ([`store::missing`]).
//!
//! # From the head into blocks
//!
//! `multi_tsdb`'s cutter goes round the tenants on a thread of low priority. Full chunks go to
//! [files](tsdb::head_chunks). [`Db::cut_due`] raises the head's floor, writes a block of what is below
//! it ([`tsdb::head::cut`]), puts a [view](tsdb::blocks::View) with that block in the place of the one
//! before, and, when no reader has an older one, lets the head drop what the block has
//! ([`tsdb::head::gc`]) and the log get a [checkpoint](tsdb::wal::checkpoint). Series that have nothing
//! left are forgotten by putting another [catalog](tsdb::head::catalog) in the place of theirs.
//! A thread beside it makes [blocks of blocks](tsdb::compact): without what was deleted of one that is to
//! be shipped, or, where none are shipped, one of several as Prometheus does.
//! [`tsdb::retention`] deletes old blocks, and a tenant of which nothing is kept any longer goes as a
//! whole.
//!
//! # Shipping
//!
//! On threads of its own [`shipper`] looks through each open tenant's directory every half minute. What
//! a block's way to the bucket is follows from its manifest, the record of what was shipped and the
//! bucket's answer alone ([`shipper::plan`]); every block is read as a whole before it leaves. An
//! [`objstore`] bucket is made from Thanos' file without asking anybody, so a node starts and serves
//! whether or not the bucket can be reached.
//!
//! # Invariants
//!
//! - **What is acknowledged is in the log**, in the kernel at least. Memory never runs ahead of it:
//!   `Head::apply` asks for an [`Appended`], which only a successful write makes.
//! - **Log order is apply order**, and that in which batches came to their lane. Checking, writing and
//!   applying them are one critical section, and none is judged before those of its series that came
//!   earlier are applied, so a replay rebuilds just what was answered.
//! - **A thread that serves sockets waits for no disk**: neither in a call nor for a lock that somebody
//!   holds across one. The log's locks are held across writes, and only threads for the disk take
//!   them; those of labels, states, postings and tenants are not, and readers need no others.
//! - **A failed append leaves no trace**: it is cut off the log before anything is written behind it.
//! - **A series' record stands in the log once, and before its samples.** A series is *unlogged* until
//!   its record is written; whoever appends to it next writes it.
//! - **Refs rise and are never used again**, and stay below [`HeadSeriesRef::LIMIT`]. A slot is an
//!   index in memory and says nothing to the log.
//! - **A sample is in the head or in a block**, at every moment, for who reads and for who starts after
//!   a crash; and a slot means one series for as long as somebody holds the catalog that gave it.
//! - **Lock order is log, labels, states** within a head ([`tsdb::head`]). No lock is held across an
//!   await.
//! - **A request may be dropped at any await**, when its client goes away. A batch whose turn has not
//!   come goes with it; one whose turn has come is stored whole or not at all.
//! - **Bytes from outside never panic and never size an allocation** beyond a cap. Lengths and counts
//!   are judged by what can follow them; no uninflated length is believed.
//! - **Damage costs what is damaged.** Nothing that was readable is deleted; what is not understood is
//!   renamed and kept.
//!
//! # Left out
//!
//! On purpose: no `unsafe`; no pluggable storage; no query language. For now, and said where it
//! shows: metadata is dropped and counted. The README keeps the whole list.
//!
//! [`AppendLane`]: multi_tsdb::AppendLane
//! [`Appended`]: tsdb::wal::Appended
//! [`Batch`]: tsdb::head::batch::Batch
//! [`Db::cut_due`]: tsdb::Db::cut_due
//! [`Db::open`]: tsdb::Db::open
//! [`Head::append_group`]: tsdb::head::Head::append_group
//! [`HeadSeriesRef::LIMIT`]: model::HeadSeriesRef::LIMIT
//! [`Querier`]: tsdb::querier::Querier
//! [`SyncHandle`]: tsdb::wal::SyncHandle

// Tests may, as may benches and the programs beside the library: clippy.toml has what is banned.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::unwrap_used))]

// From the top layer to the bottom one.
pub mod app;
pub mod load;
pub mod ring_tool;

pub mod capnproto;
pub mod grpc;
pub mod http;

pub mod door;

pub mod store;
pub mod write;

pub mod hashring;
pub mod multi_tsdb;
pub mod peer;

pub mod objstore;
pub mod shipper;

pub mod tsdb;

pub mod model;
pub mod wire;

pub mod clock;
pub mod disk;
pub mod error;
pub mod metrics;
mod socket;
pub mod tls;

pub mod config;
pub mod log;
