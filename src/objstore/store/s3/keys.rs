//! Keys that lie on the machine: in the environment, or in the file that Amazon's tools share.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::objstore::OpenBucketError;
use crate::objstore::options::Secret;

pub(super) struct Keys {
    pub(super) access_key: String,
    pub(super) secret_key: Secret,
    pub(super) session_token: Option<Secret>,
}

const FILE: &str = "AWS_SHARED_CREDENTIALS_FILE";

/// Those of the environment, else those of the shared file, if either has some.
pub(super) fn shared_keys() -> Result<Option<Keys>, OpenBucketError> {
    let keys = keys_of_env(|name| std::env::var(name).ok());
    if keys.is_some() {
        return Ok(keys);
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let at_home = || Some(PathBuf::from(variable("HOME")?).join(".aws").join("credentials"));
    let given = variable(FILE).map(PathBuf::from);
    let Some(path) = given.clone().or_else(at_home) else { return Ok(None) };
    let profile = std::env::var("AWS_PROFILE").ok().filter(|profile| !profile.is_empty());
    let profile = profile.as_deref().unwrap_or("default");
    match read_file(&path) {
        Ok(content) => keys_of_file(&String::from_utf8_lossy(&content), profile)
            .map_err(|what| OpenBucketError::Value(format!("{}: {what}", path.display()))),
        Err(err) if given.is_none() || err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenBucketError::File { key: FILE, path, source }),
    }
}

#[expect(clippy::disallowed_methods, reason = "before anything is served")]
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path)
}

/// The first name that has a value counts.
fn keys_of_env(variable: impl Fn(&str) -> Option<String>) -> Option<Keys> {
    let first = |names: &[&str]| {
        names.iter().filter_map(|name| variable(name)).find(|value| !value.is_empty())
    };
    Some(Keys {
        access_key: first(&["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"])?,
        secret_key: Secret(first(&["AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"])?),
        session_token: first(&["AWS_SESSION_TOKEN"]).map(Secret),
    })
}

/// Sections in brackets, `name = value` lines in them.
fn keys_of_file(content: &str, profile: &str) -> Result<Option<Keys>, String> {
    let value = |name: &str| value_in(content, profile, name);
    for other in ["credential_process", "sso_session", "sso_account_id", "role_arn"] {
        if value(other).is_some() {
            return Err(format!("profile {profile}: {other} is not supported by this version"));
        }
    }
    let (Some(access_key), Some(secret_key)) =
        (value("aws_access_key_id"), value("aws_secret_access_key"))
    else {
        return Ok(None);
    };
    let session_token = value("aws_session_token").map(Secret);
    Ok(Some(Keys { access_key, secret_key: Secret(secret_key), session_token }))
}

fn value_in(content: &str, profile: &str, name: &str) -> Option<String> {
    let mut is_in_section = false;
    for line in content.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            is_in_section = section.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=')
            && is_in_section
            && key.trim() == name
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(keys: Option<Keys>) -> Option<(String, String, Option<String>)> {
        let Keys { access_key, secret_key, session_token } = keys?;
        Some((access_key, secret_key.0, session_token.map(|token| token.0)))
    }

    #[test]
    fn keys_of_the_environment_have_two_names_each() {
        let keys = |given: &[(&str, &str)]| {
            let of = |name: &str| {
                let found = given.iter().find(|(of, _)| *of == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            shown(keys_of_env(of))
        };
        let (a, s) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
        assert_eq!(keys(&[(a, "a")]), None);
        assert_eq!(keys(&[(a, "a"), (s, "")]), None);
        assert_eq!(keys(&[(a, "a"), (s, "s")]), Some(("a".into(), "s".into(), None)));
        let other = [("AWS_ACCESS_KEY", "b"), ("AWS_SECRET_KEY", "t"), ("AWS_SESSION_TOKEN", "x")];
        assert_eq!(keys(&other), Some(("b".into(), "t".into(), Some("x".into()))));
    }

    #[test]
    fn a_profile_of_the_shared_file_has_keys_or_is_refused_by_name() {
        let content = "; comment\n[default]\naws_access_key_id = a\naws_secret_access_key=s=1\n\n\
                       [half]\naws_access_key_id = b\n[ other ]\naws_access_key_id=c\n\
                       aws_secret_access_key = t\naws_session_token = x\n[run]\n\
                       credential_process = /bin/true now\n";
        let keys = |profile| shown(keys_of_file(content, profile).unwrap());
        assert_eq!(keys("default"), Some(("a".into(), "s=1".into(), None)));
        assert_eq!(keys("half"), None);
        assert_eq!(keys("none"), None);
        assert_eq!(keys("other"), Some(("c".into(), "t".into(), Some("x".into()))));
        let error = keys_of_file(content, "run").err().unwrap();
        assert_eq!(error, "profile run: credential_process is not supported by this version");
    }
}
