"""Programs that the comparison starts: start, wait until ready, CPU and memory, stop.

Whatever is started here dies with this program, even if it is killed. A thread of its own waits for signals and for the
time limit, and kills every program: the main thread may hang in a file system that one of them serves.
"""

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time

READY_SECONDS = 60
STOP_SECONDS = 120
PR_SET_PDEATHSIG = 1
CLONE_NEWNS = 0x00020000

_libc = ctypes.CDLL(None, use_errno=True)
_ticks = os.sysconf("SC_CLK_TCK")


class Failure(Exception):
    """Why the comparison cannot go on: one text for people."""


# Every program that runs now, and why the run ends early.
_running = set()
_lock = threading.Lock()
_stopped_by = []


def stop_on(signals, limit_seconds):
    """Ends the run on one of these signals, or after the time limit. Call it once, before anything is started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def wait():
        found = signal.sigtimedwait(signals, limit_seconds)
        with _lock:
            why = f"stopped by {signal.Signals(found.si_signo).name}" if found else "not finished within the time limit"
            _stopped_by.append(why)
            for child in _running:
                child.kill()

    threading.Thread(target=wait, daemon=True).start()


def stopped_by():
    """Why the run ends early, or `None`."""
    return _stopped_by[0] if _stopped_by else None


def _in_child():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _spawn(argv, cleans_up=False, user=None, **more):
    user_of = {"user": user, "group": user, "extra_groups": []} if user else {}
    with _lock:
        if _stopped_by and not cleans_up:
            raise Failure(_stopped_by[0])
        child = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, preexec_fn=_in_child,
                                 **user_of, **more)
        if not cleans_up:
            _running.add(child)
    return child


def _ended(child):
    with _lock:
        _running.discard(child)


def private_mounts():
    """Moves this process to a mount namespace of its own, so that its mounts vanish with it. Needs root."""
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise Failure("a mount namespace of its own: " + os.strerror(ctypes.get_errno()))
    run(["mount", "--make-rprivate", "/"])


def free_port():
    """A TCP port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connects(path):
    """Whether somebody accepts connections at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
            return True
        except OSError:
            return False


def run(argv, timeout=60, user=None, env=None, cwd=None, cleans_up=False):
    """Runs a program that must succeed. Returns its standard output. `cleans_up`: also when the run ends early."""
    child = _spawn(argv, cleans_up, user, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                   env=env, cwd=cwd)
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failure(f"{argv[0]} did not end within {timeout} s: {' '.join(map(str, argv))}") from None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        _ended(child)
    if child.returncode != 0:
        raise Failure(f"{' '.join(map(str, argv))}: exit status {child.returncode}\n{out[-2000:]}{err[-2000:]}")
    return out


class Process:
    """A server. `ready` is a function that is true once it serves, or a text that it prints then."""

    def __init__(self, name, argv, log, ready, env=None, user=None):
        self.name, self.log = name, log
        with open(log, "wb") as output:
            self.child = _spawn(argv, False, user, stdout=output, stderr=output, env=env)
        self.pid = self.child.pid
        is_ready = (lambda: ready in self.said()) if isinstance(ready, str) else ready
        end = time.monotonic() + READY_SECONDS
        try:
            while not is_ready():
                self.check()
                if time.monotonic() > end:
                    raise Failure(f"{name} is not ready after {READY_SECONDS} s:\n{self.said()[-2000:]}")
                time.sleep(0.005)
        except BaseException:
            self.kill()
            raise

    def said(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def check(self):
        """Fails if the program has ended."""
        if self.child.poll() is not None:
            raise Failure(f"{self.name} ended with status {self.child.returncode}:\n{self.said()[-2000:]}")

    def stop(self, how=signal.SIGTERM, statuses=(0, -signal.SIGTERM)):
        """Ends it as an operator would, and waits. Any other exit status is a failure."""
        self.check()
        self.child.send_signal(how)
        self.wait(statuses)

    def wait(self, statuses=(0,)):
        try:
            status = self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{self.name} did not end within {STOP_SECONDS} s") from None
        _ended(self.child)
        if status not in statuses:
            raise Failure(f"{self.name} ended with status {status}:\n{self.said()[-2000:]}")

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        _ended(self.child)

    def cpu_seconds(self):
        """User and system time so far (proc(5), fields utime and stime)."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _ticks

    def forget_peak(self):
        """Lets the peak of resident memory count from now (proc(5), clear_refs)."""
        with open(f"/proc/{self.pid}/clear_refs", "w", encoding="ascii") as refs:
            refs.write("5")

    def peak_bytes(self):
        """The peak of resident memory (proc(5), VmHWM)."""
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        raise Failure(f"{self.name} has no peak of resident memory")


def drop_page_cache(directory):
    """Drops the page cache of every file below a directory."""
    for at, _, names in os.walk(directory):
        for name in names:
            try:
                file = os.open(os.path.join(at, name), os.O_RDONLY)
            except OSError:
                continue
            try:
                os.fdatasync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
