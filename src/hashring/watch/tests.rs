use std::fs;
use std::os::unix::fs::symlink;

use parking_lot::Mutex;

use super::*;
use crate::clock::ManualClock;
use crate::hashring::{Algorithm, Endpoint};

/// A hashrings file that is followed, and what its readers see.
struct Fixture {
    directory: tempfile::TempDir,
    current: CurrentHashring,
    view: FileView,
    registry: Registry,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
}

fn ring(endpoint: &str) -> String {
    format!(r#"[{{"hashring":"h","endpoints":["{endpoint}"]}}]"#)
}

impl Fixture {
    /// `arrange` prepares the directory; the file is `rings/hashrings.json` in it.
    fn follow(arrange: impl FnOnce(&Path)) -> Fixture {
        Fixture::follow_with(HoldRules::never(), arrange)
    }

    fn follow_with(hold: HoldRules, arrange: impl FnOnce(&Path)) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        arrange(directory.path());
        let path = directory.path().join("rings/hashrings.json");
        let current = CurrentHashring::none_yet();
        let registry = Registry::new();
        let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 1 };
        let clock = Arc::new(ManualClock::at(7_500));
        let file = HashringsFile::new(path, defaults, current.clone(), hold, clock, &registry);
        let view = file.view();
        let stop = CancellationToken::new();
        // The interval is too long to play a part.
        let task = tokio::spawn(file.follow(Duration::from_secs(3600), stop.clone()));
        Fixture { directory, current, view, registry, stop, task: Some(task) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("rings").join(name)
    }

    /// Waits until the ring consists of `endpoint`. The test runner's own limit is the only
    /// one: a lost event hangs here.
    async fn wait_for(&self, endpoint: &str) {
        let is_there = |hashring: &Option<Arc<Hashring>>| {
            let wanted = [Endpoint::at(endpoint)];
            hashring.as_ref().is_some_and(|hashring| hashring.endpoints() == wanted)
        };
        self.current.subscribe().wait_for(is_there).await.unwrap();
    }

    async fn wait_for_error(&self, part: &str) {
        let has_error =
            |status: &FileStatus| status.last_error.as_ref().is_some_and(|e| e.contains(part));
        self.wait_until(has_error).await;
    }

    async fn wait_until(&self, holds: impl FnMut(&FileStatus) -> bool) {
        self.view.status.clone().wait_for(holds).await.unwrap();
    }

    fn metric(&self, line_start: &str) -> Option<String> {
        let page = self.registry.expose();
        let line = page.lines().find_map(|line| line.strip_prefix(line_start))?;
        Some(line.trim().to_owned())
    }

    async fn end(mut self) {
        self.stop.cancel();
        self.task.take().unwrap().await.unwrap();
    }
}

fn with_file(content: &str) -> impl FnOnce(&Path) {
    move |directory| {
        fs::create_dir(directory.join("rings")).unwrap();
        fs::write(directory.join("rings/hashrings.json"), content).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_in_place_by_rename_or_by_restoring_is_seen() {
    let fixture = Fixture::follow(with_file(&ring("a:1")));
    fixture.wait_for("a:1").await;
    fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
    fixture.wait_for("b:1").await;
    fs::write(fixture.path("new"), ring("c:1")).unwrap();
    fs::rename(fixture.path("new"), fixture.path("hashrings.json")).unwrap();
    fixture.wait_for("c:1").await;
    fs::write(fixture.path("hashrings.json"), ring("d:1")).unwrap();
    fixture.wait_for("d:1").await;
    fs::remove_file(fixture.path("hashrings.json")).unwrap();
    fixture.wait_for_error("No such file").await;
    fs::write(fixture.path("hashrings.json"), ring("e:1")).unwrap();
    fixture.wait_for("e:1").await;
    fixture.end().await;
}

/// What the kubelet does to a mounted ConfigMap.
fn swap_data(rings: &Path, version: &str, content: &str) {
    fs::create_dir_all(rings.join(version)).unwrap();
    fs::write(rings.join(version).join("hashrings.json"), content).unwrap();
    symlink(version, rings.join("..data_tmp")).unwrap();
    fs::rename(rings.join("..data_tmp"), rings.join("..data")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_swap_of_the_data_symlink_is_seen() {
    let fixture = Fixture::follow(|directory| {
        let rings = directory.join("rings");
        swap_data(&rings, "..0", &ring("n0:1"));
        symlink("..data/hashrings.json", rings.join("hashrings.json")).unwrap();
    });
    fixture.wait_for("n0:1").await;
    for i in 1..6 {
        let rings = fixture.directory.path().join("rings");
        swap_data(&rings, &format!("..{i}"), &ring(&format!("n{i}:1")));
        fs::remove_dir_all(rings.join(format!("..{}", i - 1))).unwrap();
        fixture.wait_for(&format!("n{i}:1")).await;
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_and_directory_that_come_late_are_found() {
    let fixture = Fixture::follow(|_| {});
    fixture.wait_for_error("No such file").await;
    assert!(fixture.current.load().is_none());
    fs::create_dir(fixture.directory.path().join("rings")).unwrap();
    fs::write(fixture.path("hashrings.json"), ring("a:1")).unwrap();
    fixture.wait_for("a:1").await;
    // The directory goes and comes back.
    fs::remove_dir_all(fixture.directory.path().join("rings")).unwrap();
    fixture.wait_for_error("No such file").await;
    fs::create_dir(fixture.directory.path().join("rings")).unwrap();
    fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
    fixture.wait_for("b:1").await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_keeps_the_last_good_ring_and_is_told() {
    let fixture = Fixture::follow(with_file(&ring("a:1")));
    fixture.wait_for("a:1").await;
    let good_hash = fixture.metric("thanos_receive_config_hash").unwrap();
    for (content, part) in
        [("[]", "is empty"), ("", "line 1"), ("[\n{\"endpoints\": 7}]", "line 2, [0].endpoints")]
    {
        fs::write(fixture.path("hashrings.json"), content).unwrap();
        fixture.wait_for_error(part).await;
        let hashring = fixture.current.load().unwrap();
        assert_eq!(hashring.endpoints(), [Endpoint::at("a:1")]);
    }
    let metric = |name| fixture.metric(name).unwrap();
    assert_eq!(metric("thanos_receive_config_last_reload_successful"), "0");
    // A late event for the same content may lead to one more complaint.
    let errors: u32 = metric("thanos_receive_hashrings_file_errors_total").parse().unwrap();
    assert!(errors >= 3, "{errors}");
    assert_eq!(metric("thanos_receive_hashrings_file_changes_total"), "1");
    assert_eq!(metric("thanos_receive_config_hash"), good_hash);
    assert_eq!(metric("thanos_receive_config_last_reload_success_timestamp_seconds"), "7.5");
    fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
    fixture.wait_for("b:1").await;
    assert_eq!(fixture.metric("thanos_receive_config_last_reload_successful").unwrap(), "1");
    fixture.wait_until(|status| status.last_error.is_none()).await;
    fixture.end().await;
}

#[test]
fn the_same_content_is_taken_once_and_rings_have_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h.json");
    let registry = Registry::new();
    let current = CurrentHashring::none_yet();
    let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 1 };
    let clock = Arc::new(ManualClock::at(0));
    let hold = HoldRules::never();
    let mut file =
        HashringsFile::new(path.clone(), defaults, current.clone(), hold, clock, &registry);
    let content = r#"[{"hashring":"x","tenants":["t"],"endpoints":["a:1","a:1"]}]"#;
    fs::write(&path, content).unwrap();
    assert_eq!(file.load().unwrap(), Loaded::Changed);
    let first = current.load().unwrap();
    assert_eq!(file.load().unwrap(), Loaded::Unchanged);
    assert!(Arc::ptr_eq(&first, &current.load().unwrap()));
    fs::write(&path, "nonsense").unwrap();
    let error = file.load().unwrap_err();
    file.complain(&error);
    fs::write(&path, content).unwrap();
    assert_eq!(file.load().unwrap(), Loaded::Unchanged);
    let page = registry.expose();
    for line in [
        "thanos_receive_hashrings_file_refreshes_total 4",
        "thanos_receive_hashrings_file_changes_total 1",
        "thanos_receive_hashrings_file_errors_total 1",
        "thanos_receive_config_last_reload_successful 1",
        "thanos_receive_hashring_nodes{name=\"x\"} 2",
        "thanos_receive_hashring_tenants{name=\"x\"} 1",
        "ringest_hashring_warnings{name=\"x\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} in {page}");
    }
    fs::write(&path, ring("b:1")).unwrap();
    assert_eq!(file.load().unwrap(), Loaded::Changed);
    let page = registry.expose();
    assert!(page.contains("thanos_receive_hashring_nodes{name=\"x\"} 0"));
    assert!(page.contains("thanos_receive_hashring_nodes{name=\"h\"} 1"));
}

/// Rings are held while the endpoint is not among those that are available.
fn held_unless(available: &Arc<Mutex<HashSet<String>>>, longest: Duration) -> HoldRules {
    let available = available.clone();
    let reason = move |before: &Hashring, next: &Hashring| {
        before.lost_in(next, 1, |at| available.lock().contains(&at.address))
    };
    HoldRules { longest, reason: Box::new(reason) }
}

fn available(addresses: &[&str]) -> Arc<Mutex<HashSet<String>>> {
    Arc::new(Mutex::new(addresses.iter().map(|address| (*address).to_owned()).collect()))
}

fn is_held(status: &FileStatus) -> bool {
    status.held.is_some()
}

const NEVER_OVER: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rings_that_nobody_can_write_to_are_held_until_somebody_can() {
    let there = available(&["a:1"]);
    let hold = held_unless(&there, NEVER_OVER);
    let fixture = Fixture::follow_with(hold, with_file(&ring("a:1")));
    fixture.wait_for("a:1").await;
    assert_eq!(fixture.metric("ringest_ring_held ").unwrap(), "0");
    fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
    fixture.wait_until(is_held).await;
    let held = fixture.view.status().held.unwrap();
    assert_eq!(held.hashring.endpoints(), [Endpoint::at("b:1")]);
    assert_eq!((held.since, held.until - held.since), (7_500, 3_600_000));
    assert!(held.reason.to_string().contains("quorum of 1: 0 of its 1"), "{}", held.reason);
    assert_eq!(fixture.metric("ringest_ring_held ").unwrap(), "1");
    let since = "ringest_ring_held_since_timestamp_seconds";
    assert_eq!(fixture.metric(since).unwrap(), "7.5");
    assert_eq!(fixture.current.load().unwrap().endpoints(), [Endpoint::at("a:1")]);
    // Its members are known to those who dial.
    fixture.current.while_settled(|_, next| {
        assert_eq!(next.unwrap().endpoints(), [Endpoint::at("b:1")]);
    });
    there.lock().insert("b:1".to_owned());
    fixture.wait_for("b:1").await;
    fixture.wait_until(|status| !is_held(status)).await;
    fixture.current.while_settled(|_, next| assert!(next.is_none()));
    assert_eq!(fixture.metric("ringest_ring_held ").unwrap(), "0");
    assert_eq!(fixture.metric(since).unwrap(), "0");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_rings_are_taken_on_request_or_when_their_time_is_over() {
    let there = available(&["a:1"]);
    let hold = held_unless(&there, NEVER_OVER);
    let fixture = Fixture::follow_with(hold, with_file(&ring("a:1")));
    fixture.wait_for("a:1").await;
    assert_eq!(fixture.view.take_held().await, TakeHeld::NoneHeld);
    fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
    fixture.wait_until(is_held).await;
    assert_eq!(fixture.view.take_held().await, TakeHeld::Taken);
    assert_eq!(fixture.current.load().unwrap().endpoints(), [Endpoint::at("b:1")]);
    // That was for once.
    assert!(fixture.view.asked.rings.lock().is_none());
    fixture.end().await;

    let hold = held_unless(&there, Duration::from_millis(1));
    let fixture = Fixture::follow_with(hold, with_file(&ring("a:1")));
    fixture.wait_for("a:1").await;
    fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
    fixture.wait_for("b:1").await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_file_may_be_withdrawn_replaced_or_spoiled() {
    let there = available(&["a:1"]);
    let hold = held_unless(&there, NEVER_OVER);
    let fixture = Fixture::follow_with(hold, with_file(&ring("a:1")));
    fixture.wait_for("a:1").await;
    let holds = |address: &'static str| {
        move |status: &FileStatus| {
            let wanted = [Endpoint::at(address)];
            status.held.as_ref().is_some_and(|held| held.hashring.endpoints() == wanted)
        }
    };
    fs::write(fixture.path("hashrings.json"), ring("b:1")).unwrap();
    fixture.wait_until(holds("b:1")).await;
    let changes = fixture.current.subscribe();
    fs::write(fixture.path("hashrings.json"), ring("a:1")).unwrap();
    fixture.wait_until(|status| !is_held(status)).await;
    assert!(changes.has_changed().unwrap(), "connections to b:1 are for nobody now");
    fixture.current.while_settled(|_, next| assert!(next.is_none()));

    fs::write(fixture.path("hashrings.json"), ring("c:1")).unwrap();
    fixture.wait_until(holds("c:1")).await;
    fs::write(fixture.path("hashrings.json"), ring("d:1")).unwrap();
    fixture.wait_until(holds("d:1")).await;
    fs::write(fixture.path("hashrings.json"), "nonsense").unwrap();
    fixture.wait_for_error("not parsable").await;
    assert!(holds("d:1")(&fixture.view.status()), "it was good");
    there.lock().insert("d:1".to_owned());
    fixture.wait_for("d:1").await;
    assert!(fixture.view.status().last_error.is_some());
    fixture.end().await;
}

#[tokio::test(start_paused = true)]
async fn holding_is_an_error_only_after_a_while_and_has_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h.json");
    let current = CurrentHashring::none_yet();
    let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 1 };
    let hold = held_unless(&available(&["a:1"]), Duration::from_secs(120));
    let (clock, registry) = (Arc::new(ManualClock::at(60_000)), Registry::new());
    let mut file =
        HashringsFile::new(path.clone(), defaults, current.clone(), hold, clock, &registry);
    fs::write(&path, ring("a:1")).unwrap();
    assert_eq!(file.load().unwrap(), Loaded::Changed);
    fs::write(&path, ring("b:1")).unwrap();
    assert_eq!(file.load().unwrap(), Loaded::Held);
    let is_told = |file: &HashringsFile| file.held.as_ref().unwrap().is_told;
    tokio::time::advance(HELD_TOLD_AFTER - Duration::from_millis(1)).await;
    assert_eq!(file.look_at_held(), Loaded::Held);
    assert!(!is_told(&file));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(file.load().unwrap(), Loaded::Held);
    assert!(is_told(&file));
    // Another file in its place has no time of its own.
    fs::write(&path, ring("c:1")).unwrap();
    assert_eq!(file.load().unwrap(), Loaded::Held);
    let held = file.view().status().held.unwrap();
    assert_eq!((held.since, held.until), (50_000, 170_000));
    tokio::time::advance(Duration::from_secs(110)).await;
    assert_eq!(file.look_at_held(), Loaded::Changed);
    assert_eq!(current.load().unwrap().endpoints(), [Endpoint::at("c:1")]);
}

#[test]
fn the_first_rings_are_never_held() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h.json");
    let current = CurrentHashring::none_yet();
    let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 1 };
    let hold = held_unless(&available(&[]), NEVER_OVER);
    let (clock, registry) = (Arc::new(ManualClock::at(0)), Registry::new());
    let mut file =
        HashringsFile::new(path.clone(), defaults, current.clone(), hold, clock, &registry);
    fs::write(&path, ring("a:1")).unwrap();
    assert_eq!(file.load().unwrap(), Loaded::Changed);
    // Nor those that follow when nothing can be written anyway.
    fs::write(&path, ring("b:1")).unwrap();
    assert_eq!(file.load().unwrap(), Loaded::Changed);
}
