//! Connections of clients, whatever they speak: how each is ended.

pub(crate) mod closing;
