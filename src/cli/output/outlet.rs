//! A stream that callers write to without ever waiting for it: a bounded queue, and a thread that may block
//! in the system.
//!
//! Owns the queue and the thread, and must not know a format. Invariants: [`Outlet::say`] neither blocks nor
//! fails. The queue is bounded. A text is written whole or counted as lost. If a text was written in part,
//! its line is ended before the next text.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

use crate::task;

/// Maximum size of the queue in bytes, including its overhead.
pub(in crate::cli) const QUEUE_BYTES: usize = 1 << 20;
/// Overhead of a text in the queue, in bytes.
const TEXT_OVERHEAD_BYTES: usize = 64;
/// Time between two [`Notice::Moment`]s.
const MOMENT: Duration = Duration::from_secs(10);
/// How long to wait if a non-blocking stream is full.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(20);

/// A message for the owner of an outlet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Notice {
    /// A text was lost because the queue was full.
    Full,
    /// A text was lost because it could not be written.
    Failed,
    /// Texts are being written again after some were lost.
    Resumed {
        /// Number of texts that were lost.
        lost: u64,
    },
    /// Some time has passed.
    Moment,
}

/// A stream that callers never wait for.
pub(in crate::cli) struct Outlet(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    notice: Box<dyn Fn(Notice) + Send + Sync>,
}

#[derive(Default)]
struct Queue {
    texts: VecDeque<Vec<u8>>,
    held_bytes: usize,
    /// Whether a text was taken from the queue and is not written yet.
    is_writing: bool,
    /// Number of texts lost since the last [`Notice::Resumed`].
    lost: u64,
}

impl Outlet {
    /// Starts to write to a stream. `notice` is called by the thread that causes the notice, and must not
    /// wait.
    pub(in crate::cli) fn start(
        name: &str,
        stream: impl Write + Send + 'static,
        notice: impl Fn(Notice) + Send + Sync + 'static,
    ) -> Self {
        let queue = Mutex::new(Queue::default());
        let shared = Arc::new(Shared { queue, changed: Condvar::new(), notice: Box::new(notice) });
        let of_thread = Arc::clone(&shared);
        if task::run_detached(name, move || of_thread.write_all(stream)).is_err() {
            // Without a thread, nothing can be written: every text is lost, and counted.
            shared.queue.lock().held_bytes = QUEUE_BYTES;
        }
        Self(shared)
    }

    /// Queues a text to be written after the earlier ones, or counts it as lost.
    pub(in crate::cli) fn say(&self, text: Vec<u8>) {
        let mut queue = self.0.queue.lock();
        let held_bytes = queue.held_bytes + text.len() + TEXT_OVERHEAD_BYTES;
        if held_bytes <= QUEUE_BYTES {
            queue.held_bytes = held_bytes;
            queue.texts.push_back(text);
            self.0.changed.notify_all();
            return;
        }
        queue.lost += 1;
        drop(queue);
        (self.0.notice)(Notice::Full);
    }

    /// Waits until everything is written or lost, but no longer than `patience`. Returns whether that was
    /// achieved.
    pub(in crate::cli) fn flush(&self, patience: Duration) -> bool {
        let mut queue = self.0.queue.lock();
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.texts.is_empty();
        !self.0.changed.wait_while_for(&mut queue, is_busy, patience).timed_out()
    }
}

impl Shared {
    /// Runs in the thread: writes the texts in order.
    fn write_all(&self, mut stream: impl Write) {
        let mut is_cut = false;
        let mut moment = Instant::now() + MOMENT;
        loop {
            if Instant::now() >= moment {
                (self.notice)(Notice::Moment);
                moment = Instant::now() + MOMENT;
            }
            let Some(text) = self.next(moment) else { continue };
            let written = write_text(&mut stream, &text, &mut is_cut);
            drop(text);
            self.settle(written.is_ok());
        }
    }

    /// Returns the next text, or `None` at the time `until`.
    fn next(&self, until: Instant) -> Option<Vec<u8>> {
        let mut queue = self.queue.lock();
        let patience = until.saturating_duration_since(Instant::now());
        self.changed.wait_while_for(&mut queue, |queue| queue.texts.is_empty(), patience);
        let text = queue.texts.pop_front()?;
        queue.held_bytes -= text.len() + TEXT_OVERHEAD_BYTES;
        queue.is_writing = true;
        Some(text)
    }

    /// Notes whether a text was written.
    fn settle(&self, is_written: bool) {
        let mut queue = self.queue.lock();
        let notice = match is_written {
            false => {
                queue.lost += 1;
                Some(Notice::Failed)
            }
            // Do not report every gap of a slow reader.
            true if queue.lost > 0 && queue.held_bytes <= QUEUE_BYTES / 2 => {
                Some(Notice::Resumed { lost: std::mem::take(&mut queue.lost) })
            }
            true => None,
        };
        drop(queue);
        if let Some(notice) = notice {
            (self.notice)(notice);
        }
        self.queue.lock().is_writing = false;
        self.changed.notify_all();
    }
}

/// Writes a text. If the previous text was cut, ends its line first.
fn write_text(stream: &mut impl Write, text: &[u8], is_cut: &mut bool) -> io::Result<()> {
    if *is_cut {
        write_whole(stream, b"\n").map_err(|(_, error)| error)?;
        *is_cut = false;
    }
    write_whole(stream, text).map_err(|(written, error)| {
        *is_cut = written > 0;
        error
    })
}

/// Writes a whole text, however long that takes. On failure, also returns how much was written.
fn write_whole(stream: &mut impl Write, text: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < text.len() {
        match stream.write(&text[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that shares the stream has made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => pause(NO_ROOM_PAUSE),
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Pauses, because nothing signals when such a stream has room again.
fn pause(length: Duration) {
    let nobody = Mutex::new(());
    Condvar::new().wait_for(&mut nobody.lock(), length);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A stream that receives the result of each write from the test.
    struct Scripted {
        answers: mpsc::Receiver<io::Result<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // When the test sends no more results, the stream accepts everything.
            let taken = self.answers.recv().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
            self.written.lock().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Stage {
        outlet: Outlet,
        answers: mpsc::Sender<io::Result<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
        notices: Arc<Mutex<Vec<Notice>>>,
    }

    fn stage() -> Stage {
        let (answers, of_stream) = mpsc::channel();
        let (written, notices) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<Mutex<Vec<Notice>>>::default());
        let stream = Scripted { answers: of_stream, written: Arc::clone(&written) };
        let told = Arc::clone(&notices);
        let outlet = Outlet::start("test", stream, move |notice| told.lock().push(notice));
        Stage { outlet, answers, written, notices }
    }

    const LONG: Duration = Duration::from_secs(300);

    #[test]
    fn a_blocked_stream_delays_nobody_and_lost_texts_are_reported_when_it_resumes() {
        let Stage { outlet, answers, written, notices } = stage();
        let line = vec![b'x'; 1024 - TEXT_OVERHEAD_BYTES];
        for _ in 0..3 * QUEUE_BYTES / 1024 {
            outlet.say(line.clone());
        }
        assert!(!outlet.flush(Duration::ZERO), "nothing was taken");
        let full = notices.lock().iter().filter(|notice| **notice == Notice::Full).count();
        // The thread may have taken one text from the queue already.
        let lost = 2 * QUEUE_BYTES / 1024;
        assert!(full == lost || full == lost - 1, "{full}");
        drop(answers);
        assert!(outlet.flush(LONG));
        let resumed = Notice::Resumed { lost: u64::try_from(full).unwrap() };
        assert_eq!(
            notices.lock().iter().filter(|notice| **notice != Notice::Full).collect::<Vec<_>>(),
            [&resumed]
        );
        assert_eq!(written.lock().len(), (3 * QUEUE_BYTES / 1024 - full) * line.len());
    }

    #[test]
    fn a_text_that_cannot_be_written_is_counted_and_the_next_one_begins_a_line() {
        let Stage { outlet, answers, written, notices } = stage();
        answers.send(Ok(2)).unwrap();
        answers.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        answers.send(Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        answers.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        drop(answers);
        for text in ["first\n", "second\n", "third\n", "fourth\n"] {
            outlet.say(text.as_bytes().to_vec());
        }
        assert!(outlet.flush(LONG));
        assert_eq!(String::from_utf8(written.lock().clone()).unwrap(), "fi\nthird\nfourth\n");
        assert_eq!(*notices.lock(), [Notice::Failed, Notice::Failed, Notice::Resumed { lost: 2 }]);
    }
}
