//! From a program to what the client sends.

use crate::play::DISK_BYTES;
use crate::program::{name, Opening, OptionStep, Program, RequestStep, Step, OPTIONS};

/// One client sends so much at the most, in bytes; there the program ends.
const MAX_BYTES: usize = 1 << 20;
/// Requests of one client.
const MAX_REQUESTS: u64 = 512;

const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const EXPORT_NAME: u32 = 1;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;
const BLOCK_STATUS: u16 = 7;
const WRITE: u16 = 1;
const PAYLOAD_LEN: u16 = 1 << 5;

/// What a client sends, in the parts in which it does.
pub fn script(program: &Program) -> Vec<Vec<u8>> {
    let mut writer = Writer {
        parts: vec![Vec::new()],
        total: 0,
        extended: false,
        requests: 0,
        last: None,
    };
    writer.opening(program.opening);
    for step in &program.steps {
        writer.step(step);
        if writer.total >= MAX_BYTES {
            break;
        }
    }
    writer.parts
}

struct Writer {
    parts: Vec<Vec<u8>>,
    total: usize,
    /// Extended headers were asked for.
    extended: bool,
    requests: u64,
    last: Option<RequestStep>,
}

impl Writer {
    fn send(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(MAX_BYTES - self.total)];
        self.total += bytes.len();
        if let Some(part) = self.parts.last_mut() {
            part.extend(bytes);
        }
    }

    fn opening(&mut self, opening: Opening) {
        let flags: u32 = match opening {
            Opening::Bare => return,
            Opening::Old => 0,
            Opening::FlagsWithZeroes => 1,
            _ => 3,
        };
        self.send(&flags.to_be_bytes());
        let context = matches!(
            opening,
            Opening::StructuredWithContext | Opening::ExtendedWithContext
        );
        match opening {
            Opening::Structured | Opening::StructuredWithContext => {
                self.option(STRUCTURED_REPLY, &[], 0);
            }
            Opening::ExtendedWithContext => self.option(EXTENDED_HEADERS, &[], 0),
            _ => {}
        }
        if context {
            self.option(SET_META_CONTEXT, &meta_data(b"disk", 1), 0);
        }
        match opening {
            Opening::Bare | Opening::Flags | Opening::FlagsWithZeroes => {}
            Opening::Old => self.option(EXPORT_NAME, b"disk", 0),
            _ => self.option(GO, &info_data(b"disk", 0), 0),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Request(request) => self.request(*request),
            Step::Option(option) => self.option_step(*option),
            Step::Raw(bytes) => self.send(bytes),
            Step::Cut => self.parts.push(Vec::new()),
            Step::Repeat(times) => {
                if let Some(last) = self.last {
                    (0..*times).for_each(|_| self.request(last));
                }
            }
        }
    }

    fn option(&mut self, option: u32, data: &[u8], lie: i8) {
        let length = (data.len() as u32).wrapping_add_signed(i32::from(lie));
        self.extended |= option == EXTENDED_HEADERS && length == 0;
        self.send(&IHAVEOPT.to_be_bytes());
        self.send(&option.to_be_bytes());
        self.send(&length.to_be_bytes());
        self.send(data);
    }

    fn option_step(&mut self, step: OptionStep) {
        let option = OPTIONS[usize::from(step.option) % OPTIONS.len()];
        let name = name(step.name);
        let mut data = match option {
            EXPORT_NAME => name,
            INFO | GO => info_data(&name, step.list),
            LIST_META_CONTEXT | SET_META_CONTEXT => meta_data(&name, step.list),
            _ => Vec::new(),
        };
        data.extend(vec![step.list; usize::from(step.extra)]);
        self.option(option, &data, step.lie as i8);
    }

    fn request(&mut self, step: RequestStep) {
        if self.requests == MAX_REQUESTS {
            return;
        }
        self.requests += 1;
        self.last = Some(step);
        let extended = self.extended != (step.flags & 0x40 != 0);
        let command = u16::from(step.command);
        let mut flags = u16::from(step.flags & 0x3f) | u16::from(step.flags & 0x80) << 8;
        // As the extension demands of a write.
        if extended && command == WRITE {
            flags ^= PAYLOAD_LEN;
        }
        let length = length_of(step, extended);
        let payload = payload_of(step, flags, extended, length);
        let length = match &payload {
            Some(payload) if command == BLOCK_STATUS => payload.len() as u64,
            _ => length,
        };
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        // Far apart, and never twice.
        let cookie = self.requests.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.send(&magic.to_be_bytes());
        self.send(&flags.to_be_bytes());
        self.send(&command.to_be_bytes());
        self.send(&cookie.to_be_bytes());
        self.send(&offset_of(step).to_be_bytes());
        match extended {
            true => self.send(&length.to_be_bytes()),
            false => self.send(&(length as u32).to_be_bytes()),
        }
        self.send(&payload.unwrap_or_default());
    }
}

fn offset_of(step: RequestStep) -> u64 {
    let offset = u64::from(step.offset);
    match step.offset_kind {
        0 => offset * 512,
        1 => offset,
        2 => DISK_BYTES.wrapping_sub(offset),
        _ => u64::MAX - offset,
    }
}

fn length_of(step: RequestStep, extended: bool) -> u64 {
    let length = u64::from(step.length);
    match step.length_kind {
        0 => length * 512,
        1 => length,
        2 => length << 16,
        _ if extended => u64::MAX - length,
        _ => u64::from(u32::MAX) - length,
    }
}

/// Payloads are as long as announced, but for those that nobody sends whole.
fn payload_of(step: RequestStep, flags: u16, extended: bool, length: u64) -> Option<Vec<u8>> {
    let announced = extended && flags & PAYLOAD_LEN != 0;
    let most = usize::try_from(length).unwrap_or(usize::MAX).min(MAX_BYTES);
    match u16::from(step.command) {
        WRITE => Some(pattern(step.payload, most)),
        BLOCK_STATUS if announced => {
            let mut payload = length.to_be_bytes().to_vec();
            for context in 0..u32::from(step.payload & 7) {
                payload.extend((context + 1).to_be_bytes());
            }
            Some(payload)
        }
        _ if announced => Some(vec![step.payload; most]),
        _ => None,
    }
}

/// Bytes that tell where they were written, 64 of a kind; zeros from 0.
pub(crate) fn pattern(from: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if from > 0 {
        for (at, unit) in bytes.chunks_mut(64).enumerate() {
            unit.fill(from.wrapping_add(at as u8) | 1);
        }
    }
    bytes
}

fn info_data(name: &[u8], list: u8) -> Vec<u8> {
    let infos: Vec<u16> = (0..8).filter(|bit| list & 1 << bit != 0).collect();
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    data.extend((infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

fn meta_data(name: &[u8], list: u8) -> Vec<u8> {
    const QUERIES: [&[u8]; 8] = [
        b"base:allocation",
        b"base:",
        b"base:allocation:deep",
        b"qemu:dirty-bitmap:x",
        b"",
        b"\xff\0",
        b"base",
        b":",
    ];
    let chosen = (0..8).filter(|bit| list & 1 << bit != 0);
    let queries: Vec<&[u8]> = chosen.map(|bit: usize| QUERIES[bit]).collect();
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query);
    }
    data
}
