//! A node that speaks Cap'n Proto as the releases of Thanos up to 0.42 do: of a request it knows
//! symbols, series and one tenant, and its answers have an error and a text.

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use capnp::message::ReaderOptions;
use capnp::serialize_packed::read_message;
use capnp_rpc::rpc_capnp::message;
use ringest::wire::capnproto::rpc::{self, Concern, WriteAnswer, WriteError};
use ringest::wire::capnproto::write_request_capnp::writer::write_params;
use serde_json::{Value, json};

use crate::support::ports;

/// Labels of a series.
pub(crate) type Labels = BTreeMap<String, String>;

/// What a call asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) tenant: String,
    pub(crate) series: Vec<Labels>,
    pub(crate) samples: usize,
}

type Answers = dyn Fn(&Write) -> WriteError + Send + Sync;

/// Serves until the process ends.
pub(crate) struct Released {
    /// As the ring's file names it. Nobody listens there.
    pub(crate) address: String,
    capnproto: String,
    writes: Arc<Mutex<Vec<Write>>>,
}

impl Released {
    /// A node that answers so, and stores nothing but what it answers `none` to.
    pub(crate) fn start(
        answers: impl Fn(&Write) -> WriteError + Send + Sync + 'static,
    ) -> Released {
        let [grpc, capnproto] = ports::free(2)[..] else { panic!("two ports") };
        let listener = TcpListener::bind(("127.0.0.1", capnproto)).expect("a free port");
        let node = Released {
            address: format!("127.0.0.1:{grpc}"),
            capnproto: format!("127.0.0.1:{capnproto}"),
            writes: Arc::default(),
        };
        let (answers, writes) = (Arc::new(answers), node.writes.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answers, writes) = (answers.clone(), writes.clone());
                thread::spawn(move || serve(&stream.expect("a connection"), &*answers, &writes));
            }
        });
        node
    }

    pub(crate) fn endpoint(&self) -> Value {
        json!({"address": self.address, "capnproto_address": self.capnproto})
    }

    /// What it was asked to write so far, whatever it answered.
    pub(crate) fn writes(&self) -> Vec<Write> {
        self.writes.lock().expect("no panic").clone()
    }
}

/// A ring of such nodes.
pub(crate) fn ring_of(nodes: &[Released]) -> String {
    let endpoints: Vec<Value> = nodes.iter().map(Released::endpoint).collect();
    json!([{"hashring": "default", "algorithm": "ketama", "endpoints": endpoints}]).to_string()
}

/// Answers one call after the other until the caller goes.
fn serve(mut stream: &TcpStream, answers: &Answers, writes: &Mutex<Vec<Write>>) {
    let mut input = BufReader::new(stream);
    while let Ok(read) = read_message(&mut input, ReaderOptions::new()) {
        let root: message::Reader<'_> = read.get_root().expect("a message");
        let answer = match root.which() {
            Ok(message::Bootstrap(bootstrap)) => {
                rpc::return_writer(bootstrap.expect("a bootstrap").get_question_id())
            }
            Ok(message::Call(call)) => {
                let call = call.expect("a call");
                let params = call.get_params().expect("parameters").get_content();
                let params: write_params::Reader<'_> = params.get_as().expect("parameters");
                let write = read_write(params).expect("a request");
                let error = answers(&write);
                writes.lock().expect("no panic").push(write);
                let (said, refused, concern) = (String::new(), None, Concern::Unsaid);
                let answer = WriteAnswer { error, said, refused, concern };
                rpc::return_written(call.get_question_id(), &answer)
            }
            _ => continue,
        };
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

/// Reads what a release knows.
fn read_write(params: write_params::Reader<'_>) -> capnp::Result<Write> {
    let request = params.get_wr()?;
    let symbols = request.get_symbols()?;
    let (data, ends) = (symbols.get_data()?, symbols.get_offsets()?);
    let symbol = |number: u32| {
        let start = number.checked_sub(1).map_or(0, |before| ends.get(before));
        let bytes = &data[start as usize..ends.get(number) as usize];
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    };
    let tenant = request.get_tenant()?.to_string().expect("UTF-8");
    let mut write = Write { tenant, series: Vec::new(), samples: 0 };
    for series in request.get_time_series()? {
        let labels = series.get_labels()?.iter();
        let labels = labels.map(|label| (symbol(label.get_name()), symbol(label.get_value())));
        write.series.push(labels.collect());
        write.samples += series.get_samples()?.len() as usize;
    }
    Ok(write)
}
