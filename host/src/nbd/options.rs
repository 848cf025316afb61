//! The options of the handshake: one function each. They see the offered exports and what was
//! agreed so far, and give the bytes to answer; no socket.

use std::sync::Arc;

use super::validate::{transmission_flags, Agreement};
use super::wire::constants::{info, opt, rep, BASE_ALLOCATION};
use super::wire::option::{
    export_name_reply, info_block_size, info_export, info_text, meta_context_data, option_reply,
    server_data, InfoRequest, Invalid, MetaContextRequest,
};
use super::wire::Framing;
use crate::export::Export;

/// The id of `base:allocation`.
pub const ALLOCATION_ID: u32 = 1;

/// The exports of a server; the first one is also the default.
#[derive(Debug, Clone, Default)]
pub struct Exports(pub Vec<Arc<Export>>);

impl Exports {
    /// Finds an export by its exact name; the empty name is the default.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Export>> {
        let exact = self.0.iter().find(|export| export.name.as_bytes() == name);
        exact.or_else(|| self.0.first().filter(|_| name.is_empty()))
    }
}

/// What was negotiated so far on one connection.
#[derive(Debug)]
pub struct Negotiation<'e> {
    exports: &'e Exports,
    framing: Framing,
    no_zeroes: bool,
    /// The export that `base:allocation` was chosen for.
    allocation_for: Option<Arc<Export>>,
}

/// How the handshake goes on.
#[derive(Debug)]
pub enum Next {
    /// Send this and read the next option.
    Reply(Vec<u8>),
    /// Send this; transmission begins.
    Transmission(Vec<u8>, Arc<Export>, Agreement),
    /// Send this and close.
    End(Vec<u8>),
}

impl<'e> Negotiation<'e> {
    /// Before the first option.
    pub fn new(exports: &'e Exports, no_zeroes: bool) -> Self {
        Self {
            exports,
            framing: Framing::Simple,
            no_zeroes,
            allocation_for: None,
        }
    }

    /// Answers one option with its data.
    pub fn answer(&mut self, option: u32, data: &[u8]) -> Next {
        match option {
            opt::EXPORT_NAME => self.export_name(data),
            opt::ABORT => Next::End(option_reply(option, rep::ACK, &[])),
            opt::LIST => Next::Reply(self.list(data)),
            opt::INFO | opt::GO => self.info_or_go(option, data),
            opt::STRUCTURED_REPLY => Next::Reply(self.structured_reply(data)),
            opt::EXTENDED_HEADERS => Next::Reply(self.extended_headers(data)),
            opt::LIST_META_CONTEXT => Next::Reply(self.list_meta_context(data)),
            opt::SET_META_CONTEXT => Next::Reply(self.set_meta_context(data)),
            _ => Next::Reply(error(option, rep::ERR_UNSUP, "unknown option")),
        }
    }

    /// An option failed before its data was looked at: a failing SET_META_CONTEXT still replaces
    /// the earlier choice (proto.md, `NBD_OPT_SET_META_CONTEXT`).
    pub fn unread(&mut self, option: u32) {
        if option == opt::SET_META_CONTEXT {
            self.allocation_for = None;
        }
    }

    fn agreement(&self, export: &Arc<Export>) -> Agreement {
        let chosen = self.allocation_for.as_ref();
        Agreement {
            framing: self.framing,
            allocation: chosen.is_some_and(|chosen| Arc::ptr_eq(chosen, export)),
        }
    }

    /// `NBD_OPT_EXPORT_NAME`: the only way to say no is to hang up.
    fn export_name(&self, name: &[u8]) -> Next {
        if self.framing == Framing::Extended {
            return Next::End(Vec::new());
        }
        let Some(export) = self.exports.find(name) else {
            return Next::End(Vec::new());
        };
        let agreement = self.agreement(export);
        let flags = transmission_flags(export, agreement);
        let reply = export_name_reply(export.size(), flags, !self.no_zeroes);
        Next::Transmission(reply, export.clone(), agreement)
    }

    fn list(&self, data: &[u8]) -> Vec<u8> {
        if !data.is_empty() {
            return error(opt::LIST, rep::ERR_INVALID, "LIST has no data");
        }
        let server =
            |export: &Arc<Export>| option_reply(opt::LIST, rep::SERVER, &server_data(&export.name));
        let mut reply: Vec<u8> = self.exports.0.iter().flat_map(server).collect();
        reply.extend(option_reply(opt::LIST, rep::ACK, &[]));
        reply
    }

    fn info_or_go(&self, option: u32, data: &[u8]) -> Next {
        let request = match InfoRequest::decode(data) {
            Ok(request) => request,
            Err(Invalid(why)) => return Next::Reply(error(option, Invalid::REPLY, why)),
        };
        let Some(export) = self.exports.find(request.name) else {
            return Next::Reply(error(option, rep::ERR_UNKNOWN, "no such export"));
        };
        let agreement = self.agreement(export);
        let flags = transmission_flags(export, agreement);
        let mut infos = vec![info_export(export.size(), flags)];
        if request.infos.contains(&info::NAME) {
            infos.push(info_text(info::NAME, &export.name));
        }
        if request.infos.contains(&info::DESCRIPTION) {
            infos.push(info_text(info::DESCRIPTION, &export.description));
        }
        if request.infos.contains(&info::BLOCK_SIZE) {
            let sizes = export.block_sizes();
            infos.push(info_block_size(
                sizes.minimum,
                sizes.preferred,
                sizes.maximum,
            ));
        }
        let send = |data: &Vec<u8>| option_reply(option, rep::INFO, data);
        let mut reply: Vec<u8> = infos.iter().flat_map(send).collect();
        reply.extend(option_reply(option, rep::ACK, &[]));
        match option {
            opt::GO => Next::Transmission(reply, export.clone(), agreement),
            _ => Next::Reply(reply),
        }
    }

    fn structured_reply(&mut self, data: &[u8]) -> Vec<u8> {
        let option = opt::STRUCTURED_REPLY;
        if !data.is_empty() {
            return error(option, rep::ERR_INVALID, "STRUCTURED_REPLY has no data");
        }
        if self.framing == Framing::Extended {
            let text = "extended headers were agreed on before";
            return error(option, rep::ERR_EXT_HEADER_REQD, text);
        }
        self.framing = Framing::Structured;
        option_reply(option, rep::ACK, &[])
    }

    fn extended_headers(&mut self, data: &[u8]) -> Vec<u8> {
        let option = opt::EXTENDED_HEADERS;
        if !data.is_empty() {
            return error(option, rep::ERR_INVALID, "EXTENDED_HEADERS has no data");
        }
        self.framing = Framing::Extended;
        option_reply(option, rep::ACK, &[])
    }

    fn list_meta_context(&self, data: &[u8]) -> Vec<u8> {
        let option = opt::LIST_META_CONTEXT;
        let (request, _) = match self.meta_request(option, data) {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let wanted = |query: &&[u8]| matches!(*query, b"base:" | b"base:allocation");
        let listed = request.queries.is_empty() || request.queries.iter().any(wanted);
        meta_reply(option, listed, 0)
    }

    fn set_meta_context(&mut self, data: &[u8]) -> Vec<u8> {
        let option = opt::SET_META_CONTEXT;
        // A failing request clears the earlier choice as well.
        self.allocation_for = None;
        let (request, export) = match self.meta_request(option, data) {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let chosen = request.queries.contains(&BASE_ALLOCATION.as_bytes());
        if chosen {
            self.allocation_for = Some(export);
        }
        meta_reply(option, chosen, ALLOCATION_ID)
    }

    fn meta_request<'d>(
        &self,
        option: u32,
        data: &'d [u8],
    ) -> Result<(MetaContextRequest<'d>, Arc<Export>), Vec<u8>> {
        if !self.framing.has_chunks() {
            let text = "structured replies or extended headers come first";
            return Err(error(option, rep::ERR_INVALID, text));
        }
        let request = MetaContextRequest::decode(data)
            .map_err(|Invalid(why)| error(option, Invalid::REPLY, why))?;
        match self.exports.find(request.name) {
            Some(export) => Ok((request, export.clone())),
            None => Err(error(option, rep::ERR_UNKNOWN, "no such export")),
        }
    }
}

fn meta_reply(option: u32, with_allocation: bool, id: u32) -> Vec<u8> {
    let mut reply = Vec::new();
    if with_allocation {
        let data = meta_context_data(id, BASE_ALLOCATION);
        reply = option_reply(option, rep::META_CONTEXT, &data);
    }
    reply.extend(option_reply(option, rep::ACK, &[]));
    reply
}

/// An error reply with a text for a person.
pub fn error(option: u32, reply: u32, text: &str) -> Vec<u8> {
    option_reply(option, reply, text.as_bytes())
}
