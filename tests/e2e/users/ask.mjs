// Asks through the relay with the official openai-node, unmodified, and prints what came as one JSON object.
//
// The one argument is JSON: {"way": one of WAYS, "options": of the client, "body": of the request}. What is printed:
// what the way returns, or {"error": {...}} with what was thrown.

import OpenAI from 'openai';
import { makeParseableResponseFormat } from 'openai/lib/parser';

// What of an answer the tests look at, by choice.
const told = (answer) => ({
  id: answer._request_id ?? null,
  texts: answer.choices.map((choice) => choice.message.content),
  calls: answer.choices.map((choice) => (choice.message.tool_calls ?? []).map((call) => call.function)),
  parsed: answer.choices.map((choice) => choice.message.parsed ?? null),
  finishes: answer.choices.map((choice) => choice.finish_reason),
  usage: answer.usage?.total_tokens ?? null,
});

async function pieces(stream, seen) {
  for await (const chunk of stream) {
    for (const choice of chunk.choices) {
      if (choice.delta.content) seen.push([choice.index, choice.delta.content]);
    }
  }
  return { pieces: seen };
}

const WAYS = {
  models: async (client) => {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    return { models };
  },

  whole: async (client, body) => told(await client.chat.completions.create(body)),

  pieces: async (client, body, seen) => pieces(await client.chat.completions.create({ ...body, stream: true }), seen),

  // The helper that puts a whole answer together out of a stream.
  gathered: async (client, body) => told(await client.chat.completions.stream(body).finalChatCompletion()),

  parsed: async (client, body) => {
    const format = makeParseableResponseFormat(body.response_format, JSON.parse);
    return told(await client.chat.completions.parse({ ...body, response_format: format }));
  },

  // The helper that calls functions and asks again with what they give.
  run: async (client, body) => {
    const given = [];
    const weather = (city) => given.push(city) && 'rain';
    const [tool] = body.tools;
    const tools = [{ ...tool, function: { ...tool.function, function: weather, parse: JSON.parse } }];
    const runner = client.chat.completions.runTools({ ...body, tools });
    return { text: await runner.finalContent(), given };
  },

  // A client that leaves at the first word.
  abort: async (client, body) => {
    const stream = await client.chat.completions.create({ ...body, stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0].delta.content) stream.controller.abort();
    }
    return { aborted: stream.controller.signal.aborted };
  },

  // A client that has waited enough before anything has come.
  impatient: async (client, body) => told(await client.chat.completions.create(body, { timeout: 100 })),
};

const { way, options, body } = JSON.parse(process.argv[2]);
const seen = [];
let result;
try {
  result = await WAYS[way](new OpenAI(options), body, seen);
} catch (error) {
  const { name, message, status, code, type, param, requestID } = error;
  // Whether the class is one that the SDK exports, so that a user can catch it.
  const kind = error.constructor.name;
  const exported = kind in OpenAI || kind.endsWith('FinishReasonError');
  result = { seen, error: { kind: exported ? kind : `a bare ${kind}`, name, message, status, code, type, param, id: requestID } };
}
console.log(JSON.stringify(result));
