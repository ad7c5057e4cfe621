"""`relay demo`: the whole relay with a built-in upstream, so that it can be tried with nothing else installed.

The upstream is the scripted one of `relay.testing`. Its models say what they show: a plain answer, one with forbidden
phrases cut across chunks, a slow one, and one that breaks off in the middle.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from relay.config import parse
from relay.log import Logger
from relay.serve import serve
from relay.testing import Close, Head, Pause, Request, Script, ScriptedUpstream, Send, frames, streamed, whole

FORBIDDEN = ("forbidden fruit", "敏感词")
PACE_S = 0.04
SLOW_PACE_S = 0.5

_HELLO = (
    "Hello! I am a scripted model. 你好,我是一个按剧本说话的模型。Every word of this came through the relay, checked."
)
_FORBIDDEN = "It |begins |harmlessly, |then |somebody |mentions |a |forb|idden| fr|uit, |and |敏|感|词| as well. |You |never |read |this."
_SLOW = "This | one | thinks | before | every | word."
_BROKEN = "This answer breaks off in the mid"

MODELS = {
    "demo-hello": "a plain answer",
    "demo-forbidden": "an answer with forbidden phrases, cut across chunks",
    "demo-slow": "half a second before every word",
    "demo-broken": "an upstream that dies in the middle",
}

CONFIG = """\
[server]
port = {port}
[admin]
port = {admin_port}
[store]
url = "memory:"
[[upstreams]]
name = "demo"
base_url = "{base_url}"
models = {models}
[[plugins]]
use = "auth"
keys = [{{ name = "demo", key = "{key}" }}]
[[plugins]]
use = "parameters"
[[plugins]]
use = "rate_limit"
[[plugins]]
use = "moderation"
moderators = [{{ use = "lexicon", words = {words} }}]
[[plugins]]
use = "history"
max_tokens = 3000
"""

GREETING = """\
relay demo: everything on this machine, nothing stored.

  API      http://127.0.0.1:{port}/v1
  admin    http://127.0.0.1:{admin_port}/metrics  /healthz  /readyz
  key      {key}
  models   {models}
  forbidden phrases: {words}

Try it with curl:

curl -N http://127.0.0.1:{port}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
-d '{{"model":"demo-forbidden","stream":true,"messages":[{{"role":"user","content":"hello"}}]}}'

or with openai-python (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:{port}/v1", api_key="{key}")
messages = [{{"role": "user", "content": "hello"}}]
for chunk in client.chat.completions.create(model="demo-forbidden", messages=messages, stream=True):
    choice = chunk.choices[0]
    print(choice.delta.content or "", end=f"[{{choice.finish_reason}}]\\n" if choice.finish_reason else "", flush=True)

Ctrl-C stops it.
"""


def script(request: Request) -> Script:
    """What the demo's upstream answers."""
    asked = request.json
    model = asked.get("model") if isinstance(asked, dict) else None
    texts = {"demo-forbidden": _FORBIDDEN, "demo-slow": _SLOW, "demo-broken": _BROKEN}.get(str(model), _HELLO)
    pieces = texts.split("|") if "|" in texts else [texts[start : start + 4] for start in range(0, len(texts), 4)]
    stamp = frames.Stamp(model=str(model))
    if not request.streams:
        if model == "demo-broken":
            return Script(Head(), Send(b'{"id":'), Close())
        return whole(frames.body(texts.replace("|", ""), **stamp))
    pace_s = SLOW_PACE_S if model == "demo-slow" else PACE_S
    if model == "demo-broken":
        said = [frames.role(**stamp), *(frames.text(piece, **stamp) for piece in pieces)]
        steps = [step for frame in said for step in (Send(frame), Pause(pace_s))]
        return Script(Head(), *steps, Close())
    return streamed(frames.stream(pieces, **stamp), pace_s=pace_s)


async def demo(port: int, admin_port: int, log: Logger) -> None:
    """Serve the demo until a signal comes."""
    key = "sk-demo-" + secrets.token_urlsafe(16)
    async with ScriptedUpstream(script) as upstream:
        text = CONFIG.format(
            port=port,
            admin_port=admin_port,
            base_url=upstream.base_url,
            models=list(MODELS),
            key=key,
            words=list(FORBIDDEN),
        )

        def greet(port: int, admin_port: int) -> None:
            click.echo(
                GREETING.format(
                    port=port, admin_port=admin_port, key=key, models=", ".join(MODELS), words=", ".join(FORBIDDEN)
                )
            )

        await serve(parse(text, Path("relay-demo.toml")), log, on_ready=greet)
