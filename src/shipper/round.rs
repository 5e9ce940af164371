//! A tenant's round: everything that is new in its directory, oldest first, until something fails.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::chain;
use crate::objstore::{Bucket, BucketError};
use crate::shipper::ShipperOptions;
use crate::shipper::blocks::{self, Checked, Damage, Found};
use crate::shipper::metrics::ShipperMetrics;
use crate::shipper::plan::{HeldBack, LocalBlock, Step, plan};
use crate::shipper::record::{self, NoRecord};
use crate::shipper::upload::{self, UploadError, object};
use crate::tsdb::block::meta::{BlockMeta, META_FILE};
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::compact::Rewriting;
use crate::tsdb::error::ReadError;

/// What a shipper asks of its tenant's database.
pub trait ShippedDb: Send + Sync {
    /// External labels, by name, as they are at the moment.
    fn external_labels(&self) -> Arc<Vec<(Vec<u8>, Vec<u8>)>>;

    /// Whether a block that is in the directory stays there as it is.
    fn is_settled(&self, block: Ulid) -> bool;

    /// Has blocks rewritten without what was deleted of them, so that those can be shipped, and says
    /// what becomes of each. Does not wait.
    fn rewrite(&self, blocks: &[Ulid]) -> Vec<(Ulid, Rewriting)>;
}

/// What the shippers of all tenants share.
#[derive(Clone)]
pub struct ShipperEnv {
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub bucket: Arc<dyn Bucket>,
    pub options: ShipperOptions,
}

/// Ships the blocks of one tenant.
pub struct Shipper {
    pub(super) tenant: String,
    /// The tenant's directory.
    dir: PathBuf,
    db: Arc<dyn ShippedDb>,
    env: ShipperEnv,
    metrics: ShipperMetrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_cleaned: bool,
    /// Those of which no encoding has to be looked for again.
    of_newer_encoding: BTreeSet<Ulid>,
    /// Said of a block once.
    told: BTreeSet<(Ulid, HeldBack)>,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("reading the blocks: {0}")]
    Panicked(#[from] tokio::task::JoinError),
    #[error(
        "block {block} is damaged and holds back all others until it is moved aside, or \
         --shipper.skip-corrupted-blocks is given: {cause}"
    )]
    Damaged { block: Ulid, cause: String },
    #[error("check exists: {}", chain(.0))]
    Exists(#[source] BucketError),
    #[error("upload {block}: {}", chain(source))]
    Upload { block: Ulid, source: UploadError },
    /// Of a round that went on after failures.
    #[error("failed to sync {failed}/{damaged} blocks")]
    Some { failed: usize, damaged: usize },
}

/// What a round has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shipped {
    pub uploaded: usize,
}

/// What is where, in one round.
struct Round {
    /// In the bucket and still here, oldest first as far as it is known.
    recorded: Vec<Ulid>,
    blocks: Vec<LocalBlock>,
    metas: BTreeMap<Ulid, BlockMeta>,
    /// Each with what is wrong with it.
    damaged: Vec<(Ulid, String)>,
    failed: usize,
    uploaded: usize,
}

impl Round {
    fn plan(&self, answers: &BTreeMap<Ulid, bool>) -> Vec<(Ulid, Step)> {
        plan(&self.blocks, &self.recorded.iter().copied().collect(), answers)
    }
}

impl Shipper {
    pub fn new(
        tenant: String,
        dir: PathBuf,
        db: Arc<dyn ShippedDb>,
        env: ShipperEnv,
        metrics: ShipperMetrics,
    ) -> Shipper {
        Shipper { tenant, dir, db, env, metrics, state: Mutex::default() }
    }

    /// Brings all new blocks to the bucket. An error has ended the round early, or tells that some
    /// did not get there; what did is in the record.
    pub async fn ship(&self) -> Result<Shipped, ShipError> {
        let shipped = self.ship_all().await;
        match &shipped {
            // As in Thanos, a round that went on to its end is a success.
            Ok(_) | Err(ShipError::Some { .. }) => self.metrics.syncs.inc(),
            Err(_) => self.metrics.sync_failures.inc(),
        }
        shipped
    }

    async fn ship_all(&self) -> Result<Shipped, ShipError> {
        let mut round = self.look().await?;
        // What waits is to be seen also where the bucket does not answer.
        let unknown = round.plan(&BTreeMap::new());
        let waiting = unknown.iter().filter(|(_, step)| *step == Step::Ask).count();
        self.metrics.pending.set(waiting as f64);
        self.metrics.damaged.set(round.damaged.len() as f64);
        self.judge_damaged(&round.damaged)?;
        let known_damaged = round.damaged.len();
        let answers = self.ask(&mut round).await?;
        let mut steps = round.plan(&answers);
        let rewritten = self.have_rewritten(&mut round, &mut steps);
        self.show(&round, &steps);
        self.judge_damaged(&round.damaged[known_damaged..])?;
        for (ulid, step) in steps {
            if step == Step::Upload {
                self.ship_one(&mut round, ulid).await?;
            }
            // Thanos' compactor might merge later ones with what is there, and would halt at one that
            // comes in between then.
            if rewritten.contains(&ulid) && !self.env.options.goes_on_after_failure {
                break;
            }
        }
        let Round { failed, damaged, uploaded, .. } = round;
        if failed > 0 || !damaged.is_empty() {
            return Err(ShipError::Some { failed, damaged: damaged.len() });
        }
        Ok(Shipped { uploaded })
    }

    /// Has the blocks with tombstones rewritten; which will be. Not one that is in the bucket already,
    /// whoever has brought it there. What cannot be rewritten is held back for what keeps it from it.
    fn have_rewritten(&self, round: &mut Round, steps: &mut Vec<(Ulid, Step)>) -> BTreeSet<Ulid> {
        let has_tombstones = |step: &Step| *step == Step::HoldBack(HeldBack::Tombstones);
        let deleted_from = steps.iter().filter(|(_, step)| has_tombstones(step));
        let deleted_from: Vec<Ulid> = deleted_from.map(|(ulid, _)| *ulid).collect();
        let mut rewritten = BTreeSet::new();
        for (block, becomes) in self.db.rewrite(&deleted_from) {
            match becomes {
                Rewriting::Comes => drop(rewritten.insert(block)),
                Rewriting::Unsupported => {
                    let of_block = steps.iter_mut().filter(|(ulid, _)| *ulid == block);
                    of_block.for_each(|(_, step)| *step = Step::HoldBack(HeldBack::NotRewritten));
                }
                Rewriting::Damaged(cause) => {
                    steps.retain(|(ulid, _)| *ulid != block);
                    round.damaged.push((block, cause));
                }
            }
        }
        self.metrics.damaged.set(round.damaged.len() as f64);
        rewritten
    }

    /// Reads the record and what is in the directory.
    async fn look(&self) -> Result<Round, ShipError> {
        let (disk, dir, db) = (self.env.disk.clone(), self.dir.clone(), self.db.clone());
        let is_cleaned = std::mem::replace(&mut self.state.lock().is_cleaned, true);
        let looking = tokio::task::spawn_blocking(move || {
            if !is_cleaned {
                // What Thanos leaves of an upload that was cut off: other names of blocks' files.
                let _ = disk.remove_dir_all(&dir.join("thanos").join("upload"));
            }
            let recorded = record::read(&*disk, &dir);
            let known: BTreeSet<Ulid> = recorded.iter().flatten().copied().collect();
            (recorded, blocks::find(&*disk, &dir, &known, &*db))
        });
        let (recorded, found) = looking.await?;
        let is_new = match &recorded {
            Ok(_) => false,
            Err(NoRecord::NotThere) => {
                let message = "no meta file found, creating empty meta data to write later";
                tracing::info!(tenant = self.tenant, "{message}");
                true
            }
            Err(err) => {
                let message = "failed to read meta file, creating empty meta data to write later";
                tracing::error!(tenant = self.tenant, %err, "{message}");
                true
            }
        };
        let Found { recorded: still_here, blocks, damaged } = found?;
        let before = recorded.unwrap_or_default();
        let recorded: Vec<Ulid> =
            before.iter().copied().filter(|ulid| still_here.contains(ulid)).collect();
        let told = |(ulid, damage): (Ulid, Damage)| (ulid, chain(&damage));
        let round = Round {
            damaged: damaged.into_iter().map(told).collect(),
            blocks: blocks.iter().map(|(block, _)| *block).collect(),
            metas: blocks.into_iter().map(|(block, meta)| (block.ulid, meta)).collect(),
            recorded,
            failed: 0,
            uploaded: 0,
        };
        if is_new || round.recorded.len() < before.len() {
            self.write_record(&round.recorded).await;
        }
        Ok(round)
    }

    /// By default one that is damaged holds all others back: nobody knows how old it is.
    fn judge_damaged(&self, damaged: &[(Ulid, String)]) -> Result<(), ShipError> {
        let Some((block, cause)) = damaged.first() else { return Ok(()) };
        self.metrics.corrupted.add(damaged.len() as u64);
        if !self.env.options.goes_on_after_damage {
            return Err(ShipError::Damaged { block: *block, cause: cause.clone() });
        }
        for (block, err) in damaged {
            tracing::error!(tenant = self.tenant, %block, err, "a damaged block is not shipped");
        }
        Ok(())
    }

    /// Asks the bucket for the blocks that may be there, and notes those that are.
    async fn ask(&self, round: &mut Round) -> Result<BTreeMap<Ulid, bool>, ShipError> {
        let mut answers = BTreeMap::new();
        let asked = round.plan(&answers);
        let mut noted = false;
        for (ulid, _) in asked.into_iter().filter(|(_, step)| *step == Step::Ask) {
            let exists = self.env.bucket.exists(&object(ulid, META_FILE)).await;
            let exists = exists.map_err(ShipError::Exists)?;
            answers.insert(ulid, exists);
            if exists {
                round.recorded.push(ulid);
                noted = true;
            }
        }
        if noted {
            self.write_record(&round.recorded).await;
        }
        Ok(answers)
    }

    /// Shows what is held back and what waits, and says of a block once why it is not shipped.
    fn show(&self, round: &Round, steps: &[(Ulid, Step)]) {
        let mut state = self.state.lock();
        state.told.retain(|(ulid, _)| round.metas.contains_key(ulid));
        state.of_newer_encoding.retain(|ulid| round.metas.contains_key(ulid));
        let mut held: BTreeSet<(Ulid, HeldBack)> = BTreeSet::new();
        let mut pending = 0;
        for (ulid, step) in steps {
            match step {
                Step::HoldBack(reason) => drop(held.insert((*ulid, *reason))),
                Step::Upload if state.of_newer_encoding.contains(ulid) => {
                    held.insert((*ulid, HeldBack::Encoding));
                }
                Step::Upload => pending += 1,
                Step::Ignore | Step::Ask | Step::Note => {}
            }
        }
        for (block, reason) in &held {
            if state.told.insert((*block, *reason)) {
                let why = reason.why();
                tracing::warn!(tenant = self.tenant, %block, why, "a block is not shipped");
            }
        }
        let count = |reason| held.iter().filter(|(_, of)| *of == reason).count();
        self.metrics.show_held_back(count);
        self.metrics.pending.set(f64::from(pending));
    }

    /// Ships a block, and goes on without it if the options say so.
    async fn ship_one(&self, round: &mut Round, ulid: Ulid) -> Result<(), ShipError> {
        if self.state.lock().of_newer_encoding.contains(&ulid) {
            return Ok(());
        }
        match self.check(ulid).await? {
            Ok(Checked::Readable) => {}
            Ok(Checked::OfNewerEncoding) => {
                self.state.lock().of_newer_encoding.insert(ulid);
                return Ok(());
            }
            Ok(Checked::Gone | Checked::Interrupted) => return Ok(()),
            Err(damage) => {
                let damaged = (ulid, chain(&damage));
                round.damaged.push(damaged.clone());
                self.metrics.damaged.set(round.damaged.len() as f64);
                return self.judge_damaged(&[damaged]);
            }
        }
        let Some(meta) = round.metas.remove(&ulid) else { return Ok(()) };
        tracing::info!(tenant = self.tenant, id = %ulid, "upload new block");
        match self.upload(ulid, &meta).await {
            Ok(()) => {
                self.metrics.uploads.inc();
                self.metrics.pending.add(-1.0);
                round.uploaded += 1;
                round.recorded.push(ulid);
                self.write_record(&round.recorded).await;
                Ok(())
            }
            Err(source) => {
                self.metrics.upload_failures.inc();
                if !self.env.options.goes_on_after_failure {
                    return Err(ShipError::Upload { block: ulid, source });
                }
                round.failed += 1;
                let err = chain(&source);
                tracing::error!(tenant = self.tenant, block = %ulid, err, "shipping failed");
                Ok(())
            }
        }
    }

    /// Reads the whole block before it goes where nobody can mend it.
    async fn check(&self, ulid: Ulid) -> Result<Result<Checked, ReadError>, ShipError> {
        let (disk, dir) = (self.env.disk.clone(), self.dir.join(ulid.to_string()));
        let checked = tokio::task::spawn_blocking(move || blocks::check(&*disk, &dir)).await?;
        match checked {
            Err(err) if !blocks::is_damage(&err) => Err(err.into()),
            checked => Ok(checked),
        }
    }

    async fn upload(&self, ulid: Ulid, meta: &BlockMeta) -> Result<(), UploadError> {
        let (disk, dir) = (self.env.disk.clone(), self.dir.join(ulid.to_string()));
        let is_hashed = self.env.options.has_hashes;
        let opening = tokio::task::spawn_blocking(move || upload::open(&*disk, &dir, is_hashed));
        let files = opening.await??;
        let labels = self.db.external_labels();
        let manifest = upload::manifest(meta, &labels, &files, self.env.clock.now())?;
        upload::upload(&*self.env.bucket, ulid, &files, &manifest, self.env.options.files_at_once)
            .await
    }

    /// Without it the bucket is asked again, that is all.
    async fn write_record(&self, uploaded: &[Ulid]) {
        let (disk, dir, uploaded) = (self.env.disk.clone(), self.dir.clone(), uploaded.to_vec());
        let writing = move || record::write(&*disk, &dir, &uploaded);
        match tokio::task::spawn_blocking(writing).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => {
                tracing::warn!(tenant = self.tenant, %err, "updating meta file failed");
            }
            Err(err) => tracing::error!(tenant = self.tenant, %err, "updating meta file failed"),
        }
    }
}
