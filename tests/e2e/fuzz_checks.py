"""What schemathesis is to check beside its own checks; it loads this module by SCHEMATHESIS_HOOKS."""

import schemathesis


@schemathesis.check
def stream_ends_once(ctx, response, case):
    """A stream ends with one `[DONE]`, and with nothing else that begins like that."""
    if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        events = response.content.split(b"\n\n")
        marked = [event for event in events if event.startswith(b"data: [DONE]")]
        assert [b"data: [DONE]"] == marked, "the stream does not end with one [DONE]"
        assert [b"data: [DONE]", b""] == events[-2:], "something comes after [DONE]"


@schemathesis.check
def nothing_of_ours_breaks(ctx, response, case):
    """Whatever an upstream does, a 500 would be the relay's own."""
    assert response.status_code != 500, "the relay broke"


@schemathesis.hook
def map_body(context, body):
    """Have more streams than chance would give, and whole numbers written as such.

    To JSON Schema 3.0 is an integer; to the relay it is none.
    """
    if not isinstance(body, dict):
        return body
    body = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in body.items()
    }
    return {**body, "stream": True} if "stream" not in body and len(body) % 2 else body
