//! Peers that are away, hang or come back.

use super::*;

#[tokio::test]
async fn a_peer_is_used_as_soon_as_it_listens_and_again_after_a_restart() {
    let port = Port::hold();
    let address = port.address;
    let (pool, registry, peer) = pool_of(address, PeerOptions::default());
    let refused = peer.remote_write(&to("a"), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ForwardError::Unreachable { .. }), "{refused}");
    assert!(matches!(pool.snapshot()[0].state, PeerState::Unreachable(_)));
    let unavailable = format!("ringest_peer_available{{worker=\"{address}\"}} 0\n");
    assert!(registry.expose().contains(&unavailable));
    // Failed attempts to connect do not add up to a long back-off: the first call to a peer that
    // listens has it dialled.
    for _ in 0..6 {
        let refused = peer.remote_write(&to("a"), PATIENCE).await.unwrap_err();
        assert!(matches!(refused, ForwardError::Unreachable { .. }), "{refused}");
    }
    let server = Server::start(address);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    server.stop().await;
    let server = Server::start(address);
    succeed(&peer).await;
    assert_eq!(server.sink.written.lock().len(), 1);
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
}

#[tokio::test]
async fn a_peer_that_answers_nothing_is_backed_off_and_found_again() {
    let server = Server::start(any_port());
    let (pool, _, peer) = pool_of(server.address, PeerOptions::default());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    let refused = loop {
        let timed_out = peer.remote_write(&to("hangs"), SHORT).await.unwrap_err();
        if matches!(timed_out, ForwardError::BackedOff { .. }) {
            continue;
        }
        assert!(matches!(timed_out, ForwardError::TimedOut { .. }), "{timed_out}");
        // Unless the back-off is over by now, which grows.
        if let Err(refused) = peer.remote_write(&to("hangs"), SHORT).await
            && matches!(refused, ForwardError::BackedOff { .. })
        {
            break refused;
        }
    };
    assert!(refused.to_string().contains(&server.address.to_string()), "{refused}");
    assert!(matches!(pool.snapshot()[0].state, PeerState::Shut | PeerState::Probation));
    succeed(&peer).await;
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
}

#[tokio::test]
async fn a_tenant_that_hangs_is_backed_off_alone() {
    let server = Server::start(any_port());
    let (pool, _, peer) = pool_of(server.address, PeerOptions::default());
    let hanging = peer.clone();
    let hanging = tokio::spawn(async move { hanging.remote_write(&to("hangs"), PATIENCE).await });
    until("under way", || server.sink.calls.load(Ordering::Relaxed) == 1).await;
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    pass(PATIENCE).await;
    let hanging = hanging.await.unwrap();
    assert!(matches!(hanging, Err(ForwardError::TimedOut { .. })), "{hanging:?}");
    assert_eq!(pool.snapshot()[0].tenants_shut, 1);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
}

/// What our code has logged in this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn keep() -> (Lines, tracing::subscriber::DefaultGuard) {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        let guard = tracing::subscriber::set_default(subscriber);
        (lines, guard)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Message<'a>(&'a Lines);
        impl tracing::field::Visit for Message<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0.0.lock().push(format!("{value:?}"));
                }
            }
        }
        let metadata = event.metadata();
        if metadata.target().starts_with("ringest") && *metadata.level() <= tracing::Level::INFO {
            event.record(&mut Message(self));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hangs_is_told_of_before_any_call_times_out() {
    let (lines, _guard) = Lines::keep();
    let server = Server::start(any_port());
    let (pool, registry, peer) = pool_of(server.address, PeerOptions::default());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    let available = |value: u8| {
        let line = format!("ringest_peer_available{{worker=\"{}\"}} {value}\n", server.address);
        let page = registry.expose();
        assert!(page.contains(&line), "{line}{page}");
    };
    let hanging = |peer: Arc<Peer>| async move { peer.remote_write(&to("hangs"), PATIENCE).await };
    let calls = [(); 3].map(|()| tokio::spawn(hanging(peer.clone())));
    tokio::time::sleep(UNANSWERED_MAX / 2).await;
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
    available(1);
    assert_eq!(lines.take(), [""; 0]);

    tokio::time::sleep(UNANSWERED_MAX).await;
    let [snapshot] = &pool.snapshot()[..] else { panic!("one peer") };
    assert_eq!(snapshot.state, PeerState::Silent);
    assert!(snapshot.unanswered_for >= Some(UNANSWERED_MAX), "{snapshot:?}");
    assert!(snapshot.state_for >= UNANSWERED_MAX && snapshot.unavailable_for.is_some());
    available(0);
    assert_eq!(lines.take(), ["peer does not answer"], "one line for all calls");
    tokio::time::sleep(3 * UNANSWERED_MAX).await;
    assert_eq!(lines.take(), [""; 0]);

    server.sink.go_on.notify_waiters();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let [snapshot] = &pool.snapshot()[..] else { panic!("one peer") };
    assert_eq!((&snapshot.state, snapshot.unanswered_for), (&PeerState::Open, None));
    available(1);
    assert_eq!(lines.take(), ["peer answers again"]);
}

/// One whose kernel accepts connections, and nobody else is there.
#[tokio::test(start_paused = true)]
async fn a_peer_that_accepts_and_says_nothing_is_not_reached_and_holds_no_call() {
    let (lines, _guard) = Lines::keep();
    let listener = TcpListener::bind(any_port()).unwrap();
    let (pool, _, peer) = pool_of(listener.local_addr().unwrap(), PeerOptions::default());
    let begun = Instant::now();
    let refused = peer.remote_write(&to("a"), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ForwardError::Unreachable { .. }), "{refused}");
    assert!(begun.elapsed() < PATIENCE, "its deadline need not pass");
    assert!(matches!(pool.snapshot()[0].state, PeerState::Unreachable(_)));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let [snapshot] = &pool.snapshot()[..] else { panic!("one peer") };
    assert!(matches!(snapshot.state, PeerState::Unreachable(_)), "{snapshot:?}");
    assert!(snapshot.state_for >= Duration::from_secs(58), "{snapshot:?}");
    assert_eq!(snapshot.inflight_requests, 0);
    assert_eq!(lines.take(), ["peer cannot be reached"]);
}

/// Has the breaker shut for minutes, by calls over the connection in use.
fn shut_for_long(peer: &Peer) {
    let Link::Up(connection) = peer.link.state() else { panic!("no connection") };
    let mut breaker = peer.breaker.lock();
    let mut now = Instant::now();
    for _ in 0..12 {
        let call = breaker.admit(["a"], now).unwrap();
        breaker.see_used(connection.number);
        breaker.end(call, Ended::Unavailable, ["a"], now, 1.0);
        let State::Shut { until, .. } = breaker.state() else { panic!("not shut") };
        now = until;
    }
}

#[tokio::test]
async fn a_peer_that_is_back_does_not_serve_out_its_back_off() {
    let port = Port::hold();
    let server = Server::start(port.address);
    let options = PeerOptions { backoff_max: Duration::from_secs(3600), ..PeerOptions::default() };
    let (pool, _, peer) = pool_of(server.address, options);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    shut_for_long(&peer);
    let refused = peer.remote_write(&to("a"), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ForwardError::BackedOff { .. }), "{refused}");
    server.stop().await;
    let server = Server::start(port.address);
    succeed(&peer).await;
    assert_eq!(server.sink.written.lock().len(), 1);
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_grows_old_is_replaced_and_ends_with_its_last_call() {
    let server = Server::start(any_port());
    let mut options = PeerOptions::default();
    options.link.age_max = Duration::from_secs(1);
    let (pool, _, peer) = pool_of(server.address, options);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    let number = || match peer.link.state() {
        Link::Up(connection) => connection.number,
        Link::Dialling | Link::Down { .. } => panic!("no connection"),
    };
    let first = number();
    let hanging = peer.clone();
    let hanging = tokio::spawn(async move { hanging.remote_write(&to("hangs"), PATIENCE).await });
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        number();
    }
    assert!(number() > first + 1, "{} after {first}", number());
    assert_eq!(peer.link.returned(), first, "it was never away");
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    server.sink.go_on.notify_waiters();
    hanging.await.unwrap().unwrap();
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_left_may_go_away_without_a_word() {
    let (lines, _guard) = Lines::keep();
    let server = Server::start(any_port());
    let (pool, _, peer) = pool_of(server.address, PeerOptions::default());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    pool.set_members([]);
    let address = server.address.to_string();
    server.stop().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(matches!(pool.snapshot()[0].state, PeerState::Unreachable(_)));
    assert_eq!(lines.take(), [""; 0]);
    pool.set_members([&address[..]]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(lines.take(), ["peer cannot be reached"]);
}
