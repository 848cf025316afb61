//! What can go wrong, and when.

use std::io::{self, Write};
use std::time::Duration;

use crate::http::{head, write_answer, Request};
use crate::store::Answer;
use crate::tls::Wire;

/// One thing that goes wrong with one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This answer, and nothing is done.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    /// An error of S3's own form, and nothing is done.
    Error(u16, &'static str),
    /// It is done, and this is answered.
    DoneAnswer(u16, Vec<(String, String)>, Vec<u8>),
    /// It is done, and the answer has these headers instead of its own of the same names.
    Headers(Vec<(String, String)>),
    /// The connection ends before the body is read.
    CutBeforeBody,
    /// The connection ends with half of the body read.
    CutInBody,
    /// The connection ends when the body was read; nothing is done.
    CutAfterBody,
    /// It is done, and the connection ends without an answer.
    LostAnswer,
    /// Nothing for so long, then the connection ends.
    Hang(Duration),
    /// Nothing for so long, then it is done, and nobody hears of it.
    HangThenDone(Duration),
    /// The answer comes later.
    Slow(Duration),
    /// The answer's head, then one byte each so often.
    Drip(Duration),
    /// Half of the answer's body, under the whole one's length.
    CutAnswer,
    /// The connection ends within the answer's head.
    CutHead,
    /// The answer's body in chunks, with more behind it.
    Overlong,
    /// The answer twice.
    TwoAnswers,
    /// `100 Continue` first, then the answer.
    Continue,
    /// These bytes as they are, then the end.
    Raw(Vec<u8>),
}

/// A fault and the requests it is for.
#[derive(Debug, Clone)]
pub struct Rule {
    method: &'static str,
    part: String,
    pub(crate) fault: Fault,
}

impl Rule {
    /// For the next request of that method.
    pub fn next(method: &'static str, fault: Fault) -> Self {
        Self::on(method, "", fault)
    }

    /// For the next request of that method with `part` in its path or query.
    pub fn on(method: &'static str, part: &str, fault: Fault) -> Self {
        Self {
            method,
            part: part.to_owned(),
            fault,
        }
    }

    pub(crate) fn fits(&self, request: &Request) -> bool {
        self.method == request.method && request.target.contains(&self.part)
    }
}

impl Fault {
    /// An answer with a text and headers of its own.
    pub fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        Self::Answer(status, owned(headers), body.as_ref().to_vec())
    }

    /// As [`answer`](Self::answer), but what was asked for is done.
    pub fn done_answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        Self::DoneAnswer(status, owned(headers), body.as_ref().to_vec())
    }

    /// As [`Fault::Headers`].
    pub fn headers(headers: &[(&str, &str)]) -> Self {
        Self::Headers(owned(headers))
    }

    /// How much of the body is read before the fault, if not all.
    pub(crate) fn body_limit(&self, announced: usize) -> Option<usize> {
        match self {
            Self::CutBeforeBody => Some(0),
            Self::CutInBody => Some(announced / 2),
            _ => None,
        }
    }

    /// Plays it; whether the connection goes on.
    pub(crate) fn play(
        self,
        wire: &mut Wire,
        request: &Request,
        mut act: impl FnMut() -> Answer,
    ) -> io::Result<bool> {
        match self {
            Self::Answer(status, headers, body) => {
                let answer = Answer {
                    status,
                    headers,
                    body,
                };
                write_answer(wire, request, &answer)?;
            }
            Self::Error(status, code) => {
                write_answer(wire, request, &Answer::error(status, code))?;
            }
            Self::DoneAnswer(status, headers, body) => {
                act();
                let answer = Answer {
                    status,
                    headers,
                    body,
                };
                write_answer(wire, request, &answer)?;
            }
            Self::Headers(headers) => {
                let mut answer = act();
                let is_new = |name: &str| headers.iter().any(|(given, _)| given == name);
                answer.headers.retain(|(name, _)| !is_new(name));
                answer.headers.extend(headers);
                write_answer(wire, request, &answer)?;
            }
            Self::CutBeforeBody | Self::CutInBody | Self::CutAfterBody => return Ok(false),
            Self::LostAnswer => {
                act();
                return Ok(false);
            }
            Self::Hang(time) => {
                std::thread::sleep(time);
                return Ok(false);
            }
            Self::HangThenDone(time) => {
                std::thread::sleep(time);
                act();
                return Ok(false);
            }
            Self::Slow(time) => {
                std::thread::sleep(time);
                write_answer(wire, request, &act())?;
            }
            Self::Drip(time) => return drip(wire, &act(), time),
            Self::CutAnswer => {
                let answer = act();
                wire.write_all(&head(&answer, answer.body.len()))?;
                wire.write_all(&answer.body[..answer.body.len() / 2])?;
                wire.flush()?;
                return Ok(false);
            }
            Self::CutHead => {
                wire.write_all(b"HTTP/1.1 200 OK\r\ncontent-len")?;
                wire.flush()?;
                return Ok(false);
            }
            Self::Overlong => overlong(wire, act())?,
            Self::TwoAnswers => {
                let answer = act();
                let mut bytes = head(&answer, answer.body.len());
                bytes.extend_from_slice(&answer.body);
                let twice = bytes.repeat(2);
                wire.write_all(&twice)?;
                wire.flush()?;
            }
            Self::Continue => {
                wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                write_answer(wire, request, &act())?;
            }
            Self::Raw(bytes) => {
                wire.write_all(&bytes)?;
                wire.flush()?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    headers.iter().map(own).collect()
}

fn drip(wire: &mut Wire, answer: &Answer, time: Duration) -> io::Result<bool> {
    wire.write_all(&head(answer, answer.body.len()))?;
    for byte in &answer.body {
        wire.write_all(&[*byte])?;
        wire.flush()?;
        std::thread::sleep(time);
    }
    Ok(true)
}

fn overlong(wire: &mut Wire, mut answer: Answer) -> io::Result<()> {
    answer
        .headers
        .push(("transfer-encoding".to_owned(), "chunked".to_owned()));
    let mut bytes = head(&answer, 0);
    for part in [answer.body.as_slice(), b"and more"] {
        bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    wire.write_all(&bytes)?;
    wire.flush()
}
