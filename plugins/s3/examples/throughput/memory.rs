//! A server that takes everything, keeps nothing, and answers from memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::OBJECT_BYTES;

/// Starts it; its address.
pub(crate) fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                // A client that goes away ends its connection.
                let _ = serve(socket);
            });
        }
    });
    address
}

fn serve(socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut writer = socket.try_clone()?;
    let mut reader = BufReader::with_capacity(64 << 10, socket);
    let mut memory = vec![7; OBJECT_BYTES];
    loop {
        let (request, length) = head(&mut reader)?;
        for at in (0..length).step_by(OBJECT_BYTES) {
            let some = OBJECT_BYTES.min(length - at);
            reader.read_exact(&mut memory[..some])?;
        }
        match request.split(' ').next() {
            Some("GET") if request.contains("list-type") => {
                let xml = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
                let length = xml.len();
                write!(
                    writer,
                    "HTTP/1.1 200 x\r\ncontent-length: {length}\r\n\r\n{xml}"
                )?;
            }
            Some("GET") => {
                let (size, last) = (OBJECT_BYTES, OBJECT_BYTES - 1);
                let range = format!("content-range: bytes 0-{last}/{size}\r\n");
                let length = format!("content-length: {size}\r\n");
                write!(
                    writer,
                    "HTTP/1.1 206 x\r\netag: \"e\"\r\n{range}{length}\r\n"
                )?;
                writer.write_all(&memory)?;
            }
            Some("DELETE") => write!(writer, "HTTP/1.1 204 x\r\n\r\n")?,
            _ => write!(
                writer,
                "HTTP/1.1 200 x\r\netag: \"e\"\r\ncontent-length: 0\r\n\r\n"
            )?,
        }
    }
}

/// The request line, and the length of the body.
fn head(reader: &mut impl BufRead) -> std::io::Result<(String, usize)> {
    let (mut request, mut length) = (String::new(), 0);
    if reader.read_line(&mut request)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.split_once(':') {
            None => return Ok((request, length)),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap_or(0);
            }
            Some(_) => {}
        }
    }
}
