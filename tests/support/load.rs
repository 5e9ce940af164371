//! `ringest load` towards a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::support::node::Node;
use crate::support::process::{Ends, Process, wait_for};

/// Size of the record that a stretch of load fills: 40 requests, sent and acknowledged.
const STRETCH_BYTES: u64 = 40 * 2 * 24;

/// A sender, and its record of what was acknowledged.
pub(crate) struct Load {
    process: Process,
    acked_file: PathBuf,
}

impl Load {
    /// Starts one that writes to `node`. The name tells its files from those of others.
    pub(crate) fn launch(root: &Path, name: &str, node: &Node, flags: &[&str]) -> Load {
        let acked_file = root.join(format!("{name}.acked"));
        let mut command = load_command();
        command
            .arg(format!("--url=http://{}", node.remote_write))
            .args(flags)
            .arg("--acked-file")
            .arg(&acked_file);
        let log = root.join(format!("{name}.log"));
        Load { process: Process::start(name, &mut command, &log, Ends::WhenDone), acked_file }
    }

    fn recorded(&self) -> u64 {
        fs::metadata(&self.acked_file).map_or(0, |metadata| metadata.len())
    }

    /// Waits until a stretch of requests has been acknowledged.
    pub(crate) fn wait_stretch(&mut self) {
        let began = self.recorded();
        let went_on = wait_for(|| {
            assert_eq!(self.process.exited(), None, "{}", self.process.log());
            (self.recorded() > began + STRETCH_BYTES).then_some(())
        });
        assert!(went_on.is_some(), "the load is stuck: {}", self.process.log());
    }

    /// Tells it to stop, which is a success.
    pub(crate) fn tell_to_stop(&self) {
        self.process.signal(Signal::INT);
    }

    /// Waits for its end, and returns the file of what was acknowledged and all that it has said.
    pub(crate) fn end(self) -> (PathBuf, String) {
        let mut recorded = self.recorded();
        let mut code = self.process.wait_exit();
        // It is not stuck as long as it gets on.
        while code.is_none() && self.recorded() > recorded {
            recorded = self.recorded();
            code = self.process.wait_exit();
        }
        assert_eq!(code, Some(0), "{}", self.process.log());
        (self.acked_file, self.process.log())
    }
}

/// `ringest load`.
pub(crate) fn load_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringest"));
    command.arg("load");
    command
}

/// `ringest load verify`: reads back from all nodes what a load recorded as acknowledged.
pub(crate) fn verify_command<'a>(
    acked_file: &Path,
    nodes: impl IntoIterator<Item = &'a Node>,
) -> Command {
    let mut command = load_command();
    command.args(["verify", "--json", "--acked-file"]).arg(acked_file);
    for node in nodes {
        command.arg(format!("--read-url=http://{}/api/v1/read", node.http));
    }
    command
}
