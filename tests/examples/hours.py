import json

from relay import Chunk, Exchange, Plugin, Reply


class Hours(Plugin):
    """Answers the question for the opening hours by itself, without an upstream."""

    question: str = "when are you open?"
    answer: str = "From nine to five."

    async def on_request(self, ex: Exchange) -> Reply | None:
        content = ex.request.messages[-1].get("content")
        if not isinstance(content, str) or content.strip().lower() != self.question:
            return None
        said = {"id": ex.id, "created": 0, "model": ex.request.model}
        if ex.request.stream:
            delta = {"index": 0, "delta": {"role": "assistant", "content": self.answer}, "finish_reason": "stop"}
            return Reply((Chunk.event({**said, "object": "chat.completion.chunk", "choices": [delta]}),))
        message = {"index": 0, "message": {"role": "assistant", "content": self.answer}, "finish_reason": "stop"}
        body = json.dumps({**said, "object": "chat.completion", "choices": [message]}).encode()
        return Reply((Chunk.body(body),))
