"""The first relay.toml, as `relay init` writes it: one upstream, one fresh key, a word list, nothing else needed.

A profile serves one of the two public APIs as its page says. Whatever it is, the variable OPENAI_API_KEY is all that it
needs from outside.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

_LISTENERS: Final = """\
[server]
host = "127.0.0.1"
port = 8080

[admin]                      # /metrics, /healthz and /readyz; keep it away from clients
host = "127.0.0.1"
port = 8081

[store]                      # keys, balances and limits: a Valkey server of the relay's own, in relay-data beside this file
url = "embedded:"            # or redis://host:6379/0, which several relays may share

[[upstreams]]
name = "openai"
base_url = "https://api.openai.com/v1"
api_key = {{ env = "OPENAI_API_KEY" }}
"""

_FIRST: Final = (
    """\
# relay.toml: `relay check` says what it means, `relay serve` serves it.
# The only thing that it needs from outside is the variable OPENAI_API_KEY.

"""
    + _LISTENERS
    + """\
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
)

# What both pages promise: limits, a balance, a content check, and histories that fit the model.
_LIMITS: Final = """\
[[plugins]]
use = "rate_limit"           # for each key
requests_per_minute = 600
concurrent_streams = 50

[[plugins]]
use = "quota"                # `relay quota top-up NAME AMOUNT`
unit = "characters"
grant = 10000                # given to a key the first time it is used

[[plugins]]
use = "moderation"           # of requests and replies
moderators = [
  {{ use = "lexicon", words = ["replace these", "换成您自己的词"] }},   # or files = ["words.txt"]
  # Tencent Cloud's text moderation, which both pages name:
  # {{ use = "tencent", secret_id = {{ env = "TENCENT_ID" }}, secret_key = {{ env = "TENCENT_KEY" }}, calls_per_second = 800 }},
]
"""

_TALKBOT: Final = (
    """\
# relay.toml, profile talkbot: POST /v1/chat/completions and GET /v1/models, with the models, defaults, ranges and error
# bodies of that API's page. `relay check` says what it means, `relay serve` serves it.
#
# To set: the variable OPENAI_API_KEY, the key for the upstream; with Tencent Cloud's moderation also the variable TENCENT_ID
# and the variable TENCENT_KEY.
# To look at: base_url, models, keys, help_url and words.

"""
    + _LISTENERS
    + """\
# Of these OpenAI has switched some off. What it calls otherwise is written {{ "gpt-4" = "gpt-4o", … }} for the whole list.
models = [
  "gpt-3.5-turbo", "gpt-3.5-turbo-0301", "gpt-3.5-turbo-0613", "gpt-3.5-turbo-16k", "gpt-3.5-turbo-16k-0613",
  "gpt-3.5-turbo-1106", "gpt-3.5-turbo-0125",
  "gpt-4", "gpt-4-0613", "gpt-4-1106-preview", "gpt-4-turbo-preview", "gpt-4-0125-preview", "gpt-4-turbo-2024-04-09",
]

[[plugins]]
use = "auth"
help_url = "https://vip.gptchatclub.com/api"   # where callers find their keys; the errors about keys name it
keys = [
  {{ name = "first", key = "{key}" }},   # made for you just now; only here
]

[[plugins]]
use = "parameters"           # the page's: temperature 0.2, max_tokens 2048 and at most 4096, …

"""
    + _LIMITS
    + """\

[[plugins]]
use = "history"              # drops the oldest turns of what no model of the list would take
max_tokens = 120000          # the page sets no limit; set less to pay less
"""
)

_BINGCHENG: Final = (
    """\
# relay.toml, profile bingcheng: POST /api/v2.Gptliu/search, with `messages` or with a history in `keyword`, as that API's
# page says; the same key opens /v1/chat/completions. `relay check` says what it means, `relay serve` serves it.
#
# To set: the variable OPENAI_API_KEY, the key for the upstream; with Tencent Cloud's moderation also the variable TENCENT_ID
# and the variable TENCENT_KEY.
# To look at: base_url, models, keys, help_url and words.

"""
    + _LISTENERS
    + """\
models = ["gpt-3.5-turbo", "gpt-3.5-turbo-0301"]   # or {{ "gpt-3.5-turbo" = "upstream's name" }}

[[plugins]]
use = "auth"
help_url = "https://gpt.bcwhkj.cn/"   # where callers find their keys; the errors about keys name it
keys = [
  {{ name = "first", key = "{key}" }},   # made for you just now; only here
]

[[plugins]]
use = "bingcheng"            # the path and the format
default_model = "gpt-3.5-turbo"   # for requests that name none

# The page names no defaults and no ranges. Those of the talkbot profile are set by
# [[plugins]]
# use = "parameters"

"""
    + _LIMITS
    + """\

[[plugins]]
use = "history"              # drops the oldest turns of what does not fit
max_tokens = 3000            # of the 4,096 that the page's models read and write
"""
)

PROFILES: Final[Mapping[str, str]] = {"talkbot": _TALKBOT, "bingcheng": _BINGCHENG}


def starter(profile: str | None = None) -> str:
    """A configuration with a key of its own: 256 random bits. `profile` is one of PROFILES."""
    return (PROFILES[profile] if profile else _FIRST).format(key="sk-" + secrets.token_urlsafe(32))
