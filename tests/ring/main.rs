//! Rings of real processes on 127.0.0.1: nodes are killed, stopped, restarted and told different
//! things under load, and everything acknowledged is counted afterwards.

#[path = "../support/grpc.rs"]
mod caller;
mod capnproto;
#[path = "../support/certificates.rs"]
mod certificates;
mod copies;
mod drain;
mod files;
mod hold;
#[path = "../support/http.rs"]
mod http;
mod hung;
mod load;
mod membership;
#[path = "../support/node.rs"]
mod node;
mod outages;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/process.rs"]
mod process;
mod released;
mod sizes;
mod skew;
mod stalled_disk;
mod stand_in;
mod tls;
