//! Time that one request takes in the host's own code: `cargo bench`. The `file` plugin takes part
//! if it was built before: `cargo build --release --package nbd-rs-file`.

use std::sync::Arc;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use nbd_rs::layout::Layout;

mod support;

use support::{in_memory, InFile, RequestPath, KINDS};

fn request_path(criterion: &mut Criterion) {
    measure(criterion, "memory", &in_memory());
    match InFile::open() {
        Some(file) => measure(criterion, "file", &file.layout),
        None => println!("file: left out, since its plugin was not built with --release"),
    }
}

fn measure(criterion: &mut Criterion, store: &str, layout: &Arc<dyn Layout>) {
    let mut group = criterion.benchmark_group(store);
    for kind in KINDS {
        let mut path = RequestPath::new(layout.clone(), kind);
        path.warm_up();
        group.throughput(Throughput::Bytes(kind.length));
        group.bench_function(kind.name, |bencher| bencher.iter(|| path.request()));
        if path.waited > 0 {
            println!(
                "{store} {}: {} requests had to wait",
                kind.name, path.waited
            );
        }
    }
    group.finish();
}

criterion_group!(benches, request_path);
criterion_main!(benches);
