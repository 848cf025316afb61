//! What a client did to a range of the volume.

use crate::data::Data;

/// What happened to the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// These bytes were written; as many as the range is long.
    Data(Data),
    /// It reads as zeros, and may keep its space.
    Zero,
    /// It reads as zeros, and gives its space back.
    Trim,
}

/// One change to a range of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// First byte of the range.
    pub offset: u64,
    /// Bytes in it, at least one.
    pub len: u64,
    /// What happened to it.
    pub what: What,
}

impl Change {
    /// A write of `data` at `offset`.
    pub fn write(offset: u64, data: Data) -> Self {
        Self {
            offset,
            len: data.len() as u64,
            what: What::Data(data),
        }
    }

    /// The bytes written, none if the range was zeroed.
    pub fn data(&self) -> Option<&Data> {
        match &self.what {
            What::Data(data) => Some(data),
            What::Zero | What::Trim => None,
        }
    }
}
