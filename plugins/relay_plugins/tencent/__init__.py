"""`tencent`: a moderator that asks Tencent Cloud's text moderation service (TMS).

What is sent and what comes back are the models of the official SDK, and so are the signature and the errors; the
connection is the relay's own (`service` says why). A fake of the service comes with it (`fake`).
"""

from relay_plugins.tencent.moderator import Tencent

__all__ = ["Tencent"]
