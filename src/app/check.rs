//! `--check`: what a start would find out about a command line, without starting: nothing is bound,
//! dialled, written or locked, so that it runs beside a live node.

use std::path::Path;
use std::sync::Arc;

use crate::app::tls::Tls;
use crate::config::command_line::{Check, UsageError};
use crate::config::{Config, Faults, Notice, NoticeKind, RingConfig, RingSource, ShippingConfig};
use crate::disk::{Disk, SystemDisk};
use crate::error::chain;
use crate::hashring::file;
use crate::hashring::watch::{LoadError, read_capped};
use crate::hashring::{Hashring, RingState};
use crate::metrics::Registry;
use crate::objstore;

/// What was found, in the order in which it is told.
pub struct Report {
    findings: Vec<Finding>,
}

/// One line of a report.
struct Finding {
    kind: Kind,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Notice(NoticeKind),
}

impl Report {
    /// Of words or values that flags do not take, and of what those say that they do.
    pub fn of(refused: &[UsageError], config: &Result<Config, Faults>) -> Report {
        let mut report = Report { findings: Vec::new() };
        refused.iter().for_each(|error| report.error(error.to_string()));
        match config {
            Ok(config) => {
                report.notices(&config.notices);
                Tls::faults(config).iter().for_each(|error| report.error(error.to_string()));
                report.look_into_bucket(config.shipping.as_ref());
                report.look_into_rings(&config.ring);
            }
            Err(faults) => {
                faults.errors.iter().for_each(|error| report.error(error.to_string()));
                report.notices(&faults.notices);
            }
        }
        report
    }

    /// Whether a start would fail.
    pub fn has_errors(&self, check: Check) -> bool {
        self.findings.iter().any(|finding| match finding.kind {
            Kind::Error => true,
            Kind::Notice(NoticeKind::Warning | NoticeKind::Note) => false,
            Kind::Notice(NoticeKind::NoEffect | NoticeKind::NotYet) => check == Check::Strict,
        })
    }

    /// A line for each finding.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.findings.iter().map(|finding| {
            let kind = match finding.kind {
                Kind::Error => "error",
                Kind::Notice(kind) => kind.as_str(),
            };
            format!("{kind}: {}", finding.text)
        })
    }

    fn error(&mut self, text: String) {
        self.findings.push(Finding { kind: Kind::Error, text });
    }

    fn notices(&mut self, notices: &[Notice]) {
        let finding = |notice: &Notice| Finding {
            kind: Kind::Notice(notice.kind),
            text: notice.text.clone(),
        };
        self.findings.extend(notices.iter().map(finding));
    }

    fn look_into_bucket(&mut self, shipping: Option<&ShippingConfig>) {
        let Some(ShippingConfig { flag, bucket, .. }) = shipping else { return };
        let disk: Arc<dyn Disk> = Arc::new(SystemDisk);
        if let Err(error) = objstore::open(bucket, &disk, &Registry::new()) {
            self.error(format!("--{flag}: {}", chain(&error)));
        }
    }

    fn look_into_rings(&mut self, config: &RingConfig) {
        match &config.source {
            RingSource::None => {}
            // Those that cannot be built are found with the other values.
            RingSource::Inline { rings, .. } => {
                self.warnings("--receive.hashrings", &config.build(rings.clone()));
            }
            RingSource::File { path, .. } => match rings_of(path, config) {
                Ok(hashring) => self.ring_file(path, &hashring),
                // A start waits for a better one, alive and never ready.
                Err(error) => self.error(format!(
                    "--receive.hashrings-file: {}: {error}; a node would wait for another",
                    path.display()
                )),
            },
        }
    }

    fn ring_file(&mut self, path: &Path, hashring: &Hashring) {
        let flag = format!("--receive.hashrings-file: {}", path.display());
        for ring in hashring.rings() {
            if let RingState::NotBuilt(error) = &ring.state {
                self.error(format!("{flag}: hashring {:?}: {error}", ring.name));
            } else if let Some(error) = &ring.unfit {
                self.error(format!("{flag}: hashring {:?}: {error}", ring.name));
            }
        }
        self.warnings(&flag, hashring);
    }

    fn warnings(&mut self, flag: &str, hashring: &Hashring) {
        for warning in hashring.warnings() {
            let kind = Kind::Notice(NoticeKind::Note);
            self.findings.push(Finding { kind, text: format!("{flag}: {warning}") });
        }
    }
}

fn rings_of(path: &Path, config: &RingConfig) -> Result<Hashring, LoadError> {
    let content = read_capped(path)?;
    Ok(config.build(file::parse(&content)?))
}
