//! Labels of a point's series: its attributes under the names that Prometheus takes, and what its
//! resource adds to them. All texts are in one buffer, which is used again.

use crate::wire::otlp::Settings;
use crate::wire::otlp::caps::TEXT_BYTES_MAX;
use crate::wire::otlp::names::push_label_name;
use crate::wire::otlp::value::push_text;
use crate::wire::remote_write_v1::DecodeError;
use crate::wire::request_builder::{RequestBuilder, Text, TooLong};

pub(super) const NAME: &[u8] = b"__name__";
const JOB: &[u8] = b"job";
const INSTANCE: &[u8] = b"instance";

const SERVICE_NAME: &[u8] = b"service.name";
const SERVICE_NAMESPACE: &[u8] = b"service.namespace";
const SERVICE_INSTANCE: &[u8] = b"service.instance.id";

/// A key, and a value that is not read.
pub(super) type Attribute<'r> = (&'r [u8], &'r [u8]);

/// Why a point has no labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoLabels {
    /// The request is none.
    Malformed(DecodeError),
    /// There is no label name for this key.
    Name(String),
    TooMuchText,
}

impl From<DecodeError> for NoLabels {
    fn from(error: DecodeError) -> NoLabels {
        NoLabels::Malformed(error)
    }
}

/// What a resource adds to the labels of each of its points.
#[derive(Debug, Default)]
pub(super) struct ResourceLabels {
    job: Option<Vec<u8>>,
    instance: Option<Vec<u8>>,
    /// Names as Prometheus takes them, and values. Those that a point has itself are not added.
    promoted: Vec<(Vec<u8>, Vec<u8>)>,
}

impl ResourceLabels {
    pub(super) fn of(
        attributes: &[Attribute<'_>],
        settings: &Settings,
    ) -> Result<ResourceLabels, NoLabels> {
        let text = |key: &[u8]| -> Result<Option<Vec<u8>>, NoLabels> {
            let Some((_, value)) = attributes.iter().find(|(other, _)| *other == key) else {
                return Ok(None);
            };
            let mut text = Vec::new();
            push_text(&mut text, value)?;
            match text.len() > TEXT_BYTES_MAX {
                true => Err(NoLabels::TooMuchText),
                false => Ok(Some(text)),
            }
        };
        let mut job = text(SERVICE_NAME)?;
        if let (Some(name), Some(mut namespace)) = (&job, text(SERVICE_NAMESPACE)?) {
            namespace.push(b'/');
            namespace.extend_from_slice(name);
            job = Some(namespace);
        }
        let mut promoted: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        // They are sorted, so that the first of two that get one name is always the same.
        for key in &settings.promoted {
            let Some(value) = text(key.as_bytes())? else { continue };
            let mut name = Vec::new();
            let made = push_label_name(&mut name, key.as_bytes());
            made.ok_or_else(|| NoLabels::Name(key.to_string()))?;
            if promoted.iter().all(|(other, _)| *other != name) {
                promoted.push((name, value));
            }
        }
        Ok(ResourceLabels { job, instance: text(SERVICE_INSTANCE)?, promoted })
    }

    /// The same for the series about the resource itself: nothing is promoted.
    pub(super) fn of_target(&self) -> ResourceLabels {
        let (job, instance) = (self.job.clone(), self.instance.clone());
        ResourceLabels { job, instance, promoted: Vec::new() }
    }

    /// Whether there is a label by which series can be told to be of this resource.
    pub(super) fn identify(&self) -> bool {
        [&self.job, &self.instance].into_iter().flatten().any(|value| !value.is_empty())
    }
}

/// Whether an attribute is one that the labels `job` and `instance` are made of.
pub(super) fn is_identifying(key: &[u8]) -> bool {
    [SERVICE_NAME, SERVICE_NAMESPACE, SERVICE_INSTANCE].contains(&key)
}

/// Labels by name.
#[derive(Debug, Default)]
pub(super) struct Labels {
    text: Vec<u8>,
    /// Sorted, each name once.
    labels: Vec<Label>,
}

#[derive(Clone, Copy, Debug)]
struct Label {
    name: Span,
    value: Span,
}

/// A part of the text.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    len: usize,
}

impl Labels {
    /// Takes the labels of these attributes, which are left sorted, and of their resource.
    pub(super) fn set(
        &mut self,
        attributes: &mut [Attribute<'_>],
        resource: &ResourceLabels,
    ) -> Result<(), NoLabels> {
        self.text.clear();
        self.labels.clear();
        // What gets the same name is joined in the order of the keys.
        attributes.sort_by_key(|(key, _)| *key);
        for (key, value) in attributes.iter() {
            let start = self.text.len();
            let made = push_label_name(&mut self.text, key);
            made.ok_or_else(|| NoLabels::Name(String::from_utf8_lossy(key).into_owned()))?;
            let name = self.from(start);
            let start = self.text.len();
            push_text(&mut self.text, value)?;
            let value = self.from(start);
            self.check_length()?;
            self.labels.push(Label { name, value });
        }
        self.sort_and_join()?;
        for (name, value) in &resource.promoted {
            self.put(name, value, false)?;
        }
        for (name, value) in [(JOB, &resource.job), (INSTANCE, &resource.instance)] {
            if let Some(value) = value {
                self.put(name, value, true)?;
            }
        }
        Ok(())
    }

    fn sort_and_join(&mut self) -> Result<(), NoLabels> {
        let Labels { text, labels } = self;
        let bytes = |span: Span| text.get(span.start..span.start + span.len).unwrap_or_default();
        labels.sort_by(|a, b| bytes(a.name).cmp(bytes(b.name)));
        if !labels.windows(2).any(|pair| matches!(pair, [a, b] if bytes(a.name) == bytes(b.name))) {
            return Ok(());
        }
        let all = std::mem::take(labels);
        let mut rest = &all[..];
        while let Some(first) = rest.first().copied() {
            let is_other = |label: &Label| self.bytes(label.name) != self.bytes(first.name);
            let count = rest.iter().position(is_other).unwrap_or(rest.len());
            let (same, others) = rest.split_at(count);
            rest = others;
            let mut value = first.value;
            if count > 1 {
                let start = self.text.len();
                for (i, label) in same.iter().enumerate() {
                    if i > 0 {
                        self.text.push(b';');
                    }
                    let Span { start, len } = label.value;
                    self.text.extend_from_within(start..start + len);
                }
                value = self.from(start);
                self.check_length()?;
            }
            self.labels.push(Label { name: first.name, value });
        }
        Ok(())
    }

    /// Adds a label. One that is there is replaced only if that is wanted.
    fn put(&mut self, name: &[u8], value: &[u8], replaces: bool) -> Result<(), NoLabels> {
        let found = self.labels.binary_search_by(|label| self.bytes(label.name).cmp(name));
        let (at, is_there) = match found {
            Ok(at) => (at, true),
            Err(at) => (at, false),
        };
        if is_there && !replaces {
            return Ok(());
        }
        let start = self.text.len();
        self.text.extend_from_slice(name);
        let name = self.from(start);
        let start = self.text.len();
        self.text.extend_from_slice(value);
        let label = Label { name, value: self.from(start) };
        self.check_length()?;
        match self.labels.get_mut(at).filter(|_| is_there) {
            Some(place) => *place = label,
            None => self.labels.insert(at, label),
        }
        Ok(())
    }

    /// Writes the labels of a series with this metric name, and one more label. A label of these
    /// names that is there already is written as well, unless the metric name is `to_replace` it.
    /// Without a value a label says nothing, and is left out.
    pub(super) fn write<A, E>(
        &self,
        builder: &mut RequestBuilder<'_, A>,
        name: &str,
        to_replace: bool,
        more: Option<(&[u8], &str)>,
    ) -> Result<(), E>
    where
        A: FnMut(u64) -> Result<(), E>,
        E: From<TooLong>,
    {
        let mut added = [Some((NAME, name.as_bytes())), None];
        if let Some((label, value)) = more {
            added[1] = Some((label, value.as_bytes()));
        }
        let mut added = added.into_iter().flatten().peekable();
        for label in &self.labels {
            let own = self.bytes(label.name);
            while let Some((name, value)) = added.next_if(|(name, _)| *name <= own) {
                builder.label(name.into(), value.into())?;
            }
            if label.value.len > 0 && !(to_replace && own == NAME) {
                builder.label(self.ahead(label.name), self.ahead(label.value))?;
            }
        }
        added.try_for_each(|(name, value)| builder.label(name.into(), value.into()))
    }

    /// All labels but the metric name, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.labels.iter().map(|label| (self.bytes(label.name), self.bytes(label.value)))
    }

    fn check_length(&self) -> Result<(), NoLabels> {
        match self.text.len() > TEXT_BYTES_MAX {
            true => Err(NoLabels::TooMuchText),
            false => Ok(()),
        }
    }

    /// What was written to the text from `start` on.
    fn from(&self, start: usize) -> Span {
        Span { start, len: self.text.len() - start }
    }

    fn bytes(&self, span: Span) -> &[u8] {
        self.text.get(span.start..span.start + span.len).unwrap_or_default()
    }

    fn ahead(&self, span: Span) -> Text<'_> {
        Text::within(&self.text, span.start, span.len).unwrap_or(Text::from(&[][..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Vec<u8> {
        [&[0x0a, text.len() as u8][..], text.as_bytes()].concat()
    }

    fn labels(
        attributes: &[(&str, &str)],
        resource: &[(&str, &str)],
        promoted: &[&str],
    ) -> Result<Vec<(String, String)>, NoLabels> {
        let own = |pairs: &[(&str, &str)]| -> Vec<(Vec<u8>, Vec<u8>)> {
            pairs.iter().map(|(key, text)| (key.as_bytes().to_vec(), value(text))).collect()
        };
        let (attributes, resource) = (own(attributes), own(resource));
        fn refs(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<Attribute<'_>> {
            pairs.iter().map(|(key, value)| (&key[..], &value[..])).collect()
        }
        let promoted = promoted.iter().map(|key| (*key).to_owned());
        let settings = Settings::new(true, promoted);
        let resource = ResourceLabels::of(&refs(&resource), &settings)?;
        let mut labels = Labels::default();
        // A second use leaves nothing of the first.
        labels.set(&mut [(b"before", b"\x0a\x01x")], &ResourceLabels::default())?;
        labels.set(&mut refs(&attributes), &resource)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Ok(labels.iter().map(|(name, value)| (text(name), text(value))).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Result<Vec<(String, String)>, NoLabels> {
        Ok(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    #[test]
    fn attributes_and_resources_become_labels() {
        let shop = [("service.name", "shop"), ("service.namespace", "eu")];
        let host = [("host.name", "h"), ("service.instance.id", "i")];
        assert_eq!(
            labels(&[("b", "2"), ("a", "1")], &shop, &[]),
            pairs(&[("a", "1"), ("b", "2"), ("job", "eu/shop")])
        );
        // In the order of keys, whatever that of the names.
        assert_eq!(
            labels(&[("a.b", "1"), ("a_b", "2"), ("a-b", "3"), ("c", "")], &[], &[]),
            pairs(&[("a_b", "3;1;2"), ("c", "")])
        );
        // What says whose series it is counts more than what the point says, what was promoted
        // less.
        let own = [("job", "mine"), ("instance", "mine"), ("host.name", "mine")];
        assert_eq!(
            labels(&own, &host, &["host.name"]),
            pairs(&[("host_name", "mine"), ("instance", "i"), ("job", "mine")])
        );
        assert_eq!(
            labels(&[], &host, &["absent", "host.name"]),
            pairs(&[("host_name", "h"), ("instance", "i")])
        );
        // A namespace alone names nothing.
        assert_eq!(labels(&[], &[("service.namespace", "eu")], &[]), pairs(&[]));
    }

    #[test]
    fn what_can_be_no_label_is_named() {
        assert_eq!(labels(&[("$", "x")], &[], &[]), Err(NoLabels::Name("$".into())));
        assert_eq!(labels(&[("", "x")], &[], &[]), Err(NoLabels::Name(String::new())));
        assert_eq!(labels(&[], &[("__", "x")], &["__"]), Err(NoLabels::Name("__".into())));
        let mut labels = Labels::default();
        let long =
            [0x0a, 0x80, 0x80, 0x40].into_iter().chain(vec![b'x'; 1 << 20]).collect::<Vec<_>>();
        let set = labels.set(&mut [(b"a", &long), (b"b", b"")], &ResourceLabels::default());
        assert_eq!(set, Err(NoLabels::TooMuchText));
    }
}
