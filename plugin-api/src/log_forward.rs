//! A shared library has `tracing` and `log` statics of its own, so its events would be lost.
//! This forwards them to the host, once per library.

use std::fmt::Write as _;
use std::sync::Once;

use crate::abi::HostRef;

struct Forward(HostRef);

/// Sets the forwarders, the first time only.
pub(crate) fn install(host: HostRef) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // In the host's own process image (tests that link a plugin in) somebody may have set
        // theirs before; then events go there already.
        let _ = tracing::subscriber::set_global_default(Forward(host));
        if log::set_boxed_logger(Box::new(Forward(host))).is_ok() {
            log::set_max_level(log::LevelFilter::Trace);
        }
    });
}

fn level_number(level: &tracing::Level) -> u32 {
    match *level {
        tracing::Level::ERROR => 1,
        tracing::Level::WARN => 2,
        tracing::Level::INFO => 3,
        tracing::Level::DEBUG => 4,
        tracing::Level::TRACE => 5,
    }
}

/// The message first, then the other fields.
#[derive(Default)]
struct Text(String);

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

impl tracing::Subscriber for Forward {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        (self.0.log_enabled())(level_number(metadata.level()))
    }

    // Spans do not cross: put what matters into the message.
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let metadata = event.metadata();
        (self.0.log())(
            level_number(metadata.level()),
            metadata.target().into(),
            text.0.as_str().into(),
        );
    }
}

impl log::Log for Forward {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        (self.0.log_enabled())(metadata.level() as u32)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = record.args().to_string();
            (self.0.log())(
                record.level() as u32,
                record.target().into(),
                text.as_str().into(),
            );
        }
    }

    fn flush(&self) {}
}
