use std::path::Path;

use super::*;
use crate::disk::Disk;
use crate::disk::faulty::FaultyDisk;
use crate::model::TimeRange;
use crate::tsdb::block::meta::BlockDesc;
use crate::tsdb::block::tests::data_dir;
use crate::tsdb::block::tombstones::Tombstones;
use crate::tsdb::cut::tests::{HOUR, Life, in_temp, restarted, sample_count};
use crate::tsdb::head::tests::{Series, dump};
use crate::tsdb::retention::{Retention, read_floor};

const DIR: &str = "/db/t";

impl Db {
    /// Rewrites until there is nothing left to rewrite now; how many blocks went.
    pub(crate) fn rewrite_asked(&self) -> Result<usize, MergeError> {
        self.remove_replaced();
        turns(|| self.rewrite_next())
    }

    /// The same of merging.
    pub(crate) fn compact(&self) -> Result<usize, MergeError> {
        self.remove_replaced();
        turns(|| self.merge_next())
    }

    fn forget_postponed(&self) {
        self.merging.state.lock().postponed.clear();
        self.merging.replacing.forget_postponed();
    }
}

fn turns(next: impl Fn() -> Result<Turn, MergeError>) -> Result<usize, MergeError> {
    let mut made = 0;
    loop {
        match next()? {
            Turn::Idle => return Ok(made),
            Turn::Made => made += 1,
            Turn::GivenUp => {}
        }
    }
}

fn life_on(disk: &FaultyDisk) -> Life {
    Life::begin(Arc::new(disk.clone()), Path::new(DIR))
}

fn served(db: &Db) -> Vec<Arc<Block>> {
    db.view.load().blocks.clone()
}

/// Names of blocks in the directory.
fn named(disk: &dyn Disk, dir: &Path) -> BTreeSet<Ulid> {
    let entries = disk.list(dir).unwrap();
    entries.iter().filter_map(|entry| entry.name.to_str()?.parse().ok()).collect()
}

/// Deletes a part of the first series' samples, and all of another's.
fn delete_from(disk: &dyn Disk, block: &Block) {
    let series = block.index().all_postings().unwrap();
    let mint = block.meta().min_time;
    let part = TimeRange { mint: mint + HOUR / 4, maxt: mint + HOUR };
    let all = TimeRange { mint: i64::MIN, maxt: i64::MAX };
    let spans = vec![(u64::from(series[0]), part), (u64::from(series[1]), all)];
    Tombstones::from_spans(spans).write(disk, block.dir()).unwrap();
}

/// A database with one block, of which something is deleted.
fn with_tombstones(disk: &FaultyDisk) -> (Life, Ulid) {
    let mut life = life_on(disk);
    life.write(0..4, 182);
    assert_eq!(life.db().cut_due().unwrap(), 1);
    let block = served(life.db()).remove(0);
    delete_from(disk, &block);
    life.open();
    (life, block.meta().ulid)
}

#[test]
fn a_block_is_rewritten_without_what_is_deleted() {
    let disk = FaultyDisk::new();
    let (mut life, parent) = with_tombstones(&disk);
    let before = dump(life.db());
    let floor = life.db().view.load().floor;
    // Nobody has asked.
    assert_eq!(life.db().rewrite_asked().unwrap(), 0);
    life.db().ask_to_rewrite([Ulid(7), parent]);
    assert_eq!(life.db().rewrite_asked().unwrap(), 1);
    for _ in 0..2 {
        let blocks = served(life.db());
        let [block] = &blocks[..] else { panic!("{} blocks", blocks.len()) };
        let meta = block.meta();
        assert!(block.tombstones().is_empty());
        assert_eq!((meta.compaction.level, &meta.compaction.sources[..]), (1, &[parent][..]));
        assert_eq!(meta.compaction.parents[0].ulid, parent);
        assert_eq!(
            (meta.stats.num_series, meta.compaction.parents[0].max_time),
            (3, meta.max_time)
        );
        assert_eq!(named(&disk, Path::new(DIR)), BTreeSet::from([meta.ulid]));
        assert!(life.db().is_settled(meta.ulid));
        assert_eq!(dump(life.db()), before);
        assert_eq!(life.db().view.load().floor, floor);
        life.open();
    }
    // Once is enough.
    life.db().ask_to_rewrite([parent]);
    assert_eq!(life.db().rewrite_asked().unwrap(), 0);
}

/// Else a start would read it again.
#[test]
fn a_block_that_cannot_be_taken_away_keeps_what_names_it() {
    for millis in [0, 1] {
        let disk = FaultyDisk::new();
        let (life, parent) = with_tombstones(&disk);
        let before = dump(life.db());
        let dir = Path::new(DIR).join(parent.to_string());
        disk.refuse_changes(&dir, io::ErrorKind::Other);
        // Whichever of the two comes first by name.
        life.clock.set(parent.millis() as i64 + millis);
        life.db().ask_to_rewrite([parent]);
        assert_eq!(life.db().rewrite_asked().unwrap(), 1);
        let child = served(life.db())[0].clone();
        assert!(!life.db().is_settled(parent) && life.db().is_settled(child.meta().ulid));
        life.db().ask_to_rewrite([child.meta().ulid]);
        assert_eq!(life.db().rewrite_asked().unwrap(), 1);
        let youngest = served(life.db())[0].meta().ulid;
        let all = BTreeSet::from([parent, child.meta().ulid, youngest]);
        assert_eq!(named(&disk, Path::new(DIR)), all);
        let again = restarted(&life, disk.after_kill());
        assert_eq!(dump(again.db()), before);
        assert_eq!(served(again.db())[0].meta().ulid, youngest);
        disk.allow_changes(&dir);
        life.db().forget_postponed();
        assert_eq!(life.db().rewrite_asked().unwrap(), 0);
        assert_eq!(named(&disk, Path::new(DIR)), BTreeSet::from([youngest]));
        assert_eq!(dump(life.db()), before);
    }
}

/// A database with one block, of which everything is deleted.
fn wholly_deleted(disk: &FaultyDisk) -> (Life, Ulid) {
    let mut life = life_on(disk);
    life.write(0..2, 182);
    assert_eq!(life.db().cut_due().unwrap(), 1);
    let block = served(life.db()).remove(0);
    let all = TimeRange { mint: i64::MIN, maxt: i64::MAX };
    let spans = block.index().all_postings().unwrap().into_iter().map(|s| (u64::from(s), all));
    Tombstones::from_spans(spans.collect()).write(disk, block.dir()).unwrap();
    life.open();
    (life, block.meta().ulid)
}

#[test]
fn a_block_of_which_nothing_is_left_goes_as_a_whole_and_shuts_out_what_it_did() {
    let disk = FaultyDisk::new();
    let (mut life, block) = wholly_deleted(&disk);
    let before = dump(life.db());
    let floor = life.db().view.load().floor;
    life.db().ask_to_rewrite([block]);
    assert_eq!(life.db().rewrite_asked().unwrap(), 1);
    for _ in 0..2 {
        assert_eq!(named(&disk, Path::new(DIR)), BTreeSet::new());
        assert_eq!((dump(life.db()), life.db().view.load().floor), (before.clone(), floor));
        life.open();
    }
    assert_eq!(read_floor(&disk, Path::new(DIR)).unwrap(), floor);
}

#[test]
fn a_reader_that_began_before_reads_on() {
    let disk = FaultyDisk::new();
    let (life, parent) = with_tombstones(&disk);
    let querier = life.db().querier(i64::MIN, i64::MAX);
    let selected = querier.select(&[]).unwrap();
    life.db().ask_to_rewrite([parent]);
    assert_eq!(life.db().rewrite_asked().unwrap(), 1);
    let mut chunks = Vec::new();
    selected.iter().for_each(|series| querier.chunks(series, &mut chunks).unwrap());
    assert!(chunks.len() > 4, "{}", chunks.len());
}

/// Five blocks, of which three are in one range of six hours; of one something is deleted.
fn with_blocks(disk: &FaultyDisk) -> Life {
    let mut life = life_on(disk);
    for round in 0..6 {
        life.write(round..round + 3, 122);
        life.db().cut_due().unwrap();
    }
    let blocks = served(life.db());
    assert_eq!(blocks.len(), 5);
    delete_from(disk, &blocks[1]);
    life.open();
    life
}

#[test]
fn blocks_are_merged_up_the_ladder_and_the_newest_waits() {
    let disk = FaultyDisk::new();
    let mut life = with_blocks(&disk);
    let before = dump(life.db());
    let parents: BTreeSet<_> = served(life.db()).iter().map(|block| block.meta().ulid).collect();
    assert!(life.db().compact().unwrap() > 0);
    let merged: Vec<_> =
        served(life.db()).into_iter().filter(|block| block.meta().compaction.level == 2).collect();
    assert!(!merged.is_empty());
    for block in &merged {
        let meta = block.meta();
        let sources: BTreeSet<_> = meta.compaction.sources.iter().copied().collect();
        assert!(sources.len() > 1 && sources.is_subset(&parents));
        assert_eq!(meta.min_time.div_euclid(6 * HOUR), (meta.max_time - 1).div_euclid(6 * HOUR));
    }
    let newest = served(life.db()).into_iter().max_by_key(|block| block.meta().max_time).unwrap();
    assert_eq!(newest.meta().compaction.level, 1);
    assert_eq!(dump(life.db()), before);
    assert_eq!(life.db().compact().unwrap(), 0);
    life.open();
    assert_eq!(dump(life.db()), before);
    assert_eq!(life.db().compact().unwrap(), 0);
    assert_eq!(named(&disk, Path::new(DIR)).len(), served(life.db()).len());
}

fn read_names(life: &Life) -> BTreeSet<Ulid> {
    served(life.db()).iter().map(|block| block.meta().ulid).collect()
}

/// What may be handed on.
fn settled_now(life: &Life, disk: &FaultyDisk) -> BTreeSet<Ulid> {
    let named = named(disk, Path::new(DIR)).into_iter();
    named.filter(|block| life.db().is_settled(*block)).collect()
}

/// Tries something that makes blocks of blocks, which fails or ends at every operation on the disk in
/// turn.
fn at_every_operation(begin: impl Fn(&FaultyDisk) -> Life, work: impl Fn(&Db) -> bool) {
    for operation in 0.. {
        let disk = FaultyDisk::new();
        let life = begin(&disk);
        life.db().sync_handle().sync().unwrap();
        let (before, floor) = (dump(life.db()), life.db().view.load().floor);
        disk.fail_all_operations(operation);
        let is_done = work(life.db());
        let context = format!("operation {operation}, done: {is_done}");
        assert_eq!(dump(life.db()), before, "{context}");
        for (disk, end) in [(disk.after_kill(), "killed"), (disk.after_power_cut(), "power cut")] {
            let again = restarted(&life, disk.clone());
            let context = format!("{context}, {end}");
            assert_eq!(dump(again.db()), before, "{context}");
            assert_eq!(again.db().view.load().floor, floor, "{context}");
            // Parents or child: what a shipper finds is what a reader finds.
            let (read, settled) = (read_names(&again), settled_now(&again, &disk));
            assert!(settled.is_subset(&read), "{context}: {settled:?}, {read:?}");
            work(again.db());
            let read = read_names(&again);
            assert_eq!(named(&disk, Path::new(DIR)), read, "{context}, and again");
            assert_eq!(settled_now(&again, &disk), read, "{context}, and again");
            assert_eq!(dump(again.db()), before, "{context}, and again");
            assert_eq!(again.db().view.load().floor, floor, "{context}, and again");
        }
        // The same with one operation that fails, and the process going on.
        let disk = FaultyDisk::new();
        let mut life = begin(&disk);
        let before = dump(life.db());
        disk.fail_operation(operation, io::ErrorKind::Other, 0);
        work(life.db());
        if disk.pending_faults() > 0 {
            assert!(operation > 10, "there are {operation} operations");
            return;
        }
        assert_eq!(dump(life.db()), before, "{context}, one failed");
        assert_eq!(settled_now(&life, &disk), read_names(&life), "{context}, one failed");
        // It is made good, and leaves nothing behind.
        for _ in 0..2 {
            life.db().forget_postponed();
            work(life.db());
        }
        let read = read_names(&life);
        assert_eq!(named(&disk, Path::new(DIR)), read, "{context}, one failed and made good");
        assert!(served(life.db()).iter().all(|block| block.tombstones().is_empty()), "{context}");
        assert_eq!(dump(life.db()), before, "{context}, one failed and made good");
        life.open();
        assert_eq!(dump(life.db()), before, "{context}, one failed and reopened");
    }
}

#[test]
fn at_whatever_operation_a_rewrite_fails_or_ends_either_block_is_there_and_never_both() {
    let asked = |db: &Db| {
        let blocks = served(db);
        let deleted_from = blocks.iter().filter(|block| !block.tombstones().is_empty());
        db.ask_to_rewrite(deleted_from.map(|block| block.meta().ulid));
        db.rewrite_asked().is_ok()
    };
    at_every_operation(|disk| with_tombstones(disk).0, asked);
}

#[test]
fn at_whatever_operation_a_merge_fails_or_ends_nothing_is_lost_or_there_twice() {
    at_every_operation(with_blocks, |db| db.compact().is_ok());
}

#[test]
fn a_cut_does_not_wait_for_a_merge_and_a_deletion_ends_it() {
    let disk = FaultyDisk::new();
    let mut life = with_blocks(&disk);
    life.options.retention = Retention { age_max: None, bytes_max: Some(1) };
    life.open();
    life.write(0..3, 122);
    let before = dump(life.db());
    let job = life.db().begin(Made::Merged, |view, state| life.db().planned(view, state)).unwrap();
    assert!(job.parents.len() > 1 && life.db().merging.is_under_way());
    assert_eq!(life.db().cut_due().unwrap(), 1);
    // With a block that is newer it is what it was.
    assert!(life.db().run(&job).unwrap());
    assert_eq!(dump(life.db()), before);
    drop(job);
    assert!(!life.db().merging.is_under_way());
    let parents = served(life.db());
    let job = Job { db: life.db(), made: Made::Merged, parents: parents.clone() };
    let ulid = life.db().new_ulid_at(9).unwrap();
    let written = life.db().write_child(ulid, &parents, Made::Merged).unwrap();
    assert!(life.db().drop_expired(|_| true).unwrap() > 0);
    let left = named(&disk, Path::new(DIR));
    assert!(!life.db().put_in_place(ulid, &parents, written).unwrap());
    // It is not there to be read, either.
    assert!(!life.db().run(&job).unwrap());
    assert_eq!(named(&disk, Path::new(DIR)), left);
    let names = disk.list(Path::new(DIR)).unwrap();
    assert!(names.iter().all(|entry| !entry.name.to_string_lossy().contains(".tmp")), "{names:?}");
}

#[test]
fn a_disk_without_room_for_another_block_is_not_filled() {
    let disk = FaultyDisk::new();
    let life = with_blocks(&disk);
    let (before, operations) = (dump(life.db()), disk.operations());
    let job = || life.db().begin(Made::Merged, |view, state| life.db().planned(view, state));
    let run = || life.db().run(&job().unwrap());
    disk.limit_bytes(Some(disk.used_bytes() + 100));
    let Err(MergeError::NoRoom { needed, reserve, free }) = run() else { panic!("room") };
    assert!(needed > free && free <= 100, "{needed}, {free}");
    // The log goes on beside it.
    disk.limit_bytes(Some(disk.used_bytes() + needed + reserve - 1));
    assert!(matches!(run(), Err(MergeError::NoRoom { .. })));
    assert!(reserve >= 2 * life.options.wal_segment_bytes, "{reserve}");
    assert_eq!(life.db().compact().unwrap(), 0);
    assert_eq!((disk.operations(), dump(life.db())), (operations, before.clone()));
    disk.limit_bytes(Some(disk.used_bytes() + needed + reserve));
    life.db().forget_postponed();
    assert!(life.db().compact().unwrap() > 0);
    assert_eq!(dump(life.db()), before);
}

/// It is what helps a full disk.
#[test]
fn a_block_of_which_nothing_is_left_goes_without_room_for_another() {
    let disk = FaultyDisk::new();
    let (life, block) = wholly_deleted(&disk);
    let before = dump(life.db());
    disk.limit_bytes(Some(disk.used_bytes() + (64 << 10)));
    life.db().ask_to_rewrite([block]);
    assert_eq!(life.db().rewrite_asked().unwrap(), 1);
    assert_eq!((named(&disk, Path::new(DIR)), dump(life.db())), (BTreeSet::new(), before));
}

/// Names others as a block's parents.
fn adopt(disk: &FaultyDisk, child: &Block, parents: &[&Block]) {
    let mut meta = child.meta().clone();
    let desc = |parent: &&Block| {
        let BlockMeta { ulid, min_time, max_time, .. } = *parent.meta();
        BlockDesc { ulid, min_time, max_time }
    };
    meta.compaction.parents = parents.iter().map(desc).collect();
    meta.write(disk, child.dir()).unwrap();
}

fn damage(disk: &FaultyDisk, file: &Path) {
    disk.open_write(file).unwrap().write_all_at(&[0; 4], 0).unwrap();
}

#[test]
fn a_start_leaves_out_what_a_whole_block_was_made_from_and_nothing_else() {
    let disk = FaultyDisk::new();
    let mut life = with_blocks(&disk);
    let floor = life.db().view.load().floor;
    let blocks = served(life.db());
    let ulids: Vec<_> = blocks.iter().map(|block| block.meta().ulid).collect();
    let read = |life: &Life| -> Vec<Ulid> {
        served(life.db()).iter().map(|block| block.meta().ulid).collect()
    };
    // Each is the other's parent, and one its own.
    adopt(&disk, &blocks[0], &[&blocks[1]]);
    adopt(&disk, &blocks[1], &[&blocks[0]]);
    adopt(&disk, &blocks[2], &[&blocks[2]]);
    life.open();
    assert_eq!(read(&life), ulids);
    // One that cannot be read as a whole takes nobody's place.
    adopt(&disk, &blocks[4], &[&blocks[3]]);
    damage(&disk, &blocks[4].dir().join("chunks/000001"));
    life.open();
    assert_eq!(read(&life), ulids);
    // A parent's parent goes, too, and so does one that is damaged.
    adopt(&disk, &blocks[0], &[&blocks[1]]);
    adopt(&disk, &blocks[1], &[&blocks[2]]);
    adopt(&disk, &blocks[3], &[&blocks[0]]);
    damage(&disk, &blocks[0].dir().join("index"));
    life.open();
    assert_eq!(read(&life), [ulids[1], ulids[3], ulids[4]]);
    assert_eq!(named(&disk, Path::new(DIR)).len(), 5, "nothing has gone yet");
    assert!(!life.db().is_settled(ulids[3]) && !life.db().is_settled(ulids[0]));
    life.db().remove_replaced();
    assert!(life.db().is_settled(ulids[3]));
    assert_eq!(named(&disk, Path::new(DIR)), read(&life).into_iter().collect());
    adopt(&disk, &blocks[3], &[&blocks[1]]);
    life.open();
    assert_eq!(read(&life), ulids[3..]);
    life.db().remove_replaced();
    assert_eq!(named(&disk, Path::new(DIR)), ulids[3..].iter().copied().collect());
    assert_eq!(life.db().view.load().floor, floor);
}

/// One that is opened anew, or goes, belongs to somebody else.
#[test]
fn a_database_that_is_closed_gives_no_block_a_name() {
    let disk = FaultyDisk::new();
    let life = with_blocks(&disk);
    let before = named(&disk, Path::new(DIR));
    let job = life.db().begin(Made::Merged, |view, state| life.db().planned(view, state)).unwrap();
    life.db().close().unwrap();
    assert!(!life.db().run(&job).unwrap());
    drop(job);
    assert!(life.db().begin(Made::Merged, |view, _| view.blocks.clone()).is_none());
    assert_eq!(named(&disk, Path::new(DIR)), before);
}

/// What shut out no sample from a time on is not to do so because it was made anew later.
#[test]
fn a_block_that_ends_later_than_it_was_made_at_shuts_out_no_more_when_it_is_made_anew() {
    let disk = FaultyDisk::new();
    let mut life = life_on(&disk);
    life.write(0..3, 182);
    assert_eq!(life.db().cut_due().unwrap(), 1);
    let block = served(life.db()).remove(0);
    // As if it had been made half an hour before its end.
    let millis = block.meta().max_time - HOUR / 2;
    let ulid = Ulid::new(millis as u64, 5);
    let meta = BlockMeta { ulid, compaction: Compaction::of_head(ulid), ..block.meta().clone() };
    meta.write(&disk, block.dir()).unwrap();
    let dir = Path::new(DIR).join(ulid.to_string());
    disk.rename(block.dir(), &dir).unwrap();
    delete_from(&disk, &block_at(&disk, &dir));
    life.open();
    let (before, floor) = (dump(life.db()), life.db().view.load().floor);
    assert_eq!(floor, millis);
    life.db().ask_to_rewrite([ulid]);
    assert_eq!(life.db().rewrite_asked().unwrap(), 1);
    assert!(served(life.db())[0].meta().ulid != ulid);
    life.open();
    assert_eq!((dump(life.db()), life.db().view.load().floor), (before, floor));
}

fn block_at(disk: &FaultyDisk, dir: &Path) -> Block {
    Block::open(disk, dir, PageCache::new(0)).unwrap()
}

#[test]
fn the_time_of_a_new_block_shuts_out_what_its_parents_did() {
    let disk = FaultyDisk::new();
    let life = with_blocks(&disk);
    let blocks = served(life.db());
    let end = blocks.iter().map(|block| block.meta().max_time).max().unwrap();
    assert_eq!(child_millis(&blocks, end + 5), end as u64 + 5);
    // The clock jumped back.
    assert_eq!(child_millis(&blocks, 5), end as u64);
}

/// Puts recorded blocks that are merged to something into a database's directory.
fn put_recorded(life: &mut Life, case: &str) -> BTreeSet<Ulid> {
    let from = data_dir().parent().unwrap().join("compaction/blocks").join(case).join("in");
    let mut blocks = BTreeSet::new();
    for entry in std::fs::read_dir(&from).unwrap().map(Result::unwrap) {
        let to = life.dir().join(entry.file_name());
        std::fs::create_dir_all(to.join("chunks")).unwrap();
        for file in ["chunks/000001", "index", "meta.json", "tombstones"] {
            std::fs::copy(entry.path().join(file), to.join(file)).unwrap();
        }
        blocks.insert(entry.file_name().to_str().unwrap().parse::<Ulid>().unwrap());
    }
    life.open();
    blocks
}

/// Of some of the recorded histograms a part is deleted.
#[test]
fn what_is_deleted_of_histograms_goes_as_well() {
    in_temp(|mut life| {
        let blocks = put_recorded(&mut life, "tombstones");
        life.db().ask_to_rewrite(blocks.iter().copied());
        assert_eq!(life.db().rewrite_asked().unwrap(), blocks.len());
        assert_eq!(life.db().merging.metrics.failed.value(), 0.0);
    });
}

fn are_marked(life: &Life) -> Vec<bool> {
    served(life.db()).iter().map(|block| block.meta().compaction.failed).collect()
}

#[test]
fn blocks_whose_histograms_overlap_become_one() {
    in_temp(|mut life| {
        put_recorded(&mut life, "overlapping-histograms");
        assert!(life.db().compact().unwrap() > 0);
        assert_eq!(life.db().merging.metrics.failed.value(), 0.0);
    });
}

#[test]
fn what_is_damaged_is_marked_for_good_but_by_nobody_who_has_closed_the_database() {
    for is_closed in [true, false] {
        let disk = FaultyDisk::new();
        let mut life = with_blocks(&disk);
        let job = || life.db().begin(Made::Merged, |view, state| life.db().planned(view, state));
        let parents = job().unwrap().parents.clone();
        damage_chunk(&disk, &parents[1]);
        let job = job().unwrap();
        let err = life.db().run(&job).unwrap_err();
        assert_eq!(err.outlook(), Outlook::Never);
        if is_closed {
            life.db().close().unwrap();
        }
        life.db().note_failed(&job, &err);
        drop(job);
        life.open();
        let marked = are_marked(&life).iter().filter(|marked| **marked).count();
        assert_eq!(marked, if is_closed { 0 } else { parents.len() });
    }
}

/// Damages a chunk, which nobody sees who only opens the block.
fn damage_chunk(disk: &FaultyDisk, block: &Block) {
    let file = disk.open_write(&block.dir().join("chunks/000001")).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, 20).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 20).unwrap();
}

/// A database that ended when a merged block had its name and before its parents had lost theirs: the
/// block's name, and what was stored.
fn child_beside_parents() -> (FaultyDisk, Life, Ulid, Vec<Series>) {
    let disk = FaultyDisk::new();
    let life = with_blocks(&disk);
    let before = dump(life.db());
    for parent in served(life.db()) {
        disk.refuse_changes(parent.dir(), io::ErrorKind::Other);
    }
    let parents = named(&disk, Path::new(DIR));
    assert_eq!(life.db().merge_next().unwrap(), Turn::Made);
    let disk = disk.after_kill();
    let child = *named(&disk, Path::new(DIR)).difference(&parents).next().unwrap();
    let again = restarted(&life, disk.clone());
    assert_eq!(named(&disk, Path::new(DIR)).len(), parents.len() + 1);
    (disk, again, child, before)
}

#[test]
fn parents_of_a_block_that_is_damaged_come_back_and_of_one_that_is_whole_go() {
    for (what, comes_back) in [("", false), ("chunk", true), ("end", true)] {
        let (disk, life, child, before) = child_beside_parents();
        let dir = Path::new(DIR).join(child.to_string());
        match what {
            "chunk" => damage_chunk(&disk, &block_at(&disk, &dir)),
            // As if somebody had copied the half of it.
            "end" => {
                let file = disk.open_write(&dir.join("chunks/000001")).unwrap();
                file.truncate(file.len().unwrap() / 2).unwrap();
            }
            _ => {}
        }
        assert!(read_names(&life).contains(&child));
        assert!(!life.db().is_settled(child), "its parents may be read again");
        life.db().remove_replaced();
        assert_eq!(dump(life.db()), before, "{what}");
        assert_eq!(read_names(&life).contains(&child), !comes_back, "{what}");
        assert_eq!(named(&disk, Path::new(DIR)), read_names(&life), "{what}");
        assert_eq!(settled_now(&life, &disk), read_names(&life), "{what}");
        let aside = Path::new(DIR).join(format!("set-aside.{child}"));
        assert_eq!(disk.list(&aside).is_ok(), comes_back, "{what}: it is kept");
        let again = restarted(&life, disk.after_power_cut());
        assert_eq!((dump(again.db()), read_names(&again)), (before, read_names(&life)), "{what}");
    }
}

/// What is left of either is better than one of them.
#[test]
fn a_damaged_block_stays_if_a_parent_is_not_there_any_more() {
    let (disk, life, child, _) = child_beside_parents();
    let block = block_at(&disk, &Path::new(DIR).join(child.to_string()));
    damage_chunk(&disk, &block);
    let parent = block.meta().compaction.parents[0].ulid;
    disk.remove_dir_all(&Path::new(DIR).join(parent.to_string())).unwrap();
    let before = named(&disk, Path::new(DIR));
    life.db().remove_replaced();
    assert!(read_names(&life).contains(&child));
    assert_eq!(named(&disk, Path::new(DIR)), before);
}

/// A merge is given up for what was deleted of a parent meanwhile, as by somebody else's tool.
#[test]
fn what_is_deleted_of_a_parent_while_it_is_merged_stays_deleted() {
    let disk = FaultyDisk::new();
    let mut life = with_blocks(&disk);
    let job = life.db().begin(Made::Merged, |view, state| life.db().planned(view, state)).unwrap();
    let parents = job.parents.clone();
    let ulid = life.db().new_ulid_at(9).unwrap();
    let written = life.db().write_child(ulid, &parents, Made::Merged).unwrap();
    delete_from(&disk, &parents[0]);
    assert!(!life.db().put_in_place(ulid, &parents, written).unwrap());
    drop(job);
    let disk_before = disk.after_kill();
    let expected = dump(restarted(&life, disk_before).db());
    assert!(life.db().compact().unwrap() > 0);
    life.open();
    assert_eq!(dump(life.db()), expected);
}

/// One that cannot be read costs what is made of it, for a while, and nothing else.
#[tokio::test(start_paused = true)]
async fn a_block_that_cannot_be_read_now_holds_up_no_other() {
    let disk = FaultyDisk::new();
    let mut life = life_on(&disk);
    for round in 0..8 {
        life.write(round..round + 3, 122);
        life.db().cut_due().unwrap();
    }
    let before = dump(life.db());
    let planned = life.db().begin(Made::Merged, |view, state| life.db().planned(view, state));
    let first = planned.unwrap().names();
    let file = Path::new(DIR).join(first[0].to_string()).join("chunks/000001");
    disk.fail_reads(&file, io::ErrorKind::Other);
    assert!(life.db().compact().unwrap() > 0);
    assert!(read_names(&life).is_superset(&first.iter().copied().collect()));
    let failures = life.db().merging.metrics.failed.value();
    assert_eq!(failures, 1.0);
    disk.allow_reads(&file);
    assert_eq!(life.db().compact().unwrap(), 0, "its turn has not come");
    assert_eq!(life.db().merging.metrics.failed.value(), failures);
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    assert!(life.db().compact().unwrap() > 0);
    assert!(read_names(&life).is_disjoint(&first.iter().copied().collect()));
    assert_eq!(dump(life.db()), before);
    // The same of rewriting.
    let blocks = served(life.db());
    blocks.iter().for_each(|block| delete_from(&disk, block));
    life.open();
    let (before, blocks) = (dump(life.db()), served(life.db()));
    assert!(blocks.len() > 1);
    disk.fail_reads(&blocks[0].dir().join("index"), io::ErrorKind::Other);
    life.db().ask_to_rewrite(blocks.iter().map(|block| block.meta().ulid));
    assert_eq!(life.db().rewrite_asked().unwrap(), blocks.len() - 1);
    disk.allow_reads(&blocks[0].dir().join("index"));
    assert_eq!(life.db().rewrite_asked().unwrap(), 0);
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    assert_eq!(life.db().rewrite_asked().unwrap(), 1);
    assert_eq!(dump(life.db()), before);
}

/// It leaves nothing behind, and is not begun anew at once.
#[test]
fn a_merge_that_panics_leaves_others_their_turn() {
    let disk = FaultyDisk::new();
    let life = with_blocks(&disk);
    let before = disk.list(Path::new(DIR)).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let job = life.db().begin(Made::Merged, |view, state| life.db().planned(view, state));
        let parents = job.as_ref().unwrap().parents.clone();
        let _written = life.db().write_child(Ulid(9), &parents, Made::Merged).unwrap();
        panic!("a defect");
    }));
    assert!(panicked.is_err() && !life.db().merging.is_under_way());
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), before);
    let is_postponed =
        |block: &Arc<Block>| life.db().merging.state.lock().postponed.holds(block.meta().ulid);
    assert!(served(life.db()).iter().any(is_postponed));
}

/// Else a start would read its parents.
#[test]
fn a_block_that_is_kept_no_longer_goes_after_what_it_has_taken_the_place_of() {
    for operation in 0.. {
        let (disk, mut life, child, _) = child_beside_parents();
        life.options.retention = Retention { age_max: None, bytes_max: Some(1) };
        life.open();
        let parents: BTreeSet<_> =
            named(&disk, Path::new(DIR)).difference(&read_names(&life)).copied().collect();
        assert!(parents.len() > 1);
        disk.fail_all_operations(operation);
        let is_done = life.db().drop_expired(|block| block == child).is_ok();
        for disk in [disk.after_kill(), disk.after_power_cut()] {
            let left = named(&disk, Path::new(DIR));
            assert!(left.contains(&child) || left.is_disjoint(&parents), "{operation}: {left:?}");
        }
        if is_done {
            assert!(!named(&disk, Path::new(DIR)).contains(&child));
            return;
        }
    }
}

#[test]
fn overlapping_blocks_become_one() {
    let disk = FaultyDisk::new();
    let mut life = life_on(&disk);
    life.write(0..3, 182);
    assert_eq!(life.db().cut_due().unwrap(), 1);
    let block = served(life.db()).remove(0);
    // The same block once more, as if somebody had copied it.
    let ulid = Ulid::new(block.meta().ulid.millis(), 77);
    let dir = Path::new(DIR).join(ulid.to_string());
    disk.create_dir_all(&dir.join("chunks")).unwrap();
    for file in ["chunks/000001", "index", "tombstones"] {
        let bytes = crate::disk::read_file(&disk, &block.dir().join(file), 1 << 20).unwrap();
        let copy = disk.create(&dir.join(file)).unwrap();
        copy.write_all_at(&bytes, 0).unwrap();
    }
    BlockMeta { ulid, compaction: Compaction::of_head(ulid), ..block.meta().clone() }
        .write(&disk, &dir)
        .unwrap();
    life.open();
    let before = dump(life.db());
    assert_eq!(served(life.db()).len(), 2);
    assert_eq!(life.db().compact().unwrap(), 1);
    let blocks = served(life.db());
    assert_eq!((blocks.len(), dump(life.db())), (1, before.clone()));
    assert_eq!(blocks[0].meta().stats, block.meta().stats);
    assert_eq!(life.db().merging.metrics.vertical.value(), 1.0);
    assert_eq!(sample_count(&before), 3 * 182);
}
