//! Answers about tenants of whom one cannot be read.

use std::sync::Arc;

use super::*;
use crate::store::budget::ReadBudget;
use crate::store::fake::{FakeSource, FakeTenant};
use crate::store::frames::tests::messages;
use crate::store::merge::SeriesCursor;
use crate::store::pieces::Cursor as _;
use crate::store::source::TenantSource as _;
use crate::wire::proto::thanos::series_response::Result as Part;
use crate::wire::proto::thanos::{LabelMatcher, PartialResponseStrategy, SeriesRequest};

const WARNING: &str = "tenant b cannot be read now: /block/index, byte 7: a series";
const STRATEGIES: [PartialResponseStrategy; 2] =
    [PartialResponseStrategy::Warn, PartialResponseStrategy::Abort];

/// `a` and `c` have a series each, `b` fails.
fn tenants() -> Tenants {
    let tenant = |id| FakeTenant::new(id, &[("tenant", id)]).with(&[("a", id)], &[(0, 1.0)], 1);
    let failing = FakeTenant::failing("b", &[("tenant", "b")]);
    FakeSource::of([tenant("a"), failing, tenant("c")].map(Arc::new).to_vec()).tenants()
}

/// A regular expression that every series of these tenants matches.
fn matchers() -> Vec<LabelMatcher> {
    vec![LabelMatcher { r#type: 2, name: "a".into(), value: ".+".into() }]
}

/// What an answer says, or the error in its place, which is the warning.
fn assert_said<T>(
    strategy: PartialResponseStrategy,
    answer: Result<(T, Vec<String>), QueryError>,
) -> Option<T> {
    match (strategy, answer) {
        (PartialResponseStrategy::Warn, Ok((answer, warnings))) => {
            assert_eq!(warnings, [WARNING]);
            Some(answer)
        }
        (PartialResponseStrategy::Abort, Err(QueryError::Partial(text))) => {
            assert_eq!(text, WARNING);
            None
        }
        (_, Ok((_, warnings))) => panic!("{strategy:?}: {warnings:?}"),
        (_, Err(err)) => panic!("{strategy:?}: {err}"),
    }
}

#[test]
fn a_tenant_whose_block_fails_is_missed_by_name_in_answers_about_series() {
    for strategy in STRATEGIES {
        let request = SeriesRequest {
            matchers: matchers(),
            max_time: 10,
            partial_response_strategy: strategy as i32,
            ..Default::default()
        };
        let budget = ReadBudget::new(1 << 20);
        let cursor = SeriesCursor::open(&tenants(), &request, &budget);
        let answer = cursor.map(|mut cursor| {
            let mut ready = Default::default();
            assert!(!cursor.fill(&mut ready).unwrap());
            let (mut series, mut warnings) = (0, Vec::new());
            for part in messages(ready).into_iter().filter_map(|message| message.result) {
                match part {
                    Part::Warning(text) => warnings.push(text),
                    _ => series += 1,
                }
            }
            (series, warnings)
        });
        assert!(assert_said(strategy, answer).is_none_or(|series| series == 2));
    }
}

#[test]
fn a_tenant_whose_block_fails_is_missed_by_name_in_answers_about_labels() {
    let held = || ReadBudget::new(1 << 20).begin();
    for strategy in STRATEGIES {
        for matchers in [vec![], matchers()] {
            let request = LabelNamesRequest {
                matchers: matchers.clone(),
                end: 10,
                partial_response_strategy: strategy as i32,
                ..Default::default()
            };
            let names = assert_said(strategy, label_names(&tenants(), &request, &mut held()));
            assert!(names.is_none_or(|names| names == ["a", "tenant"]));
            let request = LabelValuesRequest {
                label: "a".into(),
                matchers,
                end: 10,
                partial_response_strategy: strategy as i32,
                ..Default::default()
            };
            let values = assert_said(strategy, label_values(&tenants(), &request, &mut held()));
            assert!(values.is_none_or(|values| values == ["a", "c"]));
        }
        // Whether the tenant has such a series is not known.
        let request = LabelValuesRequest {
            label: "tenant".into(),
            matchers: matchers(),
            end: 10,
            partial_response_strategy: strategy as i32,
            ..Default::default()
        };
        let values = assert_said(strategy, label_values(&tenants(), &request, &mut held()));
        assert!(values.is_none_or(|values| values == ["a", "c"]));
    }
}
