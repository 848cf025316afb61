//! The real server, a real socket, and a client that sends what its script says.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use nbd_rs::backend::memory::{self, Faults};
use nbd_rs::export::Export;
use nbd_rs::layout::raw::Raw;
use nbd_rs::nbd::options::Exports;
use nbd_rs::runtime::block_on;
use nbd_rs::serve::shared::{Limits, Shared};
use nbd_rs_plugin::{ObjectFlags, ObjectMode};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use crate::program::Program;
use crate::script::{pattern, script};

/// Size of the export `disk`, in bytes: a payload may be longer than a connection's buffer.
pub const DISK_BYTES: u64 = 320 << 10;
/// Size of the read-only export `frozen`, in bytes.
pub const FROZEN_BYTES: u64 = 64 << 10;
/// Memory that the server may use for payloads, in bytes.
const MEMORY_BYTES: u64 = 64 << 20;
/// A server that does nothing for so long hangs, in seconds; a handshake may take ten.
const PATIENCE_S: i64 = 20;

/// A session that is over.
#[derive(Debug, Clone)]
pub struct Played {
    /// The program.
    pub program: Program,
    /// All that the client sent, or meant to send when the server hung up.
    pub sent: Vec<u8>,
    /// All that the server answered.
    pub received: Vec<u8>,
    /// Whether the client read to the end.
    pub to_the_end: bool,
}

/// What is in the volume of `disk` at first: data here and there, holes between.
pub fn initial_contents() -> &'static [u8] {
    static CONTENTS: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENTS.get_or_init(|| {
        let mut contents = vec![0; DISK_BYTES as usize];
        for (at, len) in [(4096, 512), (65_536 - 100, 200), (200_000, 70_000)] {
            contents[at..at + len].copy_from_slice(&pattern(at as u8 | 1, len));
        }
        contents
    })
}

/// Plays a program from the first byte to the end of the server's thread.
///
/// # Errors
/// If the server hangs, panics, or keeps memory.
pub fn play(program: &Program) -> Result<Played, String> {
    let panics = panics_of_clients();
    let shared = Shared::new(
        exports(program),
        Limits {
            connections: 4,
            memory_bytes: MEMORY_BYTES,
        },
    );
    let failed = |error: io::Error| format!("the test's own socket: {error}");
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    nbd_rs::serve::admit(OwnedFd::from(theirs), "a program".to_owned(), &shared).map_err(failed)?;
    let parts = script(program);
    let mut client = Client {
        socket: ours,
        received: Vec::new(),
    };
    client.socket.set_nonblocking(true).map_err(failed)?;
    let reached_end = client.send_all(&parts)?;
    let to_the_end = reached_end || !program.hangs_up;
    if !reached_end && to_the_end {
        client.read_to_end()?;
    }
    let received = std::mem::take(&mut client.received);
    drop(client);
    if shared.wait_empty(Duration::from_secs(PATIENCE_S as u64)) > 0 {
        return Err("the connection's thread did not end".to_owned());
    }
    if panics_of_clients() != panics {
        return Err("the connection's thread panicked".to_owned());
    }
    Ok(Played {
        program: program.clone(),
        sent: parts.concat(),
        received,
        to_the_end,
    })
}

fn exports(program: &Program) -> Exports {
    let (disk, faults) = export("disk", initial_contents().to_vec(), false);
    faults.slow.store(program.slow, Ordering::Relaxed);
    faults
        .failing_reads
        .store(program.failing_reads, Ordering::Relaxed);
    faults
        .failing_syncs
        .store(program.failing_syncs.into(), Ordering::Relaxed);
    let (frozen, _) = export("frozen", vec![0; FROZEN_BYTES as usize], true);
    Exports(vec![disk, frozen])
}

fn export(name: &str, contents: Vec<u8>, read_only: bool) -> (Arc<Export>, Arc<Faults>) {
    let (chain, faults) = memory::chain(contents);
    let opened = block_on(async {
        let mode = ObjectMode::new(ObjectFlags::WRITE);
        Raw::new(chain.clone(), chain.open_object("", mode).await?).await
    });
    let layout = Arc::new(opened.expect("a volume in memory opens"));
    let export = Export::new(name.to_owned(), "in memory".to_owned(), layout, read_only);
    (Arc::new(export), faults)
}

struct Client {
    socket: UnixStream,
    received: Vec<u8>,
}

impl Client {
    /// Sends all parts and reads meanwhile; whether the server's end was reached.
    fn send_all(&mut self, parts: &[Vec<u8>]) -> Result<bool, String> {
        for part in parts {
            let mut left = &part[..];
            while !left.is_empty() {
                match self.socket.write(left) {
                    Ok(sent) => left = &left[sent..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.wait(PollFlags::IN | PollFlags::OUT)?;
                    }
                    // The server hung up; what it said before is still there.
                    Err(_) => {
                        self.read_to_end()?;
                        return Ok(true);
                    }
                }
                if self.read_some() {
                    return Ok(true);
                }
            }
            std::thread::yield_now();
        }
        Ok(false)
    }

    /// Sends the end of the stream and reads until the server's.
    fn read_to_end(&mut self) -> Result<(), String> {
        // The server may have shut it already.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        while !self.read_some() {
            self.wait(PollFlags::IN)?;
        }
        Ok(())
    }

    /// Reads what is there; whether that was all that will come.
    fn read_some(&mut self) -> bool {
        let mut buffer = [0; 64 << 10];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return true,
                Ok(len) => self.received.extend(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A reset is the end as well: the server had not read everything.
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    fn wait(&self, wanted: PollFlags) -> Result<(), String> {
        let mut fds = [PollFd::new(&self.socket, wanted)];
        let patience = Timespec {
            tv_sec: PATIENCE_S,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&patience)) {
            Ok(0) => Err(format!("the server did nothing for {PATIENCE_S} s")),
            _ => Ok(()),
        }
    }
}

/// How often the thread of a client has panicked so far in this process.
fn panics_of_clients() -> usize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() == Some("client") {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(info);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}
