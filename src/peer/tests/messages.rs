//! What arrives, and what its answers say.

use super::*;

#[tokio::test]
async fn series_arrive_as_they_are() {
    let server = Server::start(any_port());
    let (_pool, registry, peer) = pool_of(server.address, PeerOptions::default());
    for compression in [Compression::None, Compression::Snappy] {
        for bytes in [1, 70_000, 5 << 20] {
            let series = series(bytes);
            let message = message_of(2, "a", &series, compression);
            peer.remote_write(&message, PATIENCE).await.unwrap();
            let (tenant, written, replica) = server.sink.written.lock().pop().unwrap();
            assert_eq!((&tenant[..], replica), ("a", 2));
            let head = b"\x18\x02\x12\x01a";
            assert!(written == [&head[..], &series].concat(), "{compression:?} {bytes}");
        }
    }
    let page = registry.expose();
    let of_method = "grpc_method=\"RemoteWrite\",grpc_service=\"thanos.WriteableStore\",\
                     grpc_type=\"unary\"";
    for line in [
        "thanos_receive_forward_requests_total{result=\"success\"} 6\n".to_owned(),
        "thanos_receive_forward_requests_total{result=\"error\"} 0\n".to_owned(),
        format!("grpc_client_handled_total{{grpc_code=\"OK\",{of_method}}} 6\n"),
        format!("grpc_client_started_total{{{of_method}}} 6\n"),
        format!("grpc_client_msg_received_total{{{of_method}}} 6\n"),
        format!("thanos_receive_forward_delay_seconds_count{{worker=\"{}\"}} 6\n", server.address),
    ] {
        assert!(page.contains(&line), "{line}{page}");
    }
}

fn merged(replica: u64) -> ForwardMessage {
    {
        let envelope = Envelope { tenant: "a", replica, is_merged: true, series_count: 10 };
        ForwardMessage::share(envelope, series(10).into()).unwrap()
    }
}

#[tokio::test]
async fn a_peer_says_whether_it_takes_merged_messages() {
    let port = Port::hold();
    let server = Server::start(port.address);
    let (_pool, _registry, peer) = pool_of(server.address, PeerOptions::default());
    assert!(!peer.takes_merged());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(peer.takes_merged());
    peer.remote_write(&merged(3), PATIENCE).await.unwrap();
    assert_eq!(server.sink.written.lock().len(), 2);
    let refused = peer.remote_write(&merged(4), PATIENCE).await;
    assert!(matches!(refused, Err(ForwardError::BadReplica { .. })), "{refused:?}");
    assert!(peer.takes_merged());

    // Another takes its place that does not know them, as Thanos does not: it misplaces nothing.
    server.stop().await;
    let server = Server::start_with(port.address, false, false);
    let refused = loop {
        match peer.remote_write(&merged(3), PATIENCE).await {
            Err(ForwardError::Unreachable { .. }) => tokio::time::sleep(PAUSE).await,
            refused => break refused.unwrap_err(),
        }
    };
    assert!(matches!(refused, ForwardError::Failed { code: Code::Unimplemented, .. }), "{refused}");
    assert!(!peer.takes_merged() && server.sink.written.lock().is_empty());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(!peer.takes_merged());
}

#[tokio::test]
async fn a_peer_says_which_rings_it_has() {
    let port = Port::hold();
    let server = Server::start(port.address);
    let (pool, _registry, peer) = pool_of(server.address, PeerOptions::default());
    assert_eq!(pool.snapshot()[0].ring, None);
    for tenant in ["a", "opening"] {
        // In failures, too.
        let _ = peer.remote_write(&to(tenant), PATIENCE).await;
        let peer = &pool.snapshot()[0];
        assert!(peer.is_connected);
        assert_eq!(peer.ring.map(|word| word.hash), Some(own_ring()), "{tenant}");
    }
    // It makes room for a Thanos, which says nothing.
    server.stop().await;
    let server = Server::start_with(port.address, false, false);
    succeed(&peer).await;
    assert_eq!(pool.snapshot()[0].ring, None);
    server.stop().await;
}

#[tokio::test]
async fn merged_messages_that_do_not_get_through_are_tried_once() {
    let server = Server::start_with(any_port(), true, false);
    let (_pool, _registry, peer) = pool_of(server.address, PeerOptions::default());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(peer.takes_merged());
    peer.remote_write(&merged(1), PATIENCE).await.unwrap_err();
    assert!(!peer.takes_merged());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(!peer.takes_merged(), "though it says again that it takes them");
}

#[tokio::test]
async fn messages_that_have_a_limit_are_not_made_longer() {
    let server = Server::start(any_port());
    let method = MethodConfig { request_bytes_max: Some(1 << 20), ..MethodConfig::default() };
    let options = PeerOptions { method, ..PeerOptions::default() };
    let (_pool, _registry, peer) = pool_of(server.address, options);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(!peer.takes_merged());
}

#[tokio::test]
async fn every_status_has_its_meaning() {
    let server = Server::start(any_port());
    let (pool, registry, peer) = pool_of(server.address, PeerOptions::default());
    let write = async |tenant| peer.remote_write(&to(tenant), PATIENCE).await.unwrap_err();
    assert!(matches!(write("conflict").await, ForwardError::Conflict { .. }));
    assert!(matches!(write("..").await, ForwardError::BadReplica { .. }));
    // It is left alone, longer each time, and nobody else is.
    let mut failed = 0;
    loop {
        match write("opening").await {
            ForwardError::TenantNotReady { .. } => failed += 1,
            ForwardError::BackedOff { .. } => break,
            other => panic!("{other}"),
        }
    }
    assert!(failed > 0);
    assert_eq!(pool.snapshot()[0].tenants_shut, 1);
    let replica = message_of(4, "a", &series(1), Compression::None);
    let refused = peer.remote_write(&replica, PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ForwardError::BadReplica { .. }), "{refused}");
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);

    let down = loop {
        let down = write("down").await;
        assert!(
            matches!(&down, ForwardError::Unavailable { detail, .. } if detail.contains("not accepting"))
        );
        failed += 1;
        // Unless the back-off is over by now, which grows.
        if let Err(refused) = peer.remote_write(&to("a"), PATIENCE).await {
            assert!(matches!(refused, ForwardError::BackedOff { .. }), "{refused}");
            break down;
        }
    };
    let [snapshot] = &pool.snapshot()[..] else { panic!("one peer") };
    // The back-off may be over by now.
    assert!(matches!(snapshot.state, PeerState::Shut | PeerState::Probation));
    assert_eq!(snapshot.last_error, Some(down));
    let page = registry.expose();
    // Neither the conflict nor what was not sent is among them, but two bad requests.
    let errors =
        format!("thanos_receive_forward_requests_total{{result=\"error\"}} {}\n", failed + 2);
    assert!(page.contains(&errors), "{errors}{page}");
    let not_sent = format!("{{worker=\"{}\",reason=\"backed off\"}} 2\n", server.address);
    assert!(page.contains(&format!("ringest_peer_forwards_not_sent_total{not_sent}")), "{page}");
}
