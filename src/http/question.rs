//! A question that comes as the body of a request: it has a size, is held against the budget of
//! reads as it arrives, and must be there in time.

use std::time::Duration;

use axum::body::Body;
use http_body::Body as _;
use http_body_util::BodyExt as _;

use crate::error::Stage;
use crate::store::budget::ReadBudgetGuard;
use crate::store::error::QueryError;

const STAGE: Stage = Stage::Body;

/// A buffer grows from here, doubling up to the declared length: a declaration alone takes no more.
const STEP_BYTES: usize = 16 * 1024;

/// Collects a body. The whole of what is declared must fit now, but is held only as it arrives.
pub(super) async fn collect(
    mut body: Body,
    bytes_max: usize,
    timeout: Duration,
    held: &mut ReadBudgetGuard,
) -> Result<Vec<u8>, QueryError> {
    let declared =
        body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if let Some(declared) = declared {
        check_size(declared, bytes_max)?;
        held.check(declared)?;
    }
    let mut question = Vec::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| QueryError::Invalid { stage: STAGE, detail: error.to_string() })?;
            let Ok(chunk) = frame.into_data() else { continue };
            check_size(question.len().saturating_add(chunk.len()), bytes_max)?;
            if question.capacity() - question.len() < chunk.len() {
                let doubled = question.len().max(STEP_BYTES);
                let missing = declared.unwrap_or(bytes_max).saturating_sub(question.len());
                let step = doubled.min(missing).max(chunk.len());
                held.hold_in_all(question.len() + step)?;
                question.reserve_exact(step);
            }
            question.extend_from_slice(&chunk);
        }
        Ok::<(), QueryError>(())
    };
    tokio::time::timeout(timeout, read).await.map_err(|_| QueryError::Slow(timeout))??;
    Ok(question)
}

fn check_size(bytes: usize, bytes_max: usize) -> Result<(), QueryError> {
    if bytes <= bytes_max {
        return Ok(());
    }
    let detail = format!("{bytes} bytes are over the cap of {bytes_max}");
    Err(QueryError::Invalid { stage: STAGE, detail })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{StreamExt as _, stream};
    use http_body_util::StreamBody;

    use super::*;
    use crate::store::budget::ReadBudget;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn half_sent(bytes: usize) -> Body {
        let frame = http_body::Frame::data(Bytes::from(vec![0; bytes]));
        let frames = stream::iter([Ok::<_, std::io::Error>(frame)]).chain(stream::pending());
        Body::new(StreamBody::new(frames))
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_question_is_held_and_not_waited_for() {
        let budget = ReadBudget::new(1 << 20);
        let mut held = budget.begin();
        let mut first = Box::pin(collect(half_sent(600 << 10), 8 << 20, TIMEOUT, &mut held));
        assert!(futures::poll!(&mut first).is_pending());
        // The second finds no room, whether it says how long it is or not.
        let mut other = budget.begin();
        let refused = collect(half_sent(600 << 10), 8 << 20, TIMEOUT, &mut other).await;
        assert!(matches!(refused, Err(QueryError::Overloaded)), "{refused:?}");
        let declared = Body::from(vec![0; 600 << 10]);
        let refused = collect(declared, 8 << 20, TIMEOUT, &mut budget.begin()).await;
        assert!(matches!(refused, Err(QueryError::Overloaded)), "{refused:?}");
        assert!(matches!(first.await, Err(QueryError::Slow(_))));
        drop(held);
        let declared = Body::from(vec![0; 600 << 10]);
        assert_eq!(
            collect(declared, 8 << 20, TIMEOUT, &mut budget.begin()).await.unwrap().len(),
            600 << 10
        );
    }

    #[tokio::test]
    async fn a_question_over_its_cap_is_refused_as_soon_as_that_is_known() {
        let budget = ReadBudget::new(1 << 20);
        for body in [Body::from(vec![0; 1001]), half_sent(1001)] {
            let refused = collect(body, 1000, TIMEOUT, &mut budget.begin()).await;
            let error = refused.unwrap_err().to_string();
            assert_eq!(error, "body: 1001 bytes are over the cap of 1000");
        }
        let body = collect(Body::from(vec![0; 1000]), 1000, TIMEOUT, &mut budget.begin()).await;
        assert_eq!(body.unwrap().len(), 1000);
    }
}
