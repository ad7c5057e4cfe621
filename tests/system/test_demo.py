"""What `relay demo` prints works as it is printed."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.system

BEFORE_THE_PHRASE = "It begins harmlessly, then somebody mentions a "


def test_the_curl_line(demo, curl):
    """Pasted into a shell, it shows a reply that ends where the phrase would begin."""
    reply = demo.curl()
    assert reply.returncode == 0, reply.stderr
    *events, done = [line.removeprefix("data: ") for line in reply.stdout.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == BEFORE_THE_PHRASE
    assert ["content_filter"] == [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def test_the_python_lines(demo):
    """Pasted into a file, they show the same by the official library."""
    shown = subprocess.run(
        [sys.executable, "-W", "error", "-c", demo.python_lines], capture_output=True, text=True, check=False
    )
    assert (BEFORE_THE_PHRASE + "[content_filter]\n", "") == (shown.stdout, shown.stderr)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_the_admin_addresses(demo, curl, path):
    """They answer, as the second line says."""
    assert path in demo.printed
    assert 0 == subprocess.run([curl, "-sSf", "-o", "/dev/null", demo.admin + path], check=False).returncode
