//! Character classes of Go's expressions: Perl, POSIX and Unicode ones, and folding of case.
//!
//! The Unicode tables are those of `regex-syntax`, whose Unicode version may be newer than Go's: a
//! character that Go's tables do not know yet may then be a member of a class, or have another
//! case, here and not there.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, HirKind};

/// The greatest code point, as Go's `unicode.MaxRune`.
pub(super) const RUNE_MAX: u32 = 0x10_ffff;

/// Adds `lo..=hi` to a class. Code points that are no characters (surrogates) are left out: no
/// text that a value decodes to has them.
pub(super) fn push_range(class: &mut ClassUnicode, lo: u32, hi: u32) {
    let first = char::from_u32(lo).unwrap_or('\u{e000}');
    let last = char::from_u32(hi).unwrap_or('\u{d7ff}');
    if first <= last {
        class.push(ClassUnicodeRange::new(first, last));
    }
}

/// A class as it is added to an expression: folded first, then negated, as Go does it.
pub(super) fn folded_then_negated(
    mut class: ClassUnicode,
    fold_case: bool,
    negated: bool,
) -> ClassUnicode {
    if fold_case {
        class.case_fold_simple();
    }
    if negated {
        class.negate();
    }
    class
}

/// Every character.
pub(super) fn any() -> ClassUnicode {
    of_ranges(&[(0, RUNE_MAX)])
}

/// Every character but the line feed.
pub(super) fn any_but_line_feed() -> ClassUnicode {
    of_ranges(&[(0, '\n' as u32 - 1), ('\n' as u32 + 1, RUNE_MAX)])
}

/// `\d`, `\s`, `\w` and their negations by the letter behind the backslash: ASCII only. The second
/// value says whether the class is negated.
pub(super) fn perl(letter: u8) -> Option<(ClassUnicode, bool)> {
    let ranges: &[(u8, u8)] = match letter.to_ascii_lowercase() {
        b'd' => &[(b'0', b'9')],
        b's' => &[(b'\t', b'\n'), (0x0c, b'\r'), (b' ', b' ')],
        b'w' => &[(b'0', b'9'), (b'A', b'Z'), (b'_', b'_'), (b'a', b'z')],
        _ => return None,
    };
    Some((of_ascii(ranges), letter.is_ascii_uppercase()))
}

/// A POSIX class by the name between `[:` and `:]`, without a leading `^`.
pub(super) fn posix(name: &str) -> Option<ClassUnicode> {
    let ranges: &[(u8, u8)] = match name {
        "alnum" => &[(b'0', b'9'), (b'A', b'Z'), (b'a', b'z')],
        "alpha" => &[(b'A', b'Z'), (b'a', b'z')],
        "ascii" => &[(0, 0x7f)],
        "blank" => &[(b'\t', b'\t'), (b' ', b' ')],
        "cntrl" => &[(0, 0x1f), (0x7f, 0x7f)],
        "digit" => &[(b'0', b'9')],
        "graph" => &[(b'!', b'~')],
        "lower" => &[(b'a', b'z')],
        "print" => &[(b' ', b'~')],
        "punct" => &[(b'!', b'/'), (b':', b'@'), (b'[', b'`'), (b'{', b'~')],
        "space" => &[(b'\t', b'\r'), (b' ', b' ')],
        "upper" => &[(b'A', b'Z')],
        "word" => &[(b'0', b'9'), (b'A', b'Z'), (b'_', b'_'), (b'a', b'z')],
        "xdigit" => &[(b'0', b'9'), (b'A', b'F'), (b'a', b'f')],
        _ => return None,
    };
    Some(of_ascii(ranges))
}

/// A Unicode class by the name in `\p{name}`, without a leading `^`: a category, an alias of one, a
/// script, `Any`, `Assigned` or `ASCII`. Case, spaces, hyphens and underscores in the name do not
/// matter.
///
/// Go refuses every script whose name has several words since it ignores underscores (1.25 and
/// 1.26 compare the name without them to a table that has them). Those are known here.
pub(super) fn unicode(name: &str) -> Option<ClassUnicode> {
    let name: String = name
        .chars()
        .filter(|c| !matches!(c, '_' | '-' | ' '))
        .map(|c| c.to_ascii_lowercase())
        .collect();
    match name.as_str() {
        "any" => return Some(any()),
        "ascii" => return Some(of_ascii(&[(0, 0x7f)])),
        "assigned" => return table("gc=Cn").map(|class| folded_then_negated(class, false, true)),
        // Surrogates: a class without members, since values are text.
        "cs" | "surrogate" => return Some(ClassUnicode::empty()),
        _ => {}
    }
    if CATEGORIES.contains(&name.as_str()) {
        return table(&format!("gc={name}"));
    }
    if SCRIPTS.contains(&name.as_str()) {
        return table(&format!("sc={name}"));
    }
    None
}

fn table(query: &str) -> Option<ClassUnicode> {
    match regex_syntax::parse(&format!(r"\p{{{query}}}")).ok()?.into_kind() {
        HirKind::Class(Class::Unicode(class)) => Some(class),
        _ => None,
    }
}

fn of_ascii(ranges: &[(u8, u8)]) -> ClassUnicode {
    ClassUnicode::new(
        ranges.iter().map(|&(lo, hi)| ClassUnicodeRange::new(char::from(lo), char::from(hi))),
    )
}

fn of_ranges(ranges: &[(u32, u32)]) -> ClassUnicode {
    let mut class = ClassUnicode::empty();
    for &(lo, hi) in ranges {
        push_range(&mut class, lo, hi);
    }
    class
}

/// General categories and their aliases as Go knows them.
#[rustfmt::skip]
const CATEGORIES: &[&str] = &[
    "c", "cc", "cf", "cn", "co", "l", "lc", "ll", "lm", "lo", "lt", "lu", "m", "mc", "me", "mn",
    "n", "nd", "nl", "no", "p", "pc", "pd", "pe", "pf", "pi", "po", "ps", "s", "sc", "sk", "sm",
    "so", "z", "zl", "zp", "zs",
    "casedletter", "closepunctuation", "cntrl", "combiningmark", "connectorpunctuation", "control",
    "currencysymbol", "dashpunctuation", "decimalnumber", "digit", "enclosingmark",
    "finalpunctuation", "format", "initialpunctuation", "letter", "letternumber", "lineseparator",
    "lowercaseletter", "mark", "mathsymbol", "modifierletter", "modifiersymbol", "nonspacingmark",
    "number", "openpunctuation", "other", "otherletter", "othernumber", "otherpunctuation",
    "othersymbol", "paragraphseparator", "privateuse", "punct", "punctuation", "separator",
    "spaceseparator", "spacingmark", "symbol", "titlecaseletter", "unassigned", "uppercaseletter",
];

/// Scripts of Unicode 15.0, which Go 1.26 knows.
#[rustfmt::skip]
const SCRIPTS: &[&str] = &[
    "adlam", "ahom", "anatolianhieroglyphs", "arabic", "armenian", "avestan", "balinese", "bamum",
    "bassavah", "batak", "bengali", "bhaiksuki", "bopomofo", "brahmi", "braille", "buginese",
    "buhid", "canadianaboriginal", "carian", "caucasianalbanian", "chakma", "cham", "cherokee",
    "chorasmian", "common", "coptic", "cuneiform", "cypriot", "cyprominoan", "cyrillic", "deseret",
    "devanagari", "divesakuru", "dogra", "duployan", "egyptianhieroglyphs", "elbasan", "elymaic",
    "ethiopic", "georgian", "glagolitic", "gothic", "grantha", "greek", "gujarati", "gunjalagondi",
    "gurmukhi", "han", "hangul", "hanifirohingya", "hanunoo", "hatran", "hebrew", "hiragana",
    "imperialaramaic", "inherited", "inscriptionalpahlavi", "inscriptionalparthian", "javanese",
    "kaithi", "kannada", "katakana", "kawi", "kayahli", "kharoshthi", "khitansmallscript", "khmer",
    "khojki", "khudawadi", "lao", "latin", "lepcha", "limbu", "lineara", "linearb", "lisu",
    "lycian", "lydian", "mahajani", "makasar", "malayalam", "mandaic", "manichaean", "marchen",
    "masaramgondi", "medefaidrin", "meeteimayek", "mendekikakui", "meroiticcursive",
    "meroitichieroglyphs", "miao", "modi", "mongolian", "mro", "multani", "myanmar", "nabataean",
    "nagmundari", "nandinagari", "newa", "newtailue", "nko", "nushu", "nyiakengpuachuehmong",
    "ogham", "olchiki", "oldhungarian", "olditalic", "oldnortharabian", "oldpermic", "oldpersian",
    "oldsogdian", "oldsoutharabian", "oldturkic", "olduyghur", "oriya", "osage", "osmanya",
    "pahawhhmong", "palmyrene", "paucinhau", "phagspa", "phoenician", "psalterpahlavi", "rejang",
    "runic", "samaritan", "saurashtra", "sharada", "shavian", "siddham", "signwriting", "sinhala",
    "sogdian", "sorasompeng", "soyombo", "sundanese", "sylotinagri", "syriac", "tagalog",
    "tagbanwa", "taile", "taitham", "taiviet", "takri", "tamil", "tangsa", "tangut", "telugu",
    "thaana", "thai", "tibetan", "tifinagh", "tirhuta", "toto", "ugaritic", "vai", "vithkuqi",
    "wancho", "warangciti", "yezidi", "yi", "zanabazarsquare",
];
