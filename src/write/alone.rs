//! A node without a ring, which stores whatever comes.

use bytes::Bytes;

use crate::metrics::Registry;
use crate::model::tenant::TenantId;
use crate::peer::copies::CopyCounts;
use crate::write::WriteOutcome;
use crate::write::error::WriteError;
use crate::write::sink::{Sender, WriteSink};

/// Stores all series in `S`. Thanos counts that as if the node were a ring of one.
pub struct Alone<S> {
    store: S,
    counts: CopyCounts,
}

impl<S: WriteSink> Alone<S> {
    pub fn new(store: S, registry: &Registry) -> Alone<S> {
        Alone { store, counts: CopyCounts::new(registry) }
    }
}

impl<S: WriteSink> WriteSink for Alone<S> {
    async fn write(
        &self,
        tenant: &TenantId,
        request: Bytes,
        replica: u64,
        sender: Sender<'_>,
    ) -> Result<WriteOutcome, WriteError> {
        let result = self.store.write(tenant, request, replica, sender).await;
        if let Sender::Client(_) = sender {
            // As in Thanos a partly refused one is an error.
            let is_success = result.as_ref().is_ok_and(|outcome| outcome.refusals.is_empty());
            self.counts.count_forward(is_success);
            self.counts.count_replications(is_success, 1);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::Manners;
    use crate::write::error::Reason;
    use crate::write::peer_writes::PeerOrigin;

    /// Refuses a sample of the request "refuse", and fails over "fail".
    struct Store;

    impl WriteSink for Store {
        async fn write(
            &self,
            _tenant: &TenantId,
            request: Bytes,
            _replica: u64,
            _sender: Sender<'_>,
        ) -> Result<WriteOutcome, WriteError> {
            let mut outcome = WriteOutcome::default();
            match &request[..] {
                b"refuse" => outcome.refusals.add(Reason::OutOfBounds, 1, String::new),
                b"fail" => return Err(WriteError::NoHashring),
                _ => {}
            }
            Ok(outcome)
        }
    }

    #[tokio::test]
    async fn each_write_of_a_client_counts_as_a_forward_and_a_replication() {
        let registry = Registry::new();
        let alone = Alone::new(Store, &registry);
        let tenant = TenantId::parse(b"team").unwrap();
        let (client, origin) = (Sender::Client(Manners::Thanos), PeerOrigin::default());
        for request in [&b"store"[..], b"store", b"store", b"refuse", b"fail"] {
            let _ = alone.write(&tenant, Bytes::from_static(request), 0, client).await;
        }
        let of_peer = alone.write(&tenant, Bytes::from_static(b"store"), 1, Sender::Peer(&origin));
        of_peer.await.unwrap();
        let page = registry.expose();
        for name in ["forward_requests", "replications"] {
            for (result, count) in [("success", 3), ("error", 2)] {
                let line = format!("thanos_receive_{name}_total{{result=\"{result}\"}} {count}");
                assert!(page.lines().any(|other| other == line), "{line}\n{page}");
            }
        }
    }
}
