//! A stream that is written to without ever waiting for it: a bounded queue, and a thread that may hang in
//! the system.
//!
//! Knows no format. Invariants: [`Outlet::say`] neither blocks nor fails; what is held is bounded; a text is
//! written whole or counted as lost, and a text that was cut in the midst ends its line before the next
//! begins.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

use crate::task;

/// Most bytes of texts that wait, with what it takes to hold them.
pub(in crate::cli) const QUEUE_BYTES: usize = 1 << 20;
/// What a text in the queue takes beside its bytes.
const TEXT_OVERHEAD_BYTES: usize = 64;
/// How often [`Notice::Moment`] comes.
const MOMENT: Duration = Duration::from_secs(10);
/// How long to wait for a stream that does not block and has no room.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(20);

/// What the owner of an outlet is told, by the thread that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Notice {
    /// A text was lost: there was no room for it.
    Full,
    /// A text was lost: it could not be written.
    Failed,
    /// Texts are written again after so many were lost.
    Resumed {
        /// How many.
        lost: u64,
    },
    /// Time has passed.
    Moment,
}

/// A stream that is never waited for.
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
    /// Whether a text was taken out and is not written yet.
    is_writing: bool,
    /// Texts lost since [`Notice::Resumed`] last came.
    lost: u64,
}

impl Outlet {
    /// Writes to a stream from now on; `notice` is called by whoever causes it, and must not wait.
    pub(in crate::cli) fn start(
        name: &str,
        stream: impl Write + Send + 'static,
        notice: impl Fn(Notice) + Send + Sync + 'static,
    ) -> Self {
        let queue = Mutex::new(Queue::default());
        let shared = Arc::new(Shared { queue, changed: Condvar::new(), notice: Box::new(notice) });
        let of_thread = Arc::clone(&shared);
        if task::run_detached(name, move || of_thread.write_all(stream)).is_err() {
            // Without a thread nothing is written: all that comes is lost, and counted.
            shared.queue.lock().held_bytes = QUEUE_BYTES;
        }
        Self(shared)
    }

    /// Has a text written after those before it, or loses it.
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

    /// Waits until everything is written or lost, or the time is over; whether it is.
    pub(in crate::cli) fn flush(&self, patience: Duration) -> bool {
        let mut queue = self.0.queue.lock();
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.texts.is_empty();
        !self.0.changed.wait_while_for(&mut queue, is_busy, patience).timed_out()
    }
}

impl Shared {
    /// The thread.
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

    /// The next text; none when it is time for something else.
    fn next(&self, until: Instant) -> Option<Vec<u8>> {
        let mut queue = self.queue.lock();
        let patience = until.saturating_duration_since(Instant::now());
        self.changed.wait_while_for(&mut queue, |queue| queue.texts.is_empty(), patience);
        let text = queue.texts.pop_front()?;
        queue.held_bytes -= text.len() + TEXT_OVERHEAD_BYTES;
        queue.is_writing = true;
        Some(text)
    }

    /// A text was written, or not.
    fn settle(&self, is_written: bool) {
        let mut queue = self.queue.lock();
        let notice = match is_written {
            false => {
                queue.lost += 1;
                Some(Notice::Failed)
            }
            // Not for each gap of a slow reader.
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

/// Writes a text, after the end of a line that was cut before.
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

/// Writes all of it, however long that takes; where that fails, how much was written.
fn write_whole(stream: &mut impl Write, text: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < text.len() {
        match stream.write(&text[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process has made the stream that it shares with us non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => pause(NO_ROOM_PAUSE),
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Nobody tells when such a stream has room again.
fn pause(length: Duration) {
    let nobody = Mutex::new(());
    Condvar::new().wait_for(&mut nobody.lock(), length);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A stream that asks what to do with each write.
    struct Scripted {
        answers: mpsc::Receiver<io::Result<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Where nobody answers any more, it takes all.
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
    fn a_stream_that_takes_nothing_keeps_nobody_waiting_and_what_is_lost_is_told_once_it_goes_on() {
        let Stage { outlet, answers, written, notices } = stage();
        let line = vec![b'x'; 1024 - TEXT_OVERHEAD_BYTES];
        for _ in 0..3 * QUEUE_BYTES / 1024 {
            outlet.say(line.clone());
        }
        assert!(!outlet.flush(Duration::ZERO), "nothing was taken");
        let full = notices.lock().iter().filter(|notice| **notice == Notice::Full).count();
        // One is out of the queue, if the thread was quick enough.
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
