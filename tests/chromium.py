"""A headless Chromium that tests drive by the DevTools protocol, over a pipe."""

import itertools
import json
import os
import select
import subprocess
import tempfile
import time

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
PATIENCE = 60  # seconds for an answer


class Chromium:
    """One page of a browser with a profile of its own; a context manager.

    Calling it sends a command, such as ``browser("Page.navigate", url=...)``, and returns the result. What the browser
    tells unasked is kept in ``events``.
    """

    def __init__(self, program):
        self.profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        there, self.commands = os.pipe()
        self.answers, here = os.pipe()
        shell = f'exec "$@" 3<&{there} 4>&{here}'  # the browser reads 3 and writes 4
        command = ["bash", "-c", shell, "bash", program, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(there, here), **quiet)
        os.close(there)
        os.close(here)
        self.numbers, self.rest, self.events, self.session = itertools.count(1), b"", [], {}
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(PATIENCE)
        os.close(self.commands)
        os.close(self.answers)
        self.profile.cleanup()

    def __call__(self, method, **params):
        number = next(self.numbers)
        command = {"id": number, "method": method, "params": params, **self.session}
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message}"
                return message["result"]
            self.events.append(message)

    def _message(self):
        while b"\0" not in self.rest:
            assert select.select([self.answers], [], [], PATIENCE)[0], "the browser does not answer"
            part = os.read(self.answers, 1 << 16)
            assert part, "the browser is gone"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def value(self, script):
        """Return what an expression of JavaScript gives, once it is settled."""
        found = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script):
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + PATIENCE
        while not (found := self.value(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)
        return found

    def told(self, method):
        """Return what the events of a kind said."""
        return [event["params"] for event in self.events if event.get("method") == method]
