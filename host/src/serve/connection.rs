//! One client: a thread of its own that takes requests in, carries them out, and sends replies.
//!
//! The thread blocks in `recv` while nothing else is going on. Requests that can be answered at
//! once are answered right here, many with one vectored write. Those that must wait are futures
//! that this thread drives; then it sleeps in `poll` on its socket and its waker.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, Stream};
use nbd_rs_plugin::{Buf, Bytes};

use super::budget::Account;
use super::link::{Fate, Link};
use super::shared::{Guest, Shared};
use crate::export::MAX_PAYLOAD_BYTES;
use crate::nbd::errno::Errno;
use crate::nbd::reply_queue::{ReplyQueue, MAX_SLICES};
use crate::nbd::session::{InFlight, Session, Started};
use crate::nbd::validate::Refusal;
use crate::nbd::wire::constants::cmd;
use crate::nbd::wire::request::Request;
use crate::nbd::wire::Framing;
use crate::pool::{self, RecvBuffer};

/// Received bytes that are held, in bytes; longer payloads get memory of their own.
const RECV_BYTES: usize = 256 << 10;
/// Requests that may wait at the same time.
const MAX_IN_FLIGHT: usize = 64;
/// Payload that waiting requests may hold, in bytes.
const MAX_IN_FLIGHT_BYTES: u64 = 64 << 20;
/// Replies are sent when so many bytes or segments have come together.
pub(super) const SEND_BYTES: u64 = 512 << 10;
const SEND_SEGMENTS: usize = MAX_SLICES / 2;
/// Reads beyond this are counted against the memory budget, in bytes.
const COUNTED_READ_BYTES: u64 = 64 << 10;
/// Refused payloads up to this size are read over, so that the stream stays in step, in bytes.
const MAX_DRAINED_BYTES: u64 = 64 << 20;
/// After so long without a request the connection gives its memory back.
const IDLE_AFTER: Duration = Duration::from_millis(200);
/// A send may block for so long while nothing else is going on.
const SEND_PATIENCE: Duration = Duration::from_millis(100);
/// A payload that stands still for so long is given up when others wait for memory.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// What a client that is gone may have left in the socket, in bytes.
const MAX_LEGACY_BYTES: usize = 80 << 20;

/// A payload that is on its way into memory of its own.
struct Incoming {
    request: Request,
    buf: Buf,
    filled: usize,
    last_progress: Instant,
}

/// A request that is all there.
struct Arrived {
    request: Request,
    payload: Option<Bytes>,
    /// Memory that was taken from the budget for it, in bytes.
    reserved_bytes: u64,
}

/// What the bytes at the front of the buffer are good for.
enum Parsed {
    /// More of them are needed.
    Incomplete,
    /// They were dealt with; look on.
    Handled,
    /// A request.
    Arrived(Arrived),
}

impl Incoming {
    /// Takes what was received before the payload had memory of its own.
    fn fill_from(&mut self, buffer: &mut RecvBuffer) {
        let here = buffer.unparsed().len().min(self.buf.len() - self.filled);
        self.buf[self.filled..][..here].copy_from_slice(&buffer.unparsed()[..here]);
        buffer.skip(here);
        self.filled += here;
    }

    fn whole(self) -> Arrived {
        Arrived {
            request: self.request,
            reserved_bytes: self.buf.len() as u64,
            payload: Some(self.buf.freeze()),
        }
    }
}

/// What to do with the bytes that come next.
enum Expect {
    /// A request.
    Request,
    /// The rest of a large payload.
    Payload(Incoming),
    /// So many bytes to read over.
    Nothing(u64),
}

/// A connection in its transmission phase.
pub(super) struct Connection<'s> {
    link: Arc<Link>,
    shared: &'s Shared,
    session: Session<Link>,
    guest: &'s Guest,
    buffer: Option<RecvBuffer>,
    expect: Expect,
    replies: ReplyQueue,
    /// Replies can't be delivered any more.
    mute: bool,
    /// No more bytes will come, or none that count.
    ended: bool,
    in_flight: FuturesUnordered<Counted>,
    account: Account<'s>,
    /// Memory of replies that are not sent yet, in bytes.
    unsent_bytes: u64,
    /// Requests were received that had no room yet.
    backlog: bool,
}

/// A waiting request with the memory it holds.
struct Counted {
    future: InFlight,
    bytes: u64,
}

impl std::future::Future for Counted {
    type Output = (crate::nbd::session::Finished, u64);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let bytes = self.bytes;
        self.future
            .as_mut()
            .poll(cx)
            .map(|finished| (finished, bytes))
    }
}

impl<'s> Connection<'s> {
    /// After the handshake.
    pub(super) fn new(
        link: Arc<Link>,
        session: Session<Link>,
        shared: &'s Shared,
        guest: &'s Guest,
    ) -> Self {
        Self {
            link,
            shared,
            session,
            guest,
            buffer: None,
            expect: Expect::Request,
            replies: ReplyQueue::default(),
            mute: false,
            ended: false,
            in_flight: FuturesUnordered::new(),
            account: Account::new(&shared.budget),
            unsent_bytes: 0,
            backlog: false,
        }
    }

    /// Serves the client to its end. Changes that were started are made, whatever happens to it.
    ///
    /// # Errors
    /// Why the connection was cut, if it was.
    pub(super) fn run(&mut self) -> io::Result<()> {
        self.link.set_patience(IDLE_AFTER, SEND_PATIENCE)?;
        let served = self.serve();
        if served.is_err() {
            self.mute = true;
            self.link.settle(Fate::Dead);
        }
        loop {
            self.finish_ready();
            self.replies.clear();
            if self.in_flight.is_empty() {
                return served;
            }
            self.link.wait(false, false, None);
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            self.start_received()?;
            // What was started and waits has its first poll here: before it nothing has happened.
            self.finish_ready();
            self.send(true)?;
            if self.backlog && self.has_room() {
                continue;
            }
            let over = self.ended || self.shared.is_draining();
            if over && self.in_flight.is_empty() && self.replies.is_empty() {
                return Ok(());
            }
            self.wait_and_receive()?;
            self.finish_ready();
        }
    }

    /// Whether another request may be started now.
    fn has_room(&self) -> bool {
        self.in_flight.len() < MAX_IN_FLIGHT
            && self.account.used_bytes() < MAX_IN_FLIGHT_BYTES
            && (self.replies.bytes() < SEND_BYTES || self.mute)
    }

    /// Starts every request that is all there.
    fn start_received(&mut self) -> io::Result<()> {
        self.backlog = false;
        while self.has_room() {
            let Some(arrived) = self.next_request()? else {
                return Ok(());
            };
            self.start(arrived)?;
            if self.replies.segments() >= SEND_SEGMENTS || self.replies.bytes() >= SEND_BYTES {
                self.send(false)?;
            }
        }
        self.backlog = true;
        Ok(())
    }

    /// The next request with its whole payload, out of what was received.
    fn next_request(&mut self) -> io::Result<Option<Arrived>> {
        loop {
            match &mut self.expect {
                Expect::Payload(incoming) => {
                    if let Some(buffer) = &mut self.buffer {
                        incoming.fill_from(buffer);
                    }
                    if incoming.filled < incoming.buf.len() {
                        return Ok(None);
                    }
                    let expect = std::mem::replace(&mut self.expect, Expect::Request);
                    return Ok(match expect {
                        Expect::Payload(incoming) => Some(incoming.whole()),
                        Expect::Request | Expect::Nothing(_) => None,
                    });
                }
                Expect::Nothing(left) => {
                    let Some(buffer) = &mut self.buffer else {
                        return Ok(None);
                    };
                    let part = (*left).min(buffer.unparsed().len() as u64);
                    buffer.skip(part as usize);
                    *left -= part;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.expect = Expect::Request;
                }
                Expect::Request => match self.parse_request()? {
                    Parsed::Incomplete => return Ok(None),
                    Parsed::Handled => {}
                    Parsed::Arrived(arrived) => return Ok(Some(arrived)),
                },
            }
        }
    }

    fn parse_request(&mut self) -> io::Result<Parsed> {
        let framing = self.session.framing();
        let Some(buffer) = &mut self.buffer else {
            return Ok(Parsed::Incomplete);
        };
        let request = match Request::decode(buffer.unparsed(), framing) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(Parsed::Incomplete),
            Err(bad) => return Err(broken(format!("bad request magic {:#010x}", bad.0))),
        };
        if request.command == cmd::DISC {
            self.link.settle(Fate::Orderly);
            self.ended = true;
            self.buffer = None;
            return Ok(Parsed::Incomplete);
        }
        let header = framing.request_header_bytes();
        let payload = request.payload_bytes(framing);
        if payload > payload_limit(framing) {
            return Err(broken(format!("a payload of {payload} bytes")));
        }
        let whole = header + payload as usize;
        let fits = whole <= RECV_BYTES;
        if fits && buffer.unparsed().len() < whole {
            return Ok(Parsed::Incomplete);
        }
        buffer.skip(header);
        if !self.admits(&request) {
            self.expect = Expect::Nothing(payload);
            return Ok(Parsed::Handled);
        }
        if !fits {
            self.expect_payload(request, payload)?;
            return Ok(Parsed::Handled);
        }
        let cut = |buffer: &mut RecvBuffer| buffer.take(payload as usize);
        Ok(Parsed::Arrived(Arrived {
            request,
            payload: self.buffer.as_mut().filter(|_| payload > 0).map(cut),
            reserved_bytes: 0,
        }))
    }

    /// Answers a request that can't be carried out; whether it can.
    fn admits(&mut self, request: &Request) -> bool {
        if self.shared.is_draining() {
            let refusal = Refusal(Errno::Shutdown, "the server is going down");
            self.session.refuse(request, refusal, &mut self.replies);
            return false;
        }
        self.session.admits(request, &mut self.replies)
    }

    /// Makes room for a large payload. Memory that nothing was received into is not touched.
    fn expect_payload(&mut self, request: Request, payload: u64) -> io::Result<()> {
        self.reserve(payload)?;
        self.expect = Expect::Payload(Incoming {
            request,
            buf: pool::buf(payload as usize),
            filled: 0,
            last_progress: Instant::now(),
        });
        Ok(())
    }

    /// Takes memory from the budget. Whoever waits for some holds none: so one of all those who
    /// wait gets it.
    fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        while !self.account.try_use(bytes) {
            if self.in_flight.is_empty() && self.replies.is_empty() {
                self.shared.budget.wait(IDLE_AFTER);
            } else {
                self.finish_ready();
                self.send(true)?;
                if !self.in_flight.is_empty() {
                    self.link.wait(false, !self.replies.is_empty(), None);
                }
            }
            if self.shared.is_draining() {
                return Err(broken("the server is going down".to_owned()));
            }
        }
        Ok(())
    }

    fn start(&mut self, arrived: Arrived) -> io::Result<()> {
        let Arrived {
            request,
            payload,
            mut reserved_bytes,
        } = arrived;
        if request.command == cmd::READ && request.length > COUNTED_READ_BYTES {
            self.reserve(request.length)?;
            reserved_bytes += request.length;
        }
        let started = self.session.start(request, payload, &mut self.replies);
        self.follow(started, reserved_bytes);
        Ok(())
    }

    fn follow(&mut self, started: Started, bytes: u64) {
        match started {
            Started::Answered => self.unsent_bytes += bytes,
            Started::Waits(future) => self.in_flight.push(Counted { future, bytes }),
            Started::Dropped(request) => {
                tracing::debug!(
                    offset = request.offset,
                    length = request.length,
                    "dropped a change of a client that is gone"
                );
                self.account.release(bytes);
            }
        }
    }

    /// Answers the waiting requests that have come to their end.
    fn finish_ready(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let waker = std::task::Waker::from(self.link.waker().clone());
        let mut cx = Context::from_waker(&waker);
        loop {
            while let Poll::Ready(Some((finished, bytes))) =
                Pin::new(&mut self.in_flight).poll_next(&mut cx)
            {
                let started = self.session.finish(finished, &mut self.replies);
                self.follow(started, bytes);
            }
            if !self.link.is_fate_asked() {
                return;
            }
            self.settle_fate();
        }
    }

    /// Sends replies: all that can be, and with `all` until none is left or the client does not
    /// take more for now.
    fn send(&mut self, all: bool) -> io::Result<()> {
        self.send_queued(all)?;
        if self.replies.is_empty() {
            self.account.release(std::mem::take(&mut self.unsent_bytes));
        }
        Ok(())
    }

    fn send_queued(&mut self, all: bool) -> io::Result<()> {
        while !self.replies.is_empty() {
            if self.mute {
                self.replies.clear();
                return Ok(());
            }
            let block = self.in_flight.is_empty();
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = self.replies.slices(&mut slices);
            match self.link.send(&slices[..count], block) {
                Ok(sent) => self.replies.advance(sent as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unlend()?;
                    if !all || !block {
                        return Ok(());
                    }
                    // A client that takes nothing must not hold up the server's end for long.
                    let draining = self.shared.is_draining();
                    let deadline = draining.then(|| Instant::now() + STALLED_AFTER);
                    let ready = self.link.wait(false, true, deadline);
                    self.mute |= draining && !ready.writable;
                }
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::FAULT.raw_os_error()) =>
                {
                    self.unlend()?;
                }
                // The client does not listen any more; what it asked for is its own affair.
                Err(_) => self.mute = true,
            }
        }
        Ok(())
    }

    /// Lent payloads do not outlive one attempt to send: others wait to write there.
    fn unlend(&mut self) -> io::Result<()> {
        if self.replies.has_lent() {
            let unlent = self.session.unlend(&mut self.replies);
            unlent.map_err(|_| broken("a read failed after its reply had begun".to_owned()))?;
        }
        Ok(())
    }

    /// Sleeps until something can go on, and takes in what has come.
    fn wait_and_receive(&mut self) -> io::Result<()> {
        let read = !self.ended && !self.backlog;
        let write = !self.replies.is_empty();
        if read && !write && self.in_flight.is_empty() {
            return self.receive_or_idle();
        }
        let ready = self.link.wait(read, write, None);
        if ready.readable {
            self.receive(false)?;
        }
        Ok(())
    }

    /// Blocks in the socket; when nothing comes for a while, gives the memory back first.
    fn receive_or_idle(&mut self) -> io::Result<()> {
        if self.receive(true)? || self.ended {
            return Ok(());
        }
        match &self.expect {
            Expect::Request if self.buffer.as_ref().is_none_or(|b| b.unparsed().is_empty()) => {
                self.buffer = None;
                pool::release_thread_cache();
            }
            Expect::Payload(incoming)
                if incoming.last_progress.elapsed() > STALLED_AFTER
                    && self.shared.budget.is_short() =>
            {
                return Err(broken(
                    "a payload that stood still while memory was short".to_owned(),
                ));
            }
            Expect::Request | Expect::Payload(_) | Expect::Nothing(_) => {}
        }
        let deadline = match &self.expect {
            Expect::Request => None,
            Expect::Payload(_) | Expect::Nothing(_) => Some(Instant::now() + IDLE_AFTER),
        };
        if !self.shared.is_draining() && !self.guest.is_evicted() {
            self.link.wait(true, false, deadline);
        }
        Ok(())
    }

    /// Receives once; whether anything came.
    fn receive(&mut self, block: bool) -> io::Result<bool> {
        let received = match &mut self.expect {
            Expect::Payload(incoming) => {
                let received = self.link.recv(&mut incoming.buf[incoming.filled..], block);
                if let Ok(bytes) = received {
                    incoming.filled += bytes;
                    incoming.last_progress = Instant::now();
                }
                received
            }
            Expect::Request | Expect::Nothing(_) => {
                let buffer = self
                    .buffer
                    .get_or_insert_with(|| RecvBuffer::new(RECV_BYTES));
                buffer.rewind();
                let received = self.link.recv(buffer.spare(), block);
                if let Ok(bytes) = received {
                    buffer.received(bytes);
                }
                received
            }
        };
        match received {
            Ok(0) => self.stream_ended(),
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.stream_ended(),
        }
        Ok(false)
    }

    /// The client sends nothing more, and did not say that it leaves.
    fn stream_ended(&mut self) {
        self.ended = true;
        self.link.settle(Fate::Dead);
    }

    /// The client hung up: whether it said so is in what it left behind, which is read here.
    fn settle_fate(&mut self) {
        let buffer = self
            .buffer
            .get_or_insert_with(|| RecvBuffer::new(RECV_BYTES));
        loop {
            buffer.rewind();
            if buffer.spare().is_empty() {
                if buffer.capacity() >= MAX_LEGACY_BYTES {
                    break;
                }
                buffer.grow(buffer.capacity() * 4);
            }
            match self.link.recv(buffer.spare(), false) {
                Ok(0) | Err(_) => break,
                Ok(bytes) => buffer.received(bytes),
            }
        }
        let behind = match &self.expect {
            Expect::Request => 0,
            Expect::Payload(incoming) => incoming.buf.len() - incoming.filled,
            Expect::Nothing(left) => *left as usize,
        };
        let requests = buffer.unparsed().get(behind..).unwrap_or(&[]);
        let orderly = says_goodbye(requests, self.session.framing());
        self.link
            .settle(if orderly { Fate::Orderly } else { Fate::Dead });
    }
}

impl Drop for Connection<'_> {
    /// A panic of this thread must not let go of changes that have begun: their ranges stay
    /// locked, since nobody knows any more when they end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::mem::forget(std::mem::take(&mut self.in_flight));
        }
    }
}

/// Whether a DISC stands among these requests.
fn says_goodbye(mut bytes: &[u8], framing: Framing) -> bool {
    while let Ok(Some(request)) = Request::decode(bytes, framing) {
        if request.command == cmd::DISC {
            return true;
        }
        let payload = request.payload_bytes(framing);
        let whole = payload.saturating_add(framing.request_header_bytes() as u64);
        let Some(rest) = usize::try_from(whole)
            .ok()
            .and_then(|whole| bytes.get(whole..))
        else {
            return false;
        };
        bytes = rest;
    }
    false
}

/// The longest payload that is read at all, even to be refused.
fn payload_limit(framing: Framing) -> u64 {
    match framing {
        Framing::Extended => u64::from(MAX_PAYLOAD_BYTES),
        Framing::Simple | Framing::Structured => MAX_DRAINED_BYTES,
    }
}

fn broken(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: u16, length: u64) -> Vec<u8> {
        let request = Request {
            flags: 0,
            command,
            cookie: 1,
            offset: 0,
            length,
        };
        request.encode(Framing::Simple)
    }

    #[test]
    fn c03_a_disc_behind_whole_requests_is_a_goodbye() {
        let mut stream = request(cmd::READ, 512);
        assert!(!says_goodbye(&stream, Framing::Simple));
        stream.extend(request(cmd::WRITE, 3));
        stream.extend(b"abc");
        stream.extend(request(cmd::DISC, 0));
        assert!(says_goodbye(&stream, Framing::Simple));
        assert!(!says_goodbye(&stream[..stream.len() - 1], Framing::Simple));
        assert!(!says_goodbye(&stream[1..], Framing::Simple));
    }
}
