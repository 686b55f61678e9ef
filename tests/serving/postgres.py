"""A PostgreSQL server for tests: Debian's binaries, a data folder of its own, loopback alone, an unprivileged user."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

USER = "postgres"


def binaries():
    """The folder of the newest installed server, None where there is none or no user that may run it."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return None
    return folders[-1].parent if folders else None


def as_user(command):
    """initdb and postgres refuse root."""
    prefix = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    return [*prefix, *command] if os.geteuid() == 0 else command


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """Runs in the foreground of a process of its own, and is stopped by that process's id."""

    def __init__(self, folder):
        self.folder, self.port, self.process, self.options = folder, free_port(), None, ()

    def initialise(self):
        self.folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.folder, USER, USER)
        command = [binaries() / "initdb", "-D", self.folder, "-A", "trust", "-U", USER, "--locale=C.UTF-8"]
        subprocess.run(as_user(command), check=True, capture_output=True, cwd="/")

    def start(self, *options):
        """Options are settings. ``fsync=off`` loses no data when processes die, only when the machine does."""
        self.options = options or self.options
        for _ in range(600):
            # After a kill it refuses to start until the last child of the old one has gone.
            if self.process is None or self.process.poll() is not None:
                self._launch()
            ready = subprocess.run([binaries() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)])
            if ready.returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError("PostgreSQL did not start: " + (self.folder.parent / "postgres.log").read_text()[-2000:])

    def _launch(self):
        command = [binaries() / "postgres", "-D", self.folder, "-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        command += [part for option in self.options for part in ("-c", option)]
        with open(self.folder.parent / "postgres.log", "ab") as log:
            self.process = subprocess.Popen(as_user(command), stdout=log, stderr=log, cwd="/")

    def stop(self):
        """SIGINT asks for a fast shutdown: clients are cut off, and everything is written."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=120)

    def kill(self):
        """The server has no time to write anything. Its children end when they notice."""
        self.process.kill()
        self.process.wait(timeout=60)

    def create(self, name):
        command = [binaries() / "createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, name]
        subprocess.run(command, check=True, capture_output=True)
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{name}"


@contextmanager
def running(folder, *options):
    server = Server(folder)
    server.initialise()
    server.start(*options)
    try:
        yield server
    finally:
        server.stop()
