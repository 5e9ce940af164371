//! Generates the messages and services of `proto/`. The .proto files are compiled by protox, so
//! no `protoc` has to be installed.

use std::error::Error;

const FILES: [&str; 5] = [
    "proto/thanos/store.proto",
    "proto/thanos/info.proto",
    "proto/thanos/exemplars.proto",
    "proto/thanos/status.proto",
    "proto/prometheus/read.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        // Labels and chunks are slices of shared buffers, not copies.
        .bytes(".")
        .btree_map(".")
        // Questions are judged before they are decoded.
        .codec_path("crate::grpc::codec::JudgedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
