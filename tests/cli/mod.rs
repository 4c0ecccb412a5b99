//! The `cairn` program as a user meets it: its output, what it refuses, and its exit statuses.

mod admin;
mod backup;
mod bench;
mod check;
mod clone;
mod gc;
mod incremental;
mod readme;
mod rename;
mod resize;
mod secrets;
mod serve;
mod snapshot;
mod transfer;
mod undelete;
mod volume;
mod warm;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::process::Process;

/// A command that runs the program in a directory, without any variable of Cairn or AWS in its environment.
fn cairn(directory: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CAIRN_") || text.starts_with("AWS_") {
            command.env_remove(&name);
        }
    }
    // The default address is shared by the whole machine.
    command.env("CAIRN_ADMIN__LISTEN", "none").env("CAIRN_ADMIN__SOCKET", "none");
    command.args(line.split_whitespace()).current_dir(directory).stdin(Stdio::null());
    command
}

/// The result of a run.
struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

fn run(mut command: Command) -> Run {
    command.output().expect("the program runs").into()
}

/// Runs a command line that must succeed. Returns its output.
fn succeed(directory: &Path, line: &str) -> String {
    let Run { code, out, err } = run(cairn(directory, line));
    assert_eq!(code, Some(0), "{line}: {out}{err}");
    out
}

/// Runs a command line that must fail with this status and print only an error. Returns the error.
fn fail(directory: &Path, line: &str, expected: i32) -> String {
    refuse(cairn(directory, line), expected)
}

fn refuse(command: Command, expected: i32) -> String {
    let line = format!("{command:?}");
    let Run { code, out, err } = run(command);
    assert_eq!((code, out.as_str()), (Some(expected), ""), "{line}: {err}");
    err
}

/// Waits until a program connects. Fails if it ends before that.
async fn connection(listener: &tokio::net::TcpListener, program: &mut Process) -> tokio::net::TcpStream {
    tokio::select! {
        accepted = listener.accept() => accepted.expect("a listener accepts").0,
        status = program.exit() => panic!("it ended before it connected: {status}: {}", program.output()),
    }
}

/// A running gateway. Dropping it kills it.
struct Gateway {
    child: Child,
    out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
    /// The part of its log that has been read so far.
    log: String,
    /// The lines that it printed up to the suggestion of what to try next.
    lines: Vec<String>,
}

impl Gateway {
    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let err = BufReader::new(child.stderr.take().expect("it is piped"));
        Self { child, out, err, log: String::new(), lines: Vec::new() }
    }

    /// Starts the gateway and waits until it serves.
    fn start(command: Command) -> Self {
        let mut gateway = Self::spawn(command);
        while !gateway.lines.last().is_some_and(|line| line.starts_with("listening on ")) {
            assert!(gateway.read_line(), "it ended: {}", gateway.end().1.err);
        }
        gateway
    }

    fn read_line(&mut self) -> bool {
        let mut line = String::new();
        let length = self.out.read_line(&mut line).expect("it prints UTF-8");
        self.lines.push(line.trim_end().to_owned());
        length > 0
    }

    /// Waits until the gateway logs this text.
    fn wait_for_log(&mut self, text: &str) {
        while !self.log.contains(text) {
            let length = self.err.read_line(&mut self.log).expect("it logs UTF-8");
            assert!(length > 0, "it ended before it logged {text:?}: {}", self.log);
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id")).expect("not 0");
        kill_process(pid, signal).expect("it is there");
    }

    /// Waits until the gateway exits. Returns all of its output.
    fn end(&mut self) -> (ExitStatus, Run) {
        while self.read_line() {}
        let status = self.child.wait().expect("it is our child");
        self.err.read_to_string(&mut self.log).expect("it logs UTF-8");
        (status, Run { code: status.code(), out: self.lines.join("\n"), err: self.log.clone() })
    }

    /// Ends the gateway with SIGTERM, which must succeed.
    fn terminate(mut self) -> Run {
        self.signal(Signal::TERM);
        let (status, run) = self.end();
        assert!(status.success(), "{status}: {}", run.err);
        run
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().expect("it runs");
            self.child.wait().expect("it is our child");
        }
    }
}
