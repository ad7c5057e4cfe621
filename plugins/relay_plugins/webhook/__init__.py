"""`webhook`: a moderator that asks any HTTP endpoint, in a shape of its own or in that of OpenAI's moderation API.

What an endpoint has to answer stands in docs/moderation.md. The connection is in `endpoint`, each shape in a file.
"""

from relay_plugins.webhook.moderator import Webhook

__all__ = ["Webhook"]
