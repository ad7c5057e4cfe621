"""What the spans of a request say, in the names of OpenTelemetry's conventions.

HTTP: https://opentelemetry.io/docs/specs/semconv/http/http-spans/. GenAI, which are still being made:
https://github.com/open-telemetry/semantic-conventions-genai. What has no convention is ours, under `relay.`.

A value that cannot be sent takes the whole batch with it in which it is: an integer beyond 64 bits. What comes from outside is looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes, url_attributes

from relay.errors import UpstreamError
from relay.exchange import STOPPED_BY, Exchange
from relay.pure.request import ChatRequest
from relay.told import Call, Told

Value = str | bool | int | float | list[str]
Attributes = dict[str, Value]

# As in the log.
MODEL_CHARS: Final = 64

# The format that all upstreams speak. Whose model it is nobody can tell from that, and the convention wants this one then.
PROVIDER: Final = gen_ai.GenAiProviderNameValues.OPENAI.value
OPERATION: Final = gen_ai.GenAiOperationNameValues.CHAT.value

# Of a reply that has begun with 200 too.
_FAILED: Final = frozenset({"unavailable", "upstream_error", "drained", "internal_error"})

_NUMBERS: Final = {
    "temperature": gen_ai.GEN_AI_REQUEST_TEMPERATURE,
    "top_p": gen_ai.GEN_AI_REQUEST_TOP_P,
    "frequency_penalty": gen_ai.GEN_AI_REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": gen_ai.GEN_AI_REQUEST_PRESENCE_PENALTY,
}
# Of two names for one thing the newer stands last.
_WHOLE_NUMBERS: Final = {
    "max_tokens": gen_ai.GEN_AI_REQUEST_MAX_TOKENS,
    "max_completion_tokens": gen_ai.GEN_AI_REQUEST_MAX_TOKENS,
    "seed": gen_ai.GEN_AI_REQUEST_SEED,
    "top_k": gen_ai.GEN_AI_REQUEST_TOP_K,
}


def server_attributes_of(ex: Exchange, told: Told) -> Attributes:
    """Of the span of the request."""
    outcome = ex.outcome
    said: Attributes = {
        http_attributes.HTTP_REQUEST_METHOD: told.method,
        http_attributes.HTTP_ROUTE: ex.route,
        url_attributes.URL_PATH: ex.route,
        url_attributes.URL_SCHEME: "http",  # TLS ends before the relay
        "relay.request_id": ex.id,
    }
    if ex.chain:
        said["relay.chain"] = ex.chain
    if told.status:
        said[http_attributes.HTTP_RESPONSE_STATUS_CODE] = told.status
    if outcome is not None:
        said["relay.outcome"] = outcome.kind
        if outcome.error is not None:
            said["relay.code"] = outcome.error.code
    failure = server_failure(ex, told)
    if failure is not None:
        said[error_attributes.ERROR_TYPE] = failure
    if STOPPED_BY in ex:
        said["relay.stopped_by"], said["relay.label"] = ex[STOPPED_BY]
    if ex.moderated_s is not None:
        said["relay.moderated_s"] = ex.moderated_s
    return said


def server_failure(ex: Exchange, told: Told) -> str | None:
    """What has gone wrong; None also where it is the client's to mend."""
    outcome = ex.outcome
    if outcome is None or (told.status < 500 and outcome.kind not in _FAILED):
        return None
    return outcome.error.code if outcome.error is not None else outcome.kind


def client_attributes_of(ex: Exchange, call: Call) -> Attributes:
    """Of the span of the call of the model."""
    request = ex.request
    said: Attributes = {
        gen_ai.GEN_AI_OPERATION_NAME: OPERATION,
        gen_ai.GEN_AI_PROVIDER_NAME: PROVIDER,
        gen_ai.GEN_AI_REQUEST_MODEL: model_of(request),
        gen_ai.GEN_AI_REQUEST_STREAM: request.stream,
        **dict(_parameters(request)),
    }
    if call.server is not None:
        said["relay.upstream"] = call.server.name
        said[server_attributes.SERVER_ADDRESS] = call.server.host
        said[server_attributes.SERVER_PORT] = call.server.port
    told: Mapping[str, Value | None] = {
        gen_ai.GEN_AI_RESPONSE_ID: call.id,
        gen_ai.GEN_AI_RESPONSE_MODEL: call.model,
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: [reason for _, reason in sorted(call.finish_reasons.items())] or None,
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: call.input_tokens,
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: call.output_tokens,
        gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: _first_chunk_s(request, call),
        error_attributes.ERROR_TYPE: client_failure(ex, call),
    }
    said.update((name, value) for name, value in told.items() if value is not None)
    return said


def client_failure(ex: Exchange, call: Call) -> str | None:
    """What the upstream has done wrong, or that it refuses; None also where it was us, or the client, who ended it."""
    error = ex.outcome.error if ex.outcome is not None else None
    if isinstance(error, UpstreamError):
        return error.kind
    return error.code if error is not None and not call.answered and ex.stopped is None else None


def model_of(request: ChatRequest) -> str:
    """Its name, as the client has given it."""
    return request.model[:MODEL_CHARS]


def _first_chunk_s(request: ChatRequest, call: Call) -> float | None:
    return call.first_at - call.asked_at if request.stream and call.first_at is not None else None


def _parameters(request: ChatRequest) -> Iterator[tuple[str, Value]]:
    """What a request sets, where it is of the right type."""
    given = request.fields
    for field, name in _NUMBERS.items():
        value = given.get(field)
        if type(value) is float or (type(value) is int and value.bit_length() < 64):
            yield name, float(value)
    for field, name in _WHOLE_NUMBERS.items():
        value = given.get(field)
        if type(value) is int and value.bit_length() < 64:
            yield name, value
    if request.choices != 1:
        yield gen_ai.GEN_AI_REQUEST_CHOICE_COUNT, request.choices
