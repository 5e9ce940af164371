# What nodes of a ring send one another with --receive.replication-protocol=capnproto. Ids, ordinals
# and types are the wire's and may not be changed: they are those of Thanos, but for what is marked as
# ours, which Thanos skips.
#
# src/wire/capnproto/write_request_capnp.rs is generated from this file and checked in, so that no
# `capnp` program is needed to build. When it changes, call the crate capnpc 0.27 with the program of
# Cap'n Proto 0.9 or later on the path:
#
#     capnpc::CompilerCommand::new()
#         .src_prefix("proto")
#         .file("proto/write_request.capnp")
#         .output_path("src/wire/capnproto")
#         .default_parent_module(vec!["wire".into(), "capnproto".into()])
#         .run()

@0x85d3acc39d94e0f8;

interface Writer {
  write @0 (wr :WriteRequest) -> (
    error :WriteError,
    extraErrorContext :Text,

    # Ours: which of the request's series were refused for good, everything else being stored; see
    # src/wire/refused.rs. It is there, and may be empty, in every answer of a node that tells it, so
    # that a caller knows that it may send series of several replicas in one request.
    refused :Data,

    # Ours: what an error concerns.
    concern :Concern
  );
}

# Ours.
enum Concern {
  # Whatever the error says.
  unsaid @0;

  # The tenant of the request alone: it cannot be written now, others can.
  tenant @1;
}

struct WriteRequest {
  # Of every series in the request.
  symbols @0 :Symbols;

  # The older form, for one tenant. It counts where it is there at all.
  timeSeries @1 :List(TimeSeries);
  tenant @2 :Text;

  data @3 :List(TimeSeriesTenantTuple);
}

struct TimeSeriesTenantTuple {
  # Not used.
  nop @0 :Symbols;

  timeSeries @1 :List(TimeSeries);
  tenant @2 :Text;
}

struct Symbols {
  # Names and values of labels, one behind the other.
  data @0 :Data;

  # Where in data each of them ends.
  offsets @1 :List(UInt32);
}

struct TimeSeries {
  labels @0 :List(Label);
  samples @1 :List(Sample);
  histograms @2 :List(Histogram);
  exemplars @3 :List(Exemplar);
}

struct Label {
  # Numbers of symbols.
  name @0 :UInt32;
  value @1 :UInt32;
}

struct Sample {
  # Milliseconds since the Unix epoch.
  timestamp @0 :Int64;
  value @1 :Float64;
}

struct Exemplar {
  labels @0 :List(Label);
  value @1 :Float64;
  timestamp @2 :Int64;
}

struct Histogram {
  enum ResetHint {
    unknown @0;
    yes @1;
    no @2;
    gauge @3;
  }

  count :union {
    countInt @0 :UInt64;
    countFloat @1 :Float64;
  }

  sum @2 :Float64;
  schema @3 :Int32;
  zeroThreshold @4 :Float64;

  zeroCount :union {
    zeroCountInt @5 :UInt64;
    zeroCountFloat @6 :Float64;
  }

  negativeSpans @7 :List(BucketSpan);
  negativeDeltas @8 :List(Int64);
  negativeCounts @9 :List(Float64);

  positiveSpans @10 :List(BucketSpan);
  positiveDeltas @11 :List(Int64);
  positiveCounts @12 :List(Float64);

  resetHint @13 :ResetHint;

  timestamp @14 :Int64;
}

struct BucketSpan {
  offset @0 :Int32;
  length @1 :UInt32;
}

enum WriteError {
  none @0;
  unavailable @1;
  alreadyExists @2;
  invalidArgument @3;
  internal @4;
}
