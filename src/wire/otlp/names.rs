//! Names of metrics and labels as Prometheus takes them: Thanos' translation with suffixes, without
//! UTF-8. Rules: OpenTelemetry's "Prometheus and OpenMetrics compatibility".

/// The kind of a metric, as far as its name depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suffix {
    None,
    /// Of a sum that only rises.
    Total,
    /// Of a gauge whose unit is 1.
    RatioIfUnitIsOne,
}

const UNITS: &[(&str, &str)] = &[
    ("d", "days"),
    ("h", "hours"),
    ("min", "minutes"),
    ("s", "seconds"),
    ("ms", "milliseconds"),
    ("us", "microseconds"),
    ("ns", "nanoseconds"),
    ("By", "bytes"),
    ("KiBy", "kibibytes"),
    ("MiBy", "mebibytes"),
    ("GiBy", "gibibytes"),
    ("TiBy", "tibibytes"),
    ("KBy", "kilobytes"),
    ("MBy", "megabytes"),
    ("GBy", "gigabytes"),
    ("TBy", "terabytes"),
    ("m", "meters"),
    ("V", "volts"),
    ("A", "amperes"),
    ("J", "joules"),
    ("W", "watts"),
    ("g", "grams"),
    ("Cel", "celsius"),
    ("Hz", "hertz"),
    ("1", ""),
    ("%", "percent"),
];

/// Units behind a slash.
const PER_UNITS: &[(&str, &str)] = &[
    ("s", "second"),
    ("m", "minute"),
    ("h", "hour"),
    ("d", "day"),
    ("w", "week"),
    ("mo", "month"),
    ("y", "year"),
];

/// The name of the metric `name` with this unit. Empty if nothing of the name can stay.
pub(super) fn metric_name(name: &[u8], unit: &[u8], suffix: Suffix) -> String {
    let is_separator = |byte: &u8| !byte.is_ascii_alphanumeric() && *byte != b':';
    let tokens = name.split(is_separator).filter(|token| !token.is_empty());
    // All of them are ASCII.
    let mut tokens: Vec<String> =
        tokens.map(|token| String::from_utf8_lossy(token).into_owned()).collect();
    let unit = String::from_utf8_lossy(unit);
    push_unit(&mut tokens, &unit);
    let last = match suffix {
        Suffix::Total => Some("total"),
        Suffix::RatioIfUnitIsOne if unit == "1" => Some("ratio"),
        _ => None,
    };
    if let Some(last) = last {
        tokens.retain(|token| token != last);
        tokens.push(last.to_owned());
    }
    let mut name = tokens.join("_");
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

/// Appends what a unit adds to a name, unless it is in there.
fn push_unit(tokens: &mut Vec<String>, unit: &str) {
    let (main, per) = match unit.split_once('/') {
        Some((main, per)) => (main, per),
        None => (unit, ""),
    };
    let has = |tokens: &[String], token: &str| tokens.iter().any(|other| other == token);
    let mut main = unit_name(main, UNITS);
    if has(tokens, &main) {
        main.clear();
    }
    let mut per = unit_name(per, PER_UNITS);
    if !per.is_empty() {
        per.insert_str(0, "per_");
        if has(tokens, &per) {
            per.clear();
        }
    }
    if !per.is_empty() && main.ends_with('_') {
        main.pop();
    }
    tokens.extend([main, per].into_iter().filter(|token| !token.is_empty()));
}

/// What a unit is called; nothing of one in braces, which is a remark.
fn unit_name(unit: &str, known: &[(&str, &str)]) -> String {
    let unit = unit.trim();
    if unit.is_empty() || unit.contains(['{', '}']) {
        return String::new();
    }
    let name = known.iter().find(|(short, _)| *short == unit).map_or(unit, |(_, name)| name);
    let mut clean = Vec::with_capacity(name.len());
    push_clean(&mut clean, name.as_bytes());
    if clean.first() == Some(&b'_') {
        clean.remove(0);
    }
    String::from_utf8_lossy(&clean).into_owned()
}

/// Appends the label name that an attribute's key becomes; `None` if it can be none.
pub(super) fn push_label_name(out: &mut Vec<u8>, key: &[u8]) -> Option<()> {
    let start = out.len();
    if key.is_empty() {
        return None;
    }
    let reserved = key.strip_prefix(b"__").and_then(|rest| rest.strip_suffix(b"__"));
    match reserved {
        Some(inner) => {
            out.extend_from_slice(b"__");
            push_clean(out, inner);
            out.extend_from_slice(b"__");
        }
        None => {
            if key.first().is_some_and(u8::is_ascii_digit) {
                out.extend_from_slice(b"key_");
            }
            push_clean(out, key);
        }
    }
    let has_text = out.get(start..)?.iter().any(|byte| *byte != b'_');
    if !has_text {
        out.truncate(start);
    }
    has_text.then_some(())
}

/// Appends `name` with one underscore for whatever is neither letter nor digit.
fn push_clean(out: &mut Vec<u8>, name: &[u8]) {
    let mut is_behind_underscore = false;
    for byte in name {
        let is_text = byte.is_ascii_alphanumeric();
        if is_text {
            out.push(*byte);
        } else if !is_behind_underscore {
            out.push(b'_');
        }
        is_behind_underscore = !is_text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_named_as_by_thanos() {
        let gauge = Suffix::RatioIfUnitIsOne;
        for (name, unit, suffix, expected) in [
            ("process.cpu.time", "s", gauge, "process_cpu_time_seconds"),
            ("process.cpu.time", "s", Suffix::Total, "process_cpu_time_seconds_total"),
            ("ratio", "1", gauge, "ratio"),
            ("ratio_ratio", "1", Suffix::Total, "ratio_ratio_total"),
            ("requests_total", "", Suffix::Total, "requests_total"),
            ("total_total_x", "", Suffix::Total, "x_total"),
            ("speed", "m/s", gauge, "speed_meters_per_second"),
            ("x", "{packets}/min", gauge, "x_per_min"),
            ("x", "{packets}", Suffix::None, "x"),
            ("x", "unknown  unit_/s", Suffix::None, "x_unknown_unit_per_second"),
            ("x", " s / m ", Suffix::None, "x_seconds_per_minute"),
            ("x", "_", Suffix::None, "x"),
            ("a.per_s", "/s", Suffix::None, "a_per_s_per_second"),
            ("1starts.with.digit", "", gauge, "_1starts_with_digit"),
            ("ünïcode", "", gauge, "n_code"),
            ("a:b", "", gauge, "a:b"),
            ("_lead.trail_", "", gauge, "lead_trail"),
            ("seconds", "s", gauge, "seconds"),
            ("", "s", gauge, "seconds"),
            ("!!!", "", gauge, ""),
        ] {
            assert_eq!(metric_name(name.as_bytes(), unit.as_bytes(), suffix), expected, "{name}");
        }
    }

    #[test]
    fn keys_become_label_names() {
        for (key, expected) in [
            ("http.method", Some("http_method")),
            ("1digit", Some("key_1digit")),
            ("ünï", Some("_n_")),
            ("a--b", Some("a_b")),
            ("_u", Some("_u")),
            ("__dunder__", Some("__dunder__")),
            ("__a.b__", Some("__a_b__")),
            ("__name", Some("_name")),
            ("$", None),
            ("", None),
            ("____", None),
        ] {
            let mut name = b"before".to_vec();
            let made = push_label_name(&mut name, key.as_bytes());
            assert_eq!(made.map(|()| &name[6..]), expected.map(str::as_bytes), "{key}");
        }
    }
}
