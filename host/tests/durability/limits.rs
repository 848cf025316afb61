//! F8, F15: limits of the process.

use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::tempdir;

use crate::client::{Client, ENOSPC};
use crate::server::{init_raw, Serve, Server};
use crate::tools::present;

const MIB: usize = 1 << 20;

#[test]
fn f15_a_file_size_limit_is_enospc_and_no_signal() {
    if !present(&["prlimit"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    init_raw(&image, "8Mi");
    let mut serve = Serve::raw("disk", &image).unix(&dir.path().join("sock"));
    serve.before = vec!["prlimit".into(), format!("--fsize={}", 4 * MIB).into()];
    let mut server = serve.start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    // Beyond the limit, and across it, where the system takes only the first part.
    for (offset, length) in [(6 * MIB, 4096), (4 * MIB - 8192, 65536), (5 * MIB, MIB)] {
        let error = client.write(0, offset as u64, &vec![2; length]);
        // A server that writes by other ways than write calls does not meet the limit.
        assert!(
            error == 0 || error == ENOSPC,
            "WRITE beyond the limit: error {error}"
        );
        let got = client.read(offset as u64, length).unwrap();
        if error == 0 {
            assert!(
                got == vec![2; length],
                "a WRITE that was answered is not there"
            );
        } else {
            assert!(got
                .chunks(4096)
                .all(|unit| unit == [0; 4096] || unit == [2; 4096]));
        }
    }
    server.assert_alive();
    assert_eq!(
        client.write(0, 4096, &[3; 4096]),
        0,
        "below the limit all is as before"
    );
    assert_eq!(client.flush(), 0);
    drop(client);
    server.stop();
}

/// Seconds of CPU that a process has used.
fn cpu_seconds(server: &Server) -> f64 {
    let pid = server.pid().as_raw_nonzero();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let after_name = stat.rsplit_once(')').expect("a name in brackets").1;
    let field = |n: usize| {
        let word = after_name.split_whitespace().nth(n).expect("a field");
        word.parse::<f64>().expect("a number")
    };
    // utime and stime, in ticks of 10 ms.
    (field(11) + field(12)) / 100.0
}

#[test]
fn f08_without_free_descriptors_accepting_pauses_and_clients_are_served() {
    if !present(&["prlimit"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    init_raw(&image, "8Mi");
    let mut serve = Serve::raw("disk", &image).tcp();
    serve.before = vec!["prlimit".into(), "--nofile=64:64".into()];
    let mut server = serve.start();
    let mut clients: Vec<_> = (0..5)
        .map(|_| Client::tcp(&server).expect("there is room for five"))
        .collect();
    let crowd: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(server.tcp()).expect("the kernel takes the connection"))
        .collect();
    thread::sleep(Duration::from_millis(500));
    let before = cpu_seconds(&server);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        for (n, client) in clients.iter_mut().enumerate() {
            let asked = Instant::now();
            assert_eq!(client.write(0, n as u64 * 4096, &[n as u8; 4096]), 0);
            assert_eq!(client.read(n as u64 * 4096, 4096).unwrap(), [n as u8; 4096]);
            assert!(
                asked.elapsed() < Duration::from_secs(1),
                "an old client starves"
            );
        }
        assert_eq!(clients[0].flush(), 0);
        thread::sleep(Duration::from_millis(50));
    }
    let used = cpu_seconds(&server) - before;
    assert!(used < 1.0, "{used} s of CPU in 2 s: it spins on accept");
    server.assert_alive();
    drop(crowd);
    let begin = Instant::now();
    let mut new = loop {
        match Client::tcp(&server) {
            Ok(client) => break client,
            Err(error) => assert!(
                begin.elapsed() < Duration::from_secs(15),
                "no new client after the crowd has left: {error}"
            ),
        }
        thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(new.read(4096, 4096).unwrap(), [1; 4096]);
    drop((new, clients));
    server.stop();
}
