from relay import JsonObject, Plugin, Reject


class Simple(Plugin):
    """Serves POST /ask with {"question": "…"} as a chat completion."""

    routes = ("/ask",)

    model: str = "gpt-4"

    def translate(self, path: str, body: JsonObject) -> JsonObject:
        question = body.get("question")
        if not isinstance(question, str) or not question:
            raise Reject("Send a question.", code="invalid_question", param="question")
        body.remove("question")
        body.update({"model": self.model, "messages": [{"role": "user", "content": question}]})
        return body
