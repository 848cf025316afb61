//! One request after another through the host's own code, without a socket: the header is decoded
//! and judged, the request carried out, and its reply gathered for a send that takes it all.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use nbd_rs::backend::memory;
use nbd_rs::export::{Export, Requester};
use nbd_rs::layout::open::{Access, Volume};
use nbd_rs::layout::raw::Raw;
use nbd_rs::layout::Layout;
use nbd_rs::nbd::reply_queue::{ReplyQueue, MAX_SLICES};
use nbd_rs::nbd::session::{Session, Started};
use nbd_rs::nbd::validate::Agreement;
use nbd_rs::nbd::wire::constants::cmd;
use nbd_rs::nbd::wire::request::Request;
use nbd_rs::nbd::wire::Framing;
use nbd_rs::plugin::{Places, Registry, SearchPath};
use nbd_rs::runtime::block_on;
use nbd_rs_plugin::{Bytes, ObjectFlags, ObjectMode};

/// Size of the volume, in bytes.
const VOLUME_BYTES: u64 = 4 << 20;

/// A kind of request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// What it is called in reports.
    pub(crate) name: &'static str,
    command: u16,
    /// Its length in bytes.
    pub(crate) length: u64,
}

/// The kinds that are measured.
pub(crate) const KINDS: [Kind; 3] = [
    Kind {
        name: "read-4k",
        command: cmd::READ,
        length: 4 << 10,
    },
    Kind {
        name: "write-4k",
        command: cmd::WRITE,
        length: 4 << 10,
    },
    Kind {
        name: "read-64k",
        command: cmd::READ,
        length: 64 << 10,
    },
];

/// A client that stays.
struct Client;

impl Requester for Client {
    fn poll_gone(&self, _: &mut Context<'_>) -> Poll<bool> {
        Poll::Ready(false)
    }
}

/// Requests of one kind, ready to be sent again and again.
pub(crate) struct RequestPath {
    session: Session<Client>,
    replies: ReplyQueue,
    headers: Vec<Vec<u8>>,
    payload: Option<Bytes>,
    next: usize,
    reply_bytes: u64,
    /// Requests that were not answered at once.
    pub(crate) waited: u32,
}

impl RequestPath {
    /// Over a volume.
    pub(crate) fn new(layout: Arc<dyn Layout>, kind: Kind) -> Self {
        let export = Export::new("bench".to_owned(), String::new(), layout, false);
        let agreement = Agreement {
            framing: Framing::Structured,
            allocation: false,
        };
        let Kind {
            command, length, ..
        } = kind;
        let header = |offset: u64| {
            let request = Request {
                flags: 0,
                command,
                cookie: offset,
                offset,
                length,
            };
            request.encode(agreement.framing)
        };
        let offsets = (0..VOLUME_BYTES).step_by(length as usize);
        let writes = command == cmd::WRITE;
        Self {
            session: Session::new(Arc::new(export), agreement, Arc::new(Client)),
            replies: ReplyQueue::default(),
            headers: offsets.map(header).collect(),
            payload: writes.then(|| Bytes::from(vec![7; length as usize])),
            next: 0,
            waited: 0,
            reply_bytes: if writes { 20 } else { 20 + 8 + length },
        }
    }

    /// Sends every request once, so that nothing is done for the first time later.
    pub(crate) fn warm_up(&mut self) {
        (0..self.headers.len()).for_each(|_| self.request());
    }

    /// One request, from its header to its reply.
    ///
    /// # Panics
    /// If it is answered wrongly.
    pub(crate) fn request(&mut self) {
        let header = &self.headers[self.next];
        self.next = (self.next + 1) % self.headers.len();
        let request = Request::decode(header, Framing::Structured).ok().flatten();
        let request = request.expect("a whole request");
        assert!(self.session.admits(&request, &mut self.replies));
        let started = self
            .session
            .start(request, self.payload.clone(), &mut self.replies);
        if let Started::Waits(waiting) = started {
            self.waited += 1;
            let finished = block_on(waiting);
            self.session.finish(finished, &mut self.replies);
        }
        let mut sent = 0;
        while !self.replies.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = self.replies.slices(&mut slices);
            let bytes: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            self.replies.advance(bytes as u64);
            sent += bytes as u64;
        }
        // A lent payload is followed by a chunk that says that all went well.
        let lent = self.reply_bytes + 20;
        assert!(
            sent == self.reply_bytes || sent == lent,
            "{sent} bytes of reply"
        );
    }
}

/// A volume in memory.
pub(crate) fn in_memory() -> Arc<dyn Layout> {
    let (chain, _) = memory::chain(vec![7; VOLUME_BYTES as usize]);
    let opened = block_on(async {
        let mode = ObjectMode::new(ObjectFlags::WRITE);
        Raw::new(chain.clone(), chain.open_object("", mode).await?).await
    });
    Arc::new(opened.expect("a volume in memory opens"))
}

/// A volume in a file under the folder that cargo builds to, through the `file` plugin that was
/// built like this program; `None` if it was not.
pub(crate) struct InFile {
    /// The volume.
    pub(crate) layout: Arc<dyn Layout>,
    path: PathBuf,
}

impl InFile {
    /// Makes the file and opens it.
    pub(crate) fn open() -> Option<Self> {
        let executable = std::env::current_exe().expect("this program has a path");
        // Beside `deps` or `examples`, where the host lies.
        let built = executable.parent().and_then(Path::parent)?;
        nbd_rs::plugin::start(nbd_rs::runtime::handle().clone());
        let places = Places {
            executable: Some(built.join("nbd-rs")),
            ..Places::default()
        };
        let registry = Registry::load(&SearchPath::new(&places), false);
        if !registry.schemes().any(|scheme| scheme == "file") {
            return None;
        }
        let path = built.join(format!("bench-{}.img", std::process::id()));
        std::fs::write(&path, vec![7; VOLUME_BYTES as usize]).expect("the image can be written");
        let config = format!("file:{}", path.display());
        let volume = Volume::parse("raw", &config, &registry).expect("a location");
        let layout = block_on(volume.open(&registry, Access::ReadWrite)).expect("it opens");
        Some(Self { layout, path })
    }
}

impl Drop for InFile {
    fn drop(&mut self) {
        // Left behind it costs a little space, no more.
        let _ = std::fs::remove_file(&self.path);
    }
}
