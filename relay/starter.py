"""The first relay.toml, as `relay init` writes it: OpenAI upstream, one fresh key, a word list, nothing else needed."""

from __future__ import annotations

import secrets

TEMPLATE = """\
# relay.toml: `relay check` says what it means, `relay serve` serves it.
# The only thing that it needs from outside is the variable OPENAI_API_KEY.

[server]
host = "127.0.0.1"
port = 8080

[admin]                      # /metrics, /healthz and /readyz; keep it away from clients
host = "127.0.0.1"
port = 8081

[store]
url = "memory:"

[[upstreams]]
name = "openai"
base_url = "https://api.openai.com/v1"
api_key = {{ env = "OPENAI_API_KEY" }}
models = ["*"]               # or the names to serve: ["gpt-4o-mini"], or {{ public = "upstream's name" }}

[[plugins]]
use = "auth"
keys = [
  {{ name = "first", key = "{key}" }},   # made for you just now; only here
]

[[plugins]]
use = "moderation"
moderators = [
  {{ use = "lexicon", words = ["replace these", "by your own phrases"] }},   # or files = ["words.txt"]
]
"""


def starter() -> str:
    """A configuration with a key of its own: 256 random bits."""
    return TEMPLATE.format(key="sk-" + secrets.token_urlsafe(32))
