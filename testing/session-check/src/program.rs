//! A program: what a client means to do, in a few bytes. Every byte string is a program, and a
//! small change of the bytes is a small change of the program.

/// How the handshake begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Nothing is sent but what the steps say.
    Bare,
    /// The client's flags: fixed newstyle, no zeroes.
    Flags,
    /// As before, but with the zeroes.
    FlagsWithZeroes,
    /// Up to the transmission phase, simple replies.
    Simple,
    /// The same, structured replies.
    Structured,
    /// The same, with `base:allocation`.
    StructuredWithContext,
    /// Extended headers and `base:allocation`.
    ExtendedWithContext,
    /// No flags and EXPORT_NAME.
    Old,
}

const OPENINGS: [Opening; 8] = [
    Opening::Bare,
    Opening::Flags,
    Opening::FlagsWithZeroes,
    Opening::Simple,
    Opening::Structured,
    Opening::StructuredWithContext,
    Opening::ExtendedWithContext,
    Opening::Old,
];

/// What one client does, and what goes wrong behind the server meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// How it begins.
    pub opening: Opening,
    /// Hang up without reading to the end.
    pub hangs_up: bool,
    /// The volume answers later instead of at once.
    pub slow: bool,
    /// Its reads fail.
    pub failing_reads: bool,
    /// So many syncs fail (0 to 3).
    pub failing_syncs: u8,
    /// Then this.
    pub steps: Vec<Step>,
}

/// One thing that a client does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Sends a request.
    Request(RequestStep),
    /// Sends an option.
    Option(OptionStep),
    /// Sends these bytes.
    Raw(Vec<u8>),
    /// What follows is sent by itself.
    Cut,
    /// The last request again, so many times more, with cookies of their own.
    Repeat(u8),
}

/// A request before it is spelt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestStep {
    /// `NBD_CMD_*`.
    pub command: u8,
    /// `NBD_CMD_FLAG_*`; bit 7 stands for a flag that nobody knows, bit 6 for the header of the
    /// other kind.
    pub flags: u8,
    /// How `offset` counts: 0 in 512 bytes, 1 in bytes, 2 back from the end, 3 back from 2^64.
    pub offset_kind: u8,
    /// Where.
    pub offset: u16,
    /// How `length` counts: 0 in 512 bytes, 1 in bytes, 2 in 64 KiB, 3 back from the most.
    pub length_kind: u8,
    /// How much.
    pub length: u16,
    /// What a payload is made of; for BLOCK_STATUS, how many contexts.
    pub payload: u8,
}

/// An option before it is spelt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionStep {
    /// Index into [`OPTIONS`].
    pub option: u8,
    /// Which name: see [`name`].
    pub name: u8,
    /// Infos or queries, one per bit.
    pub list: u8,
    /// Added to the length in the header, as `i8`.
    pub lie: u8,
    /// So many bytes more of data.
    pub extra: u8,
}

/// `NBD_OPT_*` that a program can send, the last one unknown to all.
pub const OPTIONS: [u32; 12] = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 4, 0x7eed];

/// A name of an export: two that are there, the default, and others.
pub fn name(number: u8) -> Vec<u8> {
    match number {
        0 => b"disk".to_vec(),
        1 => Vec::new(),
        2 => b"frozen".to_vec(),
        3 => b"../disk\0\x1b[31m".to_vec(),
        long => vec![0xf0; usize::from(long) * 17],
    }
}

/// Takes bytes from the front; behind the end there are zeros.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from(self.u8()) | u16::from(self.u8()) << 8
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len.min(self.0.len()));
        self.0 = tail;
        head
    }
}

const OPTION: u8 = 8;
const RAW: u8 = 9;
const CUT: u8 = 10;
const REPEAT: u8 = 11;
/// Every other number is a command that does not exist.
const COMMANDS: u8 = 8;

impl Program {
    /// Reads any bytes as a program.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut bytes = Bytes(bytes);
        let head = bytes.u8();
        let mut program = Self {
            opening: OPENINGS[usize::from(head & 7)],
            hangs_up: head & 8 != 0,
            slow: head & 16 != 0,
            failing_reads: head & 32 != 0,
            failing_syncs: head >> 6,
            steps: Vec::new(),
        };
        while !bytes.0.is_empty() {
            program.steps.push(Step::decode(&mut bytes));
        }
        program
    }

    /// The bytes that [`decode`](Self::decode) reads as this program.
    pub fn encode(&self) -> Vec<u8> {
        let opening = OPENINGS.iter().position(|known| *known == self.opening);
        let mut head = opening.unwrap_or(0) as u8;
        for (set, bit) in [
            (self.hangs_up, 8),
            (self.slow, 16),
            (self.failing_reads, 32),
        ] {
            head |= if set { bit } else { 0 };
        }
        let mut bytes = vec![head | self.failing_syncs << 6];
        self.steps.iter().for_each(|step| step.encode(&mut bytes));
        bytes
    }
}

impl Step {
    fn decode(bytes: &mut Bytes<'_>) -> Self {
        let head = bytes.u8();
        let (kind, high) = (head & 15, head >> 4);
        match kind {
            OPTION => Step::Option(OptionStep {
                option: high % OPTIONS.len() as u8,
                name: bytes.u8(),
                list: bytes.u8(),
                lie: bytes.u8(),
                extra: bytes.u8(),
            }),
            RAW => {
                let len = bytes.u8();
                Step::Raw(bytes.take(usize::from(len)).to_vec())
            }
            CUT => Step::Cut,
            REPEAT => Step::Repeat(bytes.u8()),
            command => Step::Request(RequestStep {
                command,
                flags: bytes.u8(),
                offset_kind: high & 3,
                offset: bytes.u16(),
                length_kind: high >> 2,
                length: bytes.u16(),
                payload: bytes.u8(),
            }),
        }
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Step::Request(step) => {
                debug_assert!(step.command < COMMANDS || step.command > REPEAT);
                bytes.push(step.command | step.offset_kind << 4 | step.length_kind << 6);
                bytes.push(step.flags);
                bytes.extend(step.offset.to_le_bytes());
                bytes.extend(step.length.to_le_bytes());
                bytes.push(step.payload);
            }
            Step::Option(step) => {
                bytes.push(OPTION | step.option << 4);
                bytes.extend([step.name, step.list, step.lie, step.extra]);
            }
            Step::Raw(raw) => {
                let len = raw.len().min(255);
                bytes.extend([RAW, len as u8]);
                bytes.extend(&raw[..len]);
            }
            Step::Cut => bytes.push(CUT),
            Step::Repeat(times) => bytes.extend([REPEAT, *times]),
        }
    }
}
