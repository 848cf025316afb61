//! What the checks share: comparing, noise, many futures at once.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use super::Subject;
use crate::{
    Body, Bytes, Condition, Data, Error, GetFlags, Kind, Piece, Put, Range, Result, Started,
};

/// The result of a check: what was seen instead.
pub(super) type Checked = std::result::Result<(), String>;

/// Fails the check with a text unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
pub(super) use ensure;

/// Says what was done when a call failed.
pub(super) trait Doing<T> {
    fn doing(self, what: impl std::fmt::Display) -> std::result::Result<T, String>;
}

impl<T> Doing<T> for Result<T> {
    fn doing(self, what: impl std::fmt::Display) -> std::result::Result<T, String> {
        self.map_err(|error| format!("{what}: {} ({})", error.message, error.kind))
    }
}

/// Fails unless a call failed with that kind.
pub(super) fn fails<T>(result: Result<T>, kind: Kind, what: impl std::fmt::Display) -> Checked {
    match result {
        Err(error) if error.kind == kind => Ok(()),
        Err(Error { kind: other, .. }) => Err(format!("{what}: {other} instead of {kind}")),
        Ok(_) => Err(format!("{what}: it succeeded instead of {kind}")),
    }
}

/// The bytes that an answer stands for.
pub(super) fn bytes_of(data: &Data) -> std::result::Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for piece in data.pieces() {
        match piece {
            Piece::Bytes(part) => bytes.extend_from_slice(part),
            Piece::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
            Piece::Mapped(_) => return Err("a mapping that was not asked for".to_owned()),
        }
    }
    Ok(bytes)
}

/// Fails unless two stretches are the same; says where they differ.
pub(super) fn same(seen: &[u8], expected: &[u8], what: impl std::fmt::Display) -> Checked {
    ensure!(
        seen.len() == expected.len(),
        "{what}: {} bytes instead of {}",
        seen.len(),
        expected.len()
    );
    let differs = seen.iter().zip(expected).position(|(a, b)| a != b);
    match differs {
        None => Ok(()),
        Some(at) => Err(format!(
            "{what}: byte {at} is {:#04x} instead of {:#04x}",
            seen[at], expected[at]
        )),
    }
}

pub(super) fn body(bytes: &[u8]) -> Body {
    Bytes::from(bytes.to_vec()).into()
}

impl Subject<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The name of the object to open in place.
    pub(super) fn object_key(&self) -> String {
        match self.options.single {
            true => String::new(),
            false => self.key("object"),
        }
    }

    pub(super) async fn put(&self, key: &str, bytes: &[u8]) -> std::result::Result<Put, String> {
        let put = self.next.put(key, body(bytes), Condition::Always).await;
        put.doing(format_args!("put {key:?}"))
    }

    pub(super) async fn get(&self, key: &str) -> std::result::Result<Vec<u8>, String> {
        let got = self.next.get(key, Range::ALL, GetFlags::NONE).await;
        bytes_of(&got.doing(format_args!("get {key:?}"))?.data)
    }

    pub(super) async fn holds(&self, key: &str, expected: &[u8]) -> Checked {
        same(&self.get(key).await?, expected, format_args!("get {key:?}"))
    }

    pub(super) fn noise(&self, salt: u64) -> Noise {
        Noise(self.options.seed ^ salt.wrapping_mul(0x5851_f42d_4c95_7f2d))
    }
}

/// More awaits than this in one call are not looked at.
const MOST_AWAITS: usize = 40;

/// Makes a call again and again, and drops it one await later each time, until it is answered.
pub(super) async fn dropped_at_every_await<'a, T>(call: impl Fn() -> Started<'a, T>) -> Checked {
    for polls in 0..MOST_AWAITS {
        match call() {
            Started::Ready(answer) => {
                return answer.into_result().map(drop).doing("answered at once");
            }
            Started::Pending(mut future) => {
                if let Some(answer) = polled(&mut future, polls).await {
                    let answer = answer.into_result().map(drop);
                    return answer.doing(format_args!("dropped {polls} times, then"));
                }
            }
        }
    }
    Ok(())
}

/// Polls a future so many times, each time when it asks for it: its answer, if it came.
async fn polled<F: Future + Unpin>(future: &mut F, polls: usize) -> Option<F::Output> {
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match Pin::new(&mut *future).poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Removes what a check has left.
pub(super) async fn clean(subject: &Subject<'_>) {
    while let Ok(page) = subject.next.list(&subject.prefix, None).await {
        let keys: Vec<String> = page.items.iter().map(|item| item.key.to_string()).collect();
        if keys.is_empty() || subject.next.delete(keys).await.is_err() {
            return;
        }
        if page.next.is_none() {
            return;
        }
    }
}

/// splitmix64: random numbers that can be had again.
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        let mut bytes: Vec<u8> = words.collect();
        bytes.truncate(len);
        bytes
    }
}

/// All answers of futures that run at once, in order.
pub(super) async fn together<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut answers: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, answer) in running.iter_mut().zip(&mut answers) {
            if answer.is_none() {
                if let Poll::Ready(ready) = future.as_mut().poll(cx) {
                    *answer = Some(ready);
                }
            }
        }
        match answers.iter().all(Option::is_some) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    answers.into_iter().flatten().collect()
}
