//! A random script of all commands, legal and not, on up to four connections of all framings,
//! some sent at once, compared with a plain byte vector. The server is stopped or killed in
//! between, also with requests in flight, and has to come back with the same bytes.

use std::ops::Range;
use std::time::Duration;

use rustix::process::Signal;

use crate::client::reply::Reply;
use crate::client::{
    Client, Framing, BLOCK_STATUS, CACHE, DF, EINVAL, ENOSPC, ENOTSUP, FAST_ZERO, FLUSH, FRAMINGS,
    FUA, HOLE, NO_HOLE, PAYLOAD_LEN, READ, REQ_ONE, TRIM, WRITE, WRITE_ZEROES, ZERO,
};
use crate::rng::Rng;
use crate::server::Server;

/// Requests that may be sent at once.
const BATCH: usize = 12;
/// What a TRIM that need not be exact leaves alone at its edges.
const UNIT: usize = 4096;

/// The volume that is played with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Its size in bytes: an odd one, so that the end is in the middle of everything.
    pub(crate) size: usize,
    /// Requests in all.
    pub(crate) requests: usize,
    /// Whether CACHE is offered.
    pub(crate) cache: bool,
    /// Whether shards are put whole: there FAST_ZERO may be refused, and a TRIM leaves alone the
    /// units that it covers in part.
    pub(crate) whole_shards: bool,
    /// Once in so many batches of requests the server is ended and started again.
    pub(crate) reopened: u64,
}

impl Terms {
    /// A volume whose chain does all there is, byte by byte.
    pub(crate) fn exact(size: usize, requests: usize) -> Self {
        Self {
            size,
            requests,
            cache: true,
            whole_shards: false,
            reopened: 64,
        }
    }
}

/// A client that sends payloads without receiving must not have more than this on its way to it:
/// server and client would wait for each other.
const UNREAD_BYTES: usize = 64 << 10;

/// One request.
#[derive(Debug, Clone)]
struct Op {
    command: u16,
    flags: u16,
    offset: u64,
    length: usize,
    payload: Vec<u8>,
}

impl Op {
    fn random(rng: &mut Rng, framing: Framing, terms: &Terms) -> Self {
        let dice = rng.next();
        let command = match dice % 32 {
            0..=9 => READ,
            10..=18 => WRITE,
            19..=20 => FLUSH,
            21..=22 => TRIM,
            23..=25 => WRITE_ZEROES,
            26..=29 => BLOCK_STATUS,
            30 => CACHE,
            _ => 8 + (dice >> 8) as u16 % 100,
        };
        let (offset, length) = range(rng, terms.size);
        let (offset, length) = match command {
            FLUSH if dice >> 20 & 7 != 0 => (0, 0),
            _ => (offset, length),
        };
        let payload = match command {
            // Eight bytes of noise, again and again.
            WRITE => rng.bytes(8).into_iter().cycle().take(length).collect(),
            _ => Vec::new(),
        };
        Self {
            command,
            flags: flags(rng, framing, command),
            offset,
            length,
            payload,
        }
    }

    fn range(&self) -> Range<usize> {
        self.offset as usize..self.offset as usize + self.length
    }

    /// The bytes that a change is sure to change.
    fn changes(&self, terms: &Terms) -> Range<usize> {
        let Range { start, end } = self.range();
        if self.command != TRIM || !terms.whole_shards {
            return start..end;
        }
        let start_unit = start.next_multiple_of(UNIT);
        // The last unit of a volume may be a short one.
        let end_unit = match end == terms.size {
            true => end,
            false => end / UNIT * UNIT,
        };
        start_unit..end_unit.max(start_unit)
    }

    /// Whether the volume may say that it can't be done, and do nothing.
    fn may_be_refused(&self, terms: &Terms) -> bool {
        let fast = self.command == WRITE_ZEROES && self.flags & FAST_ZERO != 0;
        fast && terms.whole_shards
    }

    fn is_change(&self) -> bool {
        matches!(self.command, WRITE | TRIM | WRITE_ZEROES)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.range(), other.range());
        a.start < b.end && b.start < a.end
    }

    /// The byte that a change leaves at `at`.
    fn byte(&self, at: usize) -> u8 {
        match self.command {
            WRITE => self.payload[at - self.offset as usize],
            _ => 0,
        }
    }

    /// What the specification says must be answered, written down a second time.
    fn error(&self, framing: Framing, terms: &Terms) -> u32 {
        let own = match self.command {
            READ if framing == Framing::Simple => 0,
            READ => DF,
            WRITE_ZEROES => NO_HOLE | FAST_ZERO,
            BLOCK_STATUS => REQ_ONE,
            WRITE if framing == Framing::Extended => PAYLOAD_LEN,
            CACHE if !terms.cache => return EINVAL,
            WRITE | FLUSH | TRIM | CACHE => 0,
            _ => return EINVAL,
        };
        let no_context = self.command == BLOCK_STATUS && framing == Framing::Simple;
        if self.flags & !(own | FUA) != 0 || no_context {
            return EINVAL;
        }
        let beyond = self.offset.checked_add(self.length as u64);
        if beyond.is_none_or(|end| end > terms.size as u64) {
            return match self.command {
                WRITE | WRITE_ZEROES => ENOSPC,
                _ => EINVAL,
            };
        }
        match self.command {
            FLUSH if self.offset != 0 || self.length != 0 => EINVAL,
            BLOCK_STATUS if self.length == 0 => EINVAL,
            _ => 0,
        }
    }
}

/// Somewhere in the volume, often at an edge, sometimes behind the end.
fn range(rng: &mut Rng, size: usize) -> (u64, usize) {
    let dice = rng.next();
    let length = match dice % 16 {
        0 => 0,
        1..=4 => 1 + (dice >> 8) as usize % 600,
        5..=9 => 512 * (1 + (dice >> 8) as usize % 64),
        10..=13 => 4096 * (1 + (dice >> 8) as usize % 16),
        14 => (dice >> 8) as usize % (1 << 20),
        _ => (dice >> 8) as usize % (2 << 20),
    };
    let size = size as u64;
    let room = size.saturating_sub(length as u64);
    let offset = match dice >> 40 & 31 {
        0 => room,
        1 => 0,
        2 => room + 1 + (dice >> 45) % 5000,
        3 if dice >> 45 & 1 == 0 => u64::MAX - (dice >> 45) % 5000,
        4..=17 => (dice >> 45) % (room + 1) / 4096 * 4096,
        _ => (dice >> 45) % (room + 1),
    };
    (offset, length)
}

/// Mostly flags that go with the command.
fn flags(rng: &mut Rng, framing: Framing, command: u16) -> u16 {
    let dice = rng.next();
    let own = match command {
        READ if framing != Framing::Simple => DF,
        WRITE_ZEROES => NO_HOLE | FAST_ZERO,
        BLOCK_STATUS => REQ_ONE,
        _ => 0,
    };
    let mut flags = dice as u16 & own;
    if dice >> 16 & 7 == 0 {
        flags |= FUA;
    }
    if dice >> 20 & 31 == 0 {
        // Any one; but the one that announces a payload changes what is sent (w77).
        flags |= 1 << ((dice >> 32) % 16);
        flags &= !PAYLOAD_LEN;
    }
    flags
}

/// A request that was sent, where, and under which cookie.
struct Sent {
    op: Op,
    connection: usize,
    cookie: u64,
}

/// Requests that are sent at once. Changes overlap only on one connection: there they are made in
/// the order in which they were sent.
fn batch(rng: &mut Rng, clients: &[Client], terms: &Terms) -> Vec<(usize, Op)> {
    let wanted = 1 + rng.next() as usize % BATCH;
    let mut batch: Vec<(usize, Op)> = Vec::new();
    while batch.len() < wanted {
        let connection = rng.next() as usize % clients.len();
        let framing = clients[connection].framing();
        let op = Op::random(rng, framing, terms);
        let meets = |(on, other): &(usize, Op)| {
            let changes = op.is_change() && other.is_change();
            let done = other.error(clients[*on].framing(), terms) == 0;
            changes && done && *on != connection && op.overlaps(other)
        };
        if op.command == WRITE && unread(&batch, connection) > UNREAD_BYTES {
            continue;
        }
        if op.error(framing, terms) != 0 || !batch.iter().any(meets) {
            batch.push((connection, op));
        }
    }
    batch
}

/// Bytes that were asked for on a connection and are not received yet.
fn unread(batch: &[(usize, Op)], connection: usize) -> usize {
    let here = batch
        .iter()
        .filter(|(on, op)| *on == connection && op.command == READ);
    here.map(|(_, op)| op.length).sum()
}

/// Whether the byte at `at` is the old one, or one of those that `changes` leave there.
fn allowed(volume: &[u8], changes: &[&Op], at: usize, byte: u8) -> bool {
    let wrote = |op: &&&Op| op.range().contains(&at) && op.byte(at) == byte;
    volume[at] == byte || changes.iter().any(|op| wrote(&op))
}

fn check_read(volume: &[u8], changes: &[&Op], op: &Op, data: &[u8]) {
    let range = op.range();
    let meets: Vec<&Op> = changes.iter().copied().filter(|c| c.overlaps(op)).collect();
    if meets.is_empty() {
        assert!(volume[range] == *data, "other bytes");
        return;
    }
    for (at, byte) in range.zip(data) {
        assert!(allowed(volume, &meets, at, *byte), "byte {at} is {byte}");
    }
}

fn check_extents(volume: &[u8], changes: &[&Op], op: &Op, extents: &[(u64, u64)]) {
    let all: u64 = extents.iter().map(|(length, _)| length).sum();
    assert!(all <= op.length as u64, "more extents than asked for");
    if op.flags & REQ_ONE != 0 {
        assert_eq!(extents.len(), 1, "REQ_ONE");
    }
    let mut at = op.offset as usize;
    for (length, status) in extents {
        let range = at..at + *length as usize;
        at = range.end;
        assert!(
            status & HOLE == 0 || status & ZERO != 0,
            "a hole that is not zero"
        );
        if status & ZERO == 0 {
            continue;
        }
        let meets: Vec<&Op> = changes.iter().copied().filter(|c| c.overlaps(op)).collect();
        if meets.is_empty() {
            let zero = volume[range].iter().all(|byte| *byte == 0);
            assert!(zero, "what is said to be zero is not: {op:?}, {extents:?}");
            continue;
        }
        for at in range {
            let allowed = allowed(volume, &meets, at, 0);
            assert!(allowed, "byte {at} can't be zero: {op:?}, {extents:?}");
        }
    }
}

fn check_reply(
    volume: &[u8],
    changes: &[&Op],
    op: &Op,
    (framing, terms): (Framing, &Terms),
    reply: &Reply,
) {
    let expected = op.error(framing, terms);
    if expected != 0 || reply.error != ENOTSUP || !op.may_be_refused(terms) {
        assert_eq!(reply.error, expected, "{op:?}: {}", reply.text);
    }
    if reply.error != 0 {
        assert_eq!(reply.contents, 0, "content before an error");
        return;
    }
    match op.command {
        READ => check_read(volume, changes, op, &reply.data),
        BLOCK_STATUS => check_extents(volume, changes, op, &reply.extents),
        _ => {}
    }
}

/// The volume with its server and clients.
struct Play<'s> {
    terms: Terms,
    start: &'s dyn Fn() -> Server,
    server: Server,
    clients: Vec<Client>,
    volume: Vec<u8>,
}

fn connect(rng: &mut Rng, server: &Server) -> Vec<Client> {
    let count = 1 + rng.next() as usize % 4;
    let framing = |rng: &mut Rng| FRAMINGS[rng.next() as usize % 3];
    (0..count)
        .map(|_| Client::over_unix(server, framing(rng)))
        .collect()
}

impl Play<'_> {
    /// Sends a batch: how many were.
    fn send(&mut self, batch: Vec<(usize, Op)>) -> Vec<Sent> {
        let mut sent = Vec::new();
        for (connection, op) in batch {
            let client = &mut self.clients[connection];
            let cookie = client.send(op.command, op.flags, op.offset, op.length, &op.payload);
            sent.push(Sent {
                cookie: cookie.expect("sent"),
                op,
                connection,
            });
        }
        sent
    }

    /// Whether this is a change that has to be made.
    fn is_change(&self, sent: &Sent) -> bool {
        let framing = self.clients[sent.connection].framing();
        sent.op.is_change() && sent.op.error(framing, &self.terms) == 0
    }

    /// Receives and checks all replies, and makes the changes.
    fn receive(&mut self, sent: &[Sent]) {
        let changing: Vec<&Sent> = sent.iter().filter(|sent| self.is_change(sent)).collect();
        let changes: Vec<&Op> = changing.iter().map(|sent| &sent.op).collect();
        let mut refused = Vec::new();
        for connection in 0..self.clients.len() {
            let here = sent.iter().filter(|sent| sent.connection == connection);
            for _ in here.clone() {
                let client = &mut self.clients[connection];
                let reply = client.receive().expect("a reply");
                let mut asked = here.clone().filter(|sent| sent.cookie == reply.cookie);
                let asked = asked.next().expect("a request");
                let terms = (client.framing(), &self.terms);
                check_reply(&self.volume, &changes, &asked.op, terms, &reply);
                if reply.error != 0 {
                    refused.push((connection, reply.cookie));
                }
            }
        }
        for sent in changing {
            if !refused.contains(&(sent.connection, sent.cookie)) {
                for at in sent.op.changes(&self.terms) {
                    self.volume[at] = sent.op.byte(at);
                }
            }
        }
    }

    /// Ends the server, starts it again, and looks at every byte.
    fn reopen(&mut self, rng: &mut Rng) {
        let dice = rng.next();
        let in_flight = match dice & 1 {
            0 => {
                self.clients.clear();
                self.terminate();
                Vec::new()
            }
            _ => {
                let batch = batch(rng, &self.clients, &self.terms);
                let sent = self.send(batch);
                if dice & 2 != 0 {
                    std::thread::sleep(Duration::from_micros(dice >> 8 & 1023));
                }
                self.server.signal(Signal::KILL);
                let ended = self.server.wait(Duration::from_secs(10));
                ended.expect("killed");
                sent
            }
        };
        let changed = in_flight.iter().filter(|sent| self.is_change(sent));
        let changes: Vec<&Op> = changed.map(|sent| &sent.op).collect();
        self.server = (self.start)();
        self.clients = connect(rng, &self.server);
        let now = self.read_all();
        for (at, byte) in now.iter().enumerate() {
            let kept = self.volume[at] == *byte || allowed(&self.volume, &changes, at, *byte);
            assert!(kept, "after the start byte {at} is {byte}");
        }
        self.volume = now;
    }

    fn read_all(&mut self) -> Vec<u8> {
        self.clients[0]
            .read(0, self.terms.size)
            .expect("the volume")
    }

    fn terminate(&mut self) {
        self.server.signal(Signal::TERM);
        let ended = self.server.wait(Duration::from_secs(35));
        let status = ended.expect("it stops when asked to");
        assert_eq!(status.code(), Some(0), "a clean stop");
    }
}

/// Plays with a volume of zeros that `start` serves as `disk` on a unix socket; gives what it holds
/// in the end, after the last server has stopped.
pub(crate) fn play(name: &str, terms: Terms, start: &dyn Fn() -> Server) -> Vec<u8> {
    let mut rng = Rng::for_test(name);
    let server = start();
    let clients = connect(&mut rng, &server);
    let mut play = Play {
        terms,
        start,
        server,
        clients,
        volume: vec![0; terms.size],
    };
    let (mut requests, mut reopened) = (0, 0);
    while requests < terms.requests {
        let batch = batch(&mut rng, &play.clients, &terms);
        requests += batch.len();
        let sent = play.send(batch);
        play.receive(&sent);
        let dice = rng.next();
        if dice.is_multiple_of(terms.reopened) {
            play.reopen(&mut rng);
            reopened += 1;
        } else if dice >> 32 & 15 == 0 {
            play.clients = connect(&mut rng, &play.server);
        }
    }
    println!("{name}: {requests} requests, opened {reopened} times again");
    assert!(play.read_all() == play.volume, "the volume at the end");
    play.clients.clear();
    play.terminate();
    play.volume
}
