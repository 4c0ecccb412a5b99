//! Child processes of a test. Their output is captured, tests wait for parts of it, and dropping a process
//! kills it.
//!
//! Every wait has a deadline, so that a hang becomes a failure with the child's output in it. Nothing here
//! measures time.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use cairn::task::Tasks;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long anything may be silent before it counts as hung. Generous, because machines are slow and VMs are
/// emulated.
const HANG: Duration = Duration::from_secs(300);

/// Waits for `future`. A hang is a panic that names `what`.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(HANG, future).await {
        Ok(output) => output,
        Err(_) => panic!("still waiting after {HANG:?}: {what}"),
    }
}

/// Creates a command from a list of the program and its arguments.
pub(crate) fn command<I>(line: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<std::ffi::OsStr>,
{
    let mut words = line.into_iter();
    let program = words.next().expect("a command has a program");
    let mut command = Command::new(program);
    command.args(words);
    command
}

/// A running child. Its standard output and error are captured line by line. Dropping it kills it.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    changed: watch::Receiver<usize>,
    readers: Tasks,
}

impl Process {
    /// Starts `command`. Messages use this name.
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (said, changed) = watch::channel(0);
        let readers = Tasks::new();
        let said = Arc::new(said);
        let stdout = child.stdout.take().expect("standard output is piped");
        let stderr = child.stderr.take().expect("standard error is piped");
        readers.spawn(capture(stdout, Arc::clone(&lines), Arc::clone(&said)));
        readers.spawn(capture(stderr, Arc::clone(&lines), said));
        Self { name: name.to_owned(), child, lines, changed, readers }
    }

    /// Waits until `find` finds something in a line of the output. Panics with the output if the child exits
    /// before that.
    pub(crate) async fn wait_for<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        self.wait_until(what, |lines| lines.iter().find_map(|line| find(line))).await
    }

    /// Waits until `find` finds something in all lines of the output so far.
    pub(crate) async fn wait_until<T>(&mut self, what: &str, find: impl Fn(&[String]) -> Option<T>) -> T {
        loop {
            self.changed.borrow_and_update();
            if let Some(found) = find(&self.lines.lock()) {
                return found;
            }
            let Ok(changed) = timeout(HANG, self.changed.changed()).await else {
                panic!("{} is silent before {what}; it said:\n{}", self.name, self.output());
            };
            // Both readers drop their sender at the end of the output.
            if changed.is_err() {
                let found = find(&self.lines.lock());
                return found.unwrap_or_else(|| {
                    panic!("{} ended before {what}; it said:\n{}", self.name, self.output())
                });
            }
        }
    }

    /// Returns the output so far.
    pub(crate) fn output(&self) -> String {
        self.lines.lock().join("\n")
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("the child has not been reaped")
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("process ids are positive i32");
        let pid = Pid::from_raw(id).expect("a child is not process 0");
        rustix::process::kill_process(pid, signal).expect("a child can be signalled");
    }

    /// Sends SIGKILL, and waits until nothing of the process runs any more.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("a child can be killed");
        self.readers.join().await;
    }

    /// Waits for the exit and for the last output.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let Ok(status) = timeout(HANG, self.child.wait()).await else {
            panic!("{} does not end; it said:\n{}", self.name, self.output());
        };
        self.readers.join().await;
        status.expect("a child can be waited for")
    }
}

async fn capture(
    stream: impl AsyncRead + Unpin,
    lines: Arc<Mutex<Vec<String>>>,
    said: Arc<watch::Sender<usize>>,
) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line).await, Ok(1..)) {
        lines.lock().push(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
        said.send_modify(|count| *count += 1);
    }
}

/// The result of a program that has exited.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program until it exits.
pub(crate) async fn finish(command: &mut Command) -> Finished {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = within(&format!("{command:?}"), command.output()).await;
    let output = output.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    Finished {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a program that must succeed, and returns its standard output.
pub(crate) async fn run(command: &mut Command) -> String {
    let done = finish(command).await;
    assert!(
        done.status.success(),
        "{command:?}: {}\n{}\n{}",
        done.status,
        tail(&done.stdout),
        tail(&done.stderr)
    );
    done.stdout
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Returns a TCP port on which nobody listens. It is outside the range from which the kernel picks ports for
/// outgoing connections, so that a restarted server finds it free again.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = u16::try_from(std::process::id() % 600).expect("below 600") * 16;
    for _ in 0..9_600 {
        let port = 20_000 + (base + NEXT.fetch_add(1, Ordering::Relaxed)) % 9_600;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 29600");
}

/// Waits until a process listens at a Unix socket. The file appears before connections are accepted.
pub(crate) async fn listens_at(path: &Path) {
    let is_listening = |line: &str| {
        // Num RefCount Protocol Flags Type St Inode Path. The flag is __SO_ACCEPTCON in the kernel's net.h.
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&"00010000") && fields.get(7).is_some_and(|name| Path::new(name) == path)
    };
    until(&format!("somebody listens at {}", path.display()), || {
        let sockets = std::fs::read_to_string("/proc/net/unix").expect("Linux lists its sockets");
        sockets.lines().any(is_listening)
    })
    .await;
}

/// Polls until `condition` holds. Only for conditions without a notification.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let looking = async {
        let mut interval = tokio::time::interval(Duration::from_millis(50));
        while !condition() {
            interval.tick().await;
        }
    };
    within(what, looking).await;
}
