//! Options of the handshake and the replies to them (proto.md, "Fixed newstyle negotiation").

use super::constants::{info, rep, IHAVEOPT, MAX_STRING_BYTES, NBDMAGIC, OPTION_REPLY_MAGIC};
use super::Reader;

/// Bytes of an option's header.
pub const HEADER_BYTES: usize = 16;

/// An option's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// `NBD_OPT_*`; anything may come.
    pub option: u32,
    /// Bytes of data behind the header.
    pub length: u32,
}

impl OptionHeader {
    /// Takes a header apart; `None` if the magic is another.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.u64()? != IHAVEOPT {
            return None;
        }
        Some(Self {
            option: reader.u32()?,
            length: reader.u32()?,
        })
    }
}

/// The greeting of a fixed-newstyle server.
pub fn greeting(flags: u16) -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
    bytes[16..].copy_from_slice(&flags.to_be_bytes());
    bytes
}

/// A reply to `option`, of a type of [`rep`], with its data.
pub fn option_reply(option: u32, reply: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(reply.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of a `NBD_REP_SERVER`: an export of the list.
pub fn server_data(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data
}

/// The data of a `NBD_REP_META_CONTEXT`.
pub fn meta_context_data(id: u32, name: &str) -> Vec<u8> {
    let mut data = id.to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data
}

/// The data of the `NBD_REP_INFO` of `NBD_INFO_EXPORT`.
pub fn info_export(size: u64, flags: u16) -> Vec<u8> {
    let mut data = info::EXPORT.to_be_bytes().to_vec();
    data.extend(size.to_be_bytes());
    data.extend(flags.to_be_bytes());
    data
}

/// The data of the `NBD_REP_INFO` of a text: `NBD_INFO_NAME`, `NBD_INFO_DESCRIPTION`.
pub fn info_text(kind: u16, text: &str) -> Vec<u8> {
    let mut data = kind.to_be_bytes().to_vec();
    data.extend(text.as_bytes());
    data
}

/// The data of the `NBD_REP_INFO` of `NBD_INFO_BLOCK_SIZE`.
pub fn info_block_size(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [minimum, preferred, maximum] {
        data.extend(size.to_be_bytes());
    }
    data
}

/// What stands after the name in the reply to `NBD_OPT_EXPORT_NAME`.
pub fn export_name_reply(size: u64, flags: u16, zeroes: bool) -> Vec<u8> {
    let mut bytes = size.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    if zeroes {
        bytes.extend([0; 124]);
    }
    bytes
}

/// Why an option's data can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid(pub &'static str);

impl Invalid {
    /// The reply type for it.
    pub const REPLY: u32 = rep::ERR_INVALID;
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export's name, any bytes.
    pub name: &'a [u8],
    /// `NBD_INFO_*` asked for, as they came.
    pub infos: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// Takes the data apart.
    ///
    /// # Errors
    /// If the lengths inside do not add up, or the name is too long.
    pub fn decode(data: &'a [u8]) -> Result<Self, Invalid> {
        let mut reader = Reader(data);
        let name = name(&mut reader)?;
        let count = reader.u16().ok_or(Invalid("no number of infos"))?;
        if reader.0.len() != usize::from(count) * 2 {
            return Err(Invalid("the number of infos does not fit the length"));
        }
        let infos = std::iter::from_fn(|| reader.u16());
        Ok(Self {
            name,
            infos: infos.collect(),
        })
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextRequest<'a> {
    /// The export's name, any bytes.
    pub name: &'a [u8],
    /// The queries, any bytes.
    pub queries: Vec<&'a [u8]>,
}

impl<'a> MetaContextRequest<'a> {
    /// Takes the data apart.
    ///
    /// # Errors
    /// If the lengths inside do not add up, or a string is too long.
    pub fn decode(data: &'a [u8]) -> Result<Self, Invalid> {
        let mut reader = Reader(data);
        let name = name(&mut reader)?;
        let count = reader.u32().ok_or(Invalid("no number of queries"))?;
        // Each query takes four bytes at least: a larger number can't be true.
        if count as usize > reader.0.len() / 4 {
            return Err(Invalid("the number of queries does not fit the length"));
        }
        let mut queries = Vec::with_capacity(count as usize);
        for _ in 0..count {
            queries.push(string(&mut reader).ok_or(Invalid("a query runs out of the option"))?);
        }
        if !reader.is_empty() {
            return Err(Invalid("data behind the last query"));
        }
        if queries.iter().any(|query| query.len() > MAX_STRING_BYTES) {
            return Err(Invalid("a query is longer than 4096 bytes"));
        }
        Ok(Self { name, queries })
    }
}

fn string<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let len = reader.u32()?;
    reader.bytes(len as usize)
}

fn name<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Invalid> {
    let name = string(reader).ok_or(Invalid("the name runs out of the option"))?;
    if name.len() > MAX_STRING_BYTES {
        return Err(Invalid("the name is longer than 4096 bytes"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info_request(name: &[u8], infos: &[u16]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name);
        data.extend((infos.len() as u16).to_be_bytes());
        data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
        data
    }

    fn meta_request(name: &[u8], queries: &[Vec<u8>]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name);
        data.extend((queries.len() as u32).to_be_bytes());
        for query in queries {
            data.extend((query.len() as u32).to_be_bytes());
            data.extend(query);
        }
        data
    }

    proptest! {
        #[test]
        fn info_requests_round_trip(name: Vec<u8>, infos: Vec<u16>) {
            let data = info_request(&name, &infos);
            let request = InfoRequest::decode(&data).unwrap();
            prop_assert_eq!((request.name, &request.infos), (&name[..], &infos));
            prop_assert!(InfoRequest::decode(&data[..data.len() - 1]).is_err());
        }

        #[test]
        fn meta_requests_round_trip(name: Vec<u8>, queries: Vec<Vec<u8>>) {
            let data = meta_request(&name, &queries);
            let request = MetaContextRequest::decode(&data).unwrap();
            prop_assert_eq!(request.name, &name[..]);
            prop_assert_eq!(request.queries, queries.iter().map(|q| &q[..]).collect::<Vec<_>>());
            prop_assert!(MetaContextRequest::decode(&data[..data.len() - 1]).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(data: Vec<u8>) {
            let _ = InfoRequest::decode(&data);
            let _ = MetaContextRequest::decode(&data);
        }
    }

    #[test]
    fn w17_w35_lengths_that_lie_are_invalid() {
        let mut data = info_request(b"x", &[]);
        data[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(InfoRequest::decode(&data).is_err());
        let mut data = meta_request(b"x", &[]);
        data[5..9].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(MetaContextRequest::decode(&data).is_err());
        assert!(InfoRequest::decode(&info_request(&[b'a'; 4096], &[])).is_ok());
        assert!(InfoRequest::decode(&info_request(&[b'a'; 4097], &[])).is_err());
    }
}
