//! The routers that a write has passed, so that it does not pass them again.
//!
//! A router that is a member of its own ring without knowing so (`--receive.local-endpoint` was
//! forgotten) sends writes to itself; several of them send one another each write again and again.

use std::fmt;

/// What a process is called among routers: drawn at its start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InstanceId(u64);

/// Routers one behind the other that are taken for a chain somebody wants, and not for a loop.
pub const ROUTERS_MAX: usize = 4;

/// In the order in which they were passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterPath {
    routers: Vec<InstanceId>,
}

/// Why a write is not handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loop {
    #[error("it has passed this node before")]
    PassedBefore,
    #[error("it has passed {ROUTERS_MAX} routers")]
    TooMany,
}

impl InstanceId {
    /// Without a source of randomness all would be the same one.
    pub fn random() -> Result<InstanceId, getrandom::Error> {
        getrandom::u64().map(InstanceId)
    }

    /// As it is told to other nodes.
    pub fn parse(text: &str) -> Option<InstanceId> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| is_hex).map(InstanceId)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl RouterPath {
    /// Reads `id,id,…`. What is no list of ids has passed nobody that we know of; of one that is too
    /// long so much is kept as proves it.
    pub fn parse(text: &str) -> RouterPath {
        let routers = text.split(',').take(ROUTERS_MAX + 1);
        let routers = routers.map(|id| InstanceId::parse(id.trim())).collect::<Option<_>>();
        RouterPath { routers: routers.unwrap_or_default() }
    }

    /// The path with `router` at its end, unless that would make it a loop.
    pub fn through(mut self, router: InstanceId) -> Result<RouterPath, Loop> {
        if self.routers.contains(&router) {
            return Err(Loop::PassedBefore);
        }
        if self.routers.len() >= ROUTERS_MAX {
            return Err(Loop::TooMany);
        }
        self.routers.push(router);
        Ok(self)
    }
}

impl fmt::Display for RouterPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, router) in self.routers.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{router}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> InstanceId {
        InstanceId(number)
    }

    #[test]
    fn a_path_is_read_as_it_was_told() {
        let path = RouterPath::default().through(id(7)).unwrap().through(id(u64::MAX)).unwrap();
        assert_eq!(path.to_string(), "0000000000000007,ffffffffffffffff");
        assert_eq!(RouterPath::parse(&path.to_string()), path);
        for none in ["", "7", "000000000000000g", "0000000000000007;", "+000000000000007"] {
            assert_eq!(RouterPath::parse(none), RouterPath::default(), "{none}");
        }
    }

    #[test]
    fn who_was_passed_is_not_passed_again() {
        let path = RouterPath::default().through(id(1)).unwrap().through(id(2)).unwrap();
        assert_eq!(path.clone().through(id(1)), Err(Loop::PassedBefore));
        let path = path.through(id(3)).unwrap().through(id(4)).unwrap();
        assert_eq!(path.clone().through(id(5)), Err(Loop::TooMany));
        let longer = RouterPath::parse(&format!("{path},{},{}", id(5), id(6)));
        assert_eq!(longer.through(id(7)), Err(Loop::TooMany));
    }
}
