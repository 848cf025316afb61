//! An S3 server in memory, for tests: it keeps the rules, or breaks them as a [`Fault`] script says.
//!
//! ```text
//!   accept ──▶ read a request ──▶ fault? ──▶ check the body ──▶ store ──▶ answer
//!              bounded            scripted   whole, on every    objects
//!                                            attempt
//! ```
//!
//! It checks what a client must never do: send a body that is not the one it announced, leave out
//! the length, sign something else, or ask for `100 Continue`. What it found is in [`Server::broken`], and each request
//! that it read in [`Server::seen`].

mod fault;
mod gate;
mod http;
mod packed;
mod signature;
mod store;
mod tls;

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use fault::{Fault, Rule};
pub use gate::Last;
pub use http::Request;
pub use store::Quirks;

use gate::Gate;
use store::Store;

/// The one bucket there is at the start.
pub const BUCKET: &str = "bucket";

/// A request as it was read: method, path with query, and its body's length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, `PUT`, ...
    pub method: String,
    /// The path and query, as sent.
    pub target: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// How many bytes of the body came, in bytes.
    pub body_bytes: usize,
}

impl Seen {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct Shared {
    store: Mutex<Store>,
    script: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    broken: Mutex<Vec<String>>,
    sockets: Mutex<Vec<TcpStream>>,
    gate: Gate,
    away: AtomicBool,
    stopped: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server on loopback that ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    ca: Option<String>,
}

impl Server {
    /// Starts one that is spoken to in clear.
    ///
    /// # Panics
    /// If it can't listen.
    pub fn start() -> Self {
        Self::listen(None, None)
    }

    /// Starts one under TLS, with a certificate for `name` by a CA of its own.
    ///
    /// # Panics
    /// If it can't listen.
    pub fn start_tls(name: &str) -> Self {
        let (config, ca) = tls::certificate(name);
        Self::listen(Some(config), Some(ca))
    }

    fn listen(tls: Option<Arc<rustls::ServerConfig>>, ca: Option<String>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port on loopback");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        lock(&shared.store).make_bucket(BUCKET);
        let for_thread = shared.clone();
        std::thread::spawn(move || accept(&listener, &for_thread, tls));
        Self {
            address,
            shared,
            ca,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of its CA, in PEM form.
    pub fn ca(&self) -> Option<&str> {
        self.ca.as_deref()
    }

    /// What stands behind `s3:` to reach a prefix of the bucket.
    pub fn target(&self, prefix: &str) -> String {
        format!("http://key:secret@{}/{BUCKET}/{prefix}", self.address)
    }

    /// The same with a name for a host, before which the bucket's can stand (`style=virtual`).
    pub fn named_target(&self, prefix: &str) -> String {
        let port = self.address.port();
        format!("http://key:secret@localhost:{port}/{BUCKET}/{prefix}")
    }

    /// Adds to the script: each rule is used once, by the first request that fits.
    pub fn script(&self, rules: impl IntoIterator<Item = Rule>) {
        lock(&self.shared.script).extend(rules);
    }

    /// What is left of the script is not played.
    pub fn forget_script(&self) {
        lock(&self.shared.script).clear();
    }

    /// Whether the whole script was played.
    pub fn is_played(&self) -> bool {
        lock(&self.shared.script).is_empty()
    }

    /// Makes it a server with habits of its own, until the next call.
    pub fn set_quirks(&self, quirks: Quirks) {
        lock(&self.shared.store).quirks = quirks;
    }

    /// The requests that were read so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// How many requests of that method were read so far.
    pub fn count(&self, method: &str) -> usize {
        let seen = lock(&self.shared.seen);
        seen.iter().filter(|seen| seen.method == method).count()
    }

    /// What clients did that they must not.
    pub fn broken(&self) -> Vec<String> {
        lock(&self.shared.broken).clone()
    }

    /// An object's bytes; the key without the bucket.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        let store = lock(&self.shared.store);
        store.get(BUCKET, key).map(|object| object.bytes.bytes())
    }

    /// Removes an object.
    pub fn remove(&self, key: &str) {
        lock(&self.shared.store).remove(BUCKET, key);
    }

    /// Changes an object's bytes behind everybody's back: its ETag and its checksum stay.
    ///
    /// # Panics
    /// If there is no such object.
    pub fn spoil(&self, key: &str, spoil: impl FnOnce(&mut Vec<u8>)) {
        lock(&self.shared.store).spoil(BUCKET, key, spoil);
    }

    /// Every connection ends before anything is read from it, until the next call.
    pub fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
    }

    /// Lets so many more changes pass (whatever is neither GET nor HEAD); the next one is the last
    /// that is done, or not, and no other is done or answered before [`go_on`](Self::go_on).
    pub fn stop_after(&self, count: usize, last: Last) {
        self.shared.gate.shut_after(count, last);
    }

    /// Whether it has stopped, or does so in time.
    pub fn has_stopped_within(&self, limit: Duration) -> bool {
        self.shared.gate.is_shut_within(limit)
    }

    /// All is done and answered again; who was held up is hung up on.
    pub fn go_on(&self) {
        self.shared.gate.open();
    }

    /// Does what is [`Last::Late`], before it comes back.
    pub fn deliver(&self) {
        self.shared.gate.deliver();
    }

    /// Puts an object there.
    pub fn insert(&self, key: &str, bytes: &[u8]) {
        lock(&self.shared.store).put(BUCKET, key, bytes.to_vec());
    }

    /// The keys in the bucket.
    pub fn keys(&self) -> Vec<String> {
        lock(&self.shared.store).keys(BUCKET)
    }

    /// Removes the bucket and all that is in it.
    pub fn remove_bucket(&self) {
        lock(&self.shared.store).remove_bucket(BUCKET);
    }

    /// Loses the last `count` puts and deletes that were acknowledged, as a store does that
    /// promised too much.
    pub fn power_cut(&self, count: usize) {
        lock(&self.shared.store).undo(count);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.gate.open();
        self.shared.gate.deliver();
        // Wakes the thread that accepts; that it can't be woken harms nobody.
        let _ = TcpStream::connect(self.address);
        for socket in lock(&self.shared.sockets).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, tls: Option<Arc<rustls::ServerConfig>>) {
    while let Ok((socket, _)) = listener.accept() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        if let Ok(copy) = socket.try_clone() {
            lock(&shared.sockets).push(copy);
        }
        let (shared, tls) = (shared.clone(), tls.clone());
        std::thread::spawn(move || {
            let _ = socket.set_nodelay(true);
            // A connection that breaks is what half of the tests are about.
            let peer = socket.peer_addr().ok();
            let mut wire = tls::wire(socket, tls);
            let _ = wire.as_mut().map(|wire| serve(wire, &shared));
            // The last copy goes with the wire: what the client sent and nobody read makes the
            // end a reset.
            lock(&shared.sockets).retain(|copy| copy.peer_addr().ok() != peer);
        });
    }
}

/// Answers requests until the connection ends.
fn serve(wire: &mut tls::Wire, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(mut request) = http::read_head(wire, &mut buffer)? {
        if shared.away.load(Ordering::SeqCst) {
            return Ok(());
        }
        let fault = take_fault(shared, &request);
        let announced = request.content_length();
        let short = fault.as_ref().and_then(|fault| fault.body_limit(announced));
        http::read_body(wire, &mut buffer, &mut request, short.unwrap_or(announced))?;
        lock(&shared.seen).push(Seen {
            method: request.method.clone(),
            target: request.target.clone(),
            headers: request.headers.clone(),
            body_bytes: request.body.len(),
        });
        if short.is_none() {
            let found = http::check(&request);
            lock(&shared.broken).extend(found);
        }
        let act = || lock(&shared.store).act(&request);
        if let Some(last) = shared.gate.arrive(&request) {
            hold(shared, last, act);
            return Ok(());
        }
        let again = match fault {
            Some(fault) => fault.play(wire, &request, act)?,
            None => http::write_answer(wire, &request, &act()).map(|()| true)?,
        };
        if !again {
            return Ok(());
        }
    }
    Ok(())
}

/// Keeps a change from its answer until the gate opens.
fn hold(shared: &Shared, last: Last, act: impl Fn() -> store::Answer) {
    match last {
        Last::Lost => shared.gate.wait(),
        Last::Done => {
            act();
            shared.gate.wait();
        }
        Last::Late => shared.gate.be_late(|| drop(act())),
    }
}

fn take_fault(shared: &Shared, request: &Request) -> Option<Fault> {
    let mut script = lock(&shared.script);
    let at = script.iter().position(|rule| rule.fits(request))?;
    Some(script.remove(at).fault)
}
