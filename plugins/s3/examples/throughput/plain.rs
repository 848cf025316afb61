//! A client that does nothing but move the bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use s3::creds::Credentials;
use s3::{Bucket, Region};

use crate::{common, key, noise, Work, OBJECTS, OBJECT_BYTES};

/// Requests that were signed before.
pub(crate) struct Plain {
    address: String,
    puts: Vec<String>,
    gets: Vec<String>,
    body: Vec<u8>,
}

impl Plain {
    pub(crate) fn new(address: &str, access: &str, secret: &str, bucket: &str) -> Self {
        let region = Region::Custom {
            region: "us-east-1".into(),
            endpoint: format!("http://{address}"),
        };
        let keys = Credentials::new(Some(access), Some(secret), None, None, None);
        let bucket = Bucket::new(bucket, region, keys.expect("keys")).expect("a bucket");
        let bucket = bucket.with_path_style();
        let names = || (0..OBJECTS).map(|at| format!("/plain/{}", key(at)));
        let strip = |url: String| {
            let path = url.split_once(address).expect("a URL of that server").1;
            path.to_owned()
        };
        let puts = names()
            .map(|name| common::block_on(bucket.presign_put(name, 3600, None, None)))
            .map(|url| strip(url.expect("a URL")));
        let gets = names()
            .map(|name| common::block_on(bucket.presign_get(name, 3600, None)))
            .map(|url| strip(url.expect("a URL")));
        Self {
            address: address.to_owned(),
            puts: puts.collect(),
            gets: gets.collect(),
            body: noise(),
        }
    }

    pub(crate) fn run(&self, work: Work, at_once: usize) {
        std::thread::scope(|scope| {
            for first in 0..at_once {
                scope.spawn(move || self.share(work, first, at_once));
            }
        });
    }

    /// What one thread does, on one connection.
    fn share(&self, work: Work, first: usize, step: usize) {
        let socket = TcpStream::connect(&self.address).expect("a connection");
        socket.set_nodelay(true).expect("a socket");
        let mut writer = socket.try_clone().expect("a socket");
        let mut reader = BufReader::new(socket);
        let mut sink = vec![0; OBJECT_BYTES];
        for at in (first..OBJECTS).step_by(step) {
            let (method, path, more) = match work {
                Work::Put => (
                    "PUT",
                    &self.puts[at],
                    format!("content-length: {OBJECT_BYTES}"),
                ),
                Work::Get => (
                    "GET",
                    &self.gets[at],
                    format!("range: bytes=0-{}", OBJECT_BYTES - 1),
                ),
            };
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: {}\r\n{more}\r\n\r\n",
                self.address
            );
            writer.write_all(head.as_bytes()).expect("the head is sent");
            if let Work::Put = work {
                writer.write_all(&self.body).expect("the body is sent");
            }
            let length = head_of_answer(&mut reader);
            reader.read_exact(&mut sink[..length]).expect("the answer");
        }
    }
}

/// Reads the head of an answer that must be good; the length of its body.
fn head_of_answer(reader: &mut impl BufRead) -> usize {
    let (mut length, mut line) = (0, String::new());
    reader.read_line(&mut line).expect("a status");
    let good = line.starts_with("HTTP/1.1 200") || line.starts_with("HTTP/1.1 206");
    assert!(good, "{line}");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).expect("a header");
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().expect("a length");
            }
        }
    }
    length
}
