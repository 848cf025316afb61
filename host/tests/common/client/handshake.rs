//! The handshake, one step at a time, right or wrong.

use std::io;

use super::constants::*;
use super::line::Line;
use super::{Client, Framing};

/// A connection that negotiates.
pub(crate) struct Handshake {
    pub(crate) line: Line,
}

/// One reply to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OptionReply {
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

impl Handshake {
    /// Hears the greeting and answers with the flags that everybody uses.
    pub(crate) fn begin(line: Line) -> io::Result<Self> {
        Self::with_flags(line, FIXED_NEWSTYLE | NO_ZEROES)
    }

    /// Hears the greeting and answers with these flags.
    pub(crate) fn with_flags(mut line: Line, flags: u32) -> io::Result<Self> {
        let greeting = line.bytes(18)?;
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03", "the greeting");
        line.send(&flags.to_be_bytes())?;
        Ok(Self { line })
    }

    /// Sends an option.
    pub(crate) fn send(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        self.line.send(&option_bytes(option, data))
    }

    /// The next reply, which must be to this option.
    pub(crate) fn reply(&mut self, option: u32) -> io::Result<OptionReply> {
        let magic = self.line.u64()?;
        assert_eq!(magic, OPTION_REPLY, "the magic of an option reply");
        assert_eq!(self.line.u32()?, option, "a reply to this option");
        let kind = self.line.u32()?;
        let length = self.line.u32()?;
        let data = self.line.bytes(length as usize)?;
        Ok(OptionReply { kind, data })
    }

    /// All replies to an option, up to its acknowledgement or error.
    pub(crate) fn replies(&mut self, option: u32) -> io::Result<Vec<OptionReply>> {
        let mut replies = Vec::new();
        loop {
            replies.push(self.reply(option)?);
            let OptionReply { kind, data } = &replies[replies.len() - 1];
            if *kind == REP_ACK {
                assert!(data.is_empty(), "an ACK has no data");
                return Ok(replies);
            }
            if kind & (1 << 31) != 0 {
                assert!(data.len() <= 4096, "a text of {} bytes", data.len());
                std::str::from_utf8(data).expect("a text for a person");
                return Ok(replies);
            }
        }
    }

    /// Sends an option and gives how it ended: `REP_ACK`, or an error.
    pub(crate) fn ask(&mut self, option: u32, data: &[u8]) -> io::Result<u32> {
        self.send(option, data)?;
        let replies = self.replies(option)?;
        Ok(replies[replies.len() - 1].kind)
    }

    /// How an option that was sent before ended.
    pub(crate) fn ended(&mut self, option: u32) -> u32 {
        let replies = self.replies(option).expect("replies");
        replies[replies.len() - 1].kind
    }

    /// Sends an option that must be acknowledged; gives what came before the ACK.
    pub(crate) fn agree(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<OptionReply>> {
        self.send(option, data)?;
        let mut replies = self.replies(option)?;
        let last = replies.pop().expect("at least one reply");
        let text = String::from_utf8_lossy(&last.data);
        assert_eq!(last.kind, REP_ACK, "option {option} was refused: {text}");
        Ok(replies)
    }

    /// Agrees on the framing, on `base:allocation` where that can be had, and on the export.
    pub(crate) fn go(mut self, framing: Framing, export: &[u8]) -> io::Result<Client> {
        match framing {
            Framing::Simple => {}
            Framing::Structured => drop(self.agree(OPT_STRUCTURED_REPLY, &[])?),
            Framing::Extended => drop(self.agree(OPT_EXTENDED_HEADERS, &[])?),
        }
        if framing != Framing::Simple {
            let queries = meta_query(export, &[b"base:allocation"]);
            let chosen = self.agree(OPT_SET_META_CONTEXT, &queries)?;
            assert_eq!(chosen.len(), 1, "base:allocation was not chosen");
            assert_eq!(chosen[0].data, b"\0\0\0\x01base:allocation");
        }
        self.agree(OPT_GO, &info_query(export, &[]))?;
        Ok(self.transmit(framing))
    }

    /// Goes on as a client whose handshake is over.
    pub(crate) fn transmit(self, framing: Framing) -> Client {
        Client::new(self.line, framing)
    }
}

/// An option, header and data.
pub(crate) fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("an option below 4 GiB");
    let mut bytes = option_header(option, length);
    bytes.extend_from_slice(data);
    bytes
}

/// An option's header, with any length.
pub(crate) fn option_header(option: u32, length: u32) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// The data of INFO and GO.
pub(crate) fn info_query(export: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = text(export);
    let count = u16::try_from(infos.len()).expect("infos that can be counted");
    data.extend_from_slice(&count.to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta_query(export: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = text(export);
    let count = u32::try_from(queries.len()).expect("queries that can be counted");
    data.extend_from_slice(&count.to_be_bytes());
    data.extend(queries.iter().flat_map(|query| text(query)));
    data
}

/// A string of the protocol: length, bytes.
pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("a short string");
    [&length.to_be_bytes()[..], bytes].concat()
}
