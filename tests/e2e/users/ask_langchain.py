"""Asks through the relay with LangChain's ChatOpenAI, unmodified, and prints what came as one JSON object.

The one argument is JSON: {"way": one of WAYS, "options": of ChatOpenAI, "prompt": text}. What is printed: what the way
returns, or {"error": {...}} with what was raised.
"""

import asyncio
import json
import sys

import openai
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Place(BaseModel):
    """A place on a map."""

    city: str


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


def told(message):
    """What of an answer the tests look at."""
    return {
        "text": message.content,
        "calls": [{"name": call["name"], "args": call["args"]} for call in message.tool_calls],
        "finish": message.response_metadata.get("finish_reason"),
        "tokens": (message.usage_metadata or {}).get("total_tokens"),
    }


def invoke(model, prompt):
    return told(model.invoke([SystemMessage("Be brief."), HumanMessage(prompt)]))


def stream(model, prompt):
    """The pieces, and what LangChain's own sum of them is."""
    pieces, whole = [], None
    for piece in model.stream(prompt):
        pieces += [piece.content] if piece.content else []
        whole = piece if whole is None else whole + piece
    return {"pieces": pieces, **told(whole)}


def astream(model, prompt):
    """The same, asynchronously."""

    async def read():
        return [piece.content async for piece in model.astream(prompt) if piece.content]

    return {"pieces": asyncio.run(read())}


def batch(model, prompt):
    return {"texts": [message.content for message in model.batch([prompt, prompt])]}


def tools(model, prompt):
    """A conversation with a tool: what is called, and the answer to what it gives."""
    bound, said = model.bind_tools([weather]), [HumanMessage(prompt)]
    said.append(bound.invoke(said))
    said += [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in said[-1].tool_calls]
    return {"called": told(said[1])["calls"], **told(bound.invoke(said))}


def structured(model, prompt):
    return model.with_structured_output(Place, method="json_schema").invoke(prompt).model_dump()


def kind(error):
    """The class of openai-python that was raised: LangChain derives its own from it."""
    return next(base.__name__ for base in type(error).__mro__ if base.__module__.startswith("openai"))


WAYS = {way.__name__: way for way in (invoke, stream, astream, batch, tools, structured)}

asked = json.loads(sys.argv[1])
try:
    result = WAYS[asked["way"]](ChatOpenAI(**asked["options"]), asked["prompt"])
except openai.APIError as error:
    result = {"error": {"kind": kind(error), "code": error.code, "id": getattr(error, "request_id", None)}}
except openai.OpenAIError as error:
    result = {"error": {"kind": kind(error)}}
print(json.dumps(result))
