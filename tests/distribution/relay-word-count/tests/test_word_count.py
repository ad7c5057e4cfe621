"""Run by pytest alone: `relay_run` and the others come with moderelay."""

import pytest
from relay_word_count import WORDS, WordCount

pytestmark = pytest.mark.usefixtures("relay_tidy")


@pytest.mark.parametrize("cuts", [(), None], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("answer", [["One two three."], ["One t", "wo", " ", "three."]])
async def test_words_are_counted(relay_run, answer, cuts):
    ran = await relay_run(WordCount(), answer=answer, cuts=cuts)
    assert ran.exchange[WORDS].words == 3
    assert ran.reply.headers["x-prompt-words"] == "1"


async def test_of_a_reply_that_is_not_streamed(relay_run):
    assert (await relay_run(WordCount(), answer=["One two."], stream=False)).exchange[WORDS].words == 2


async def test_too_many(relay_run):
    ran = await relay_run(WordCount(max_prompt_words=1), messages=[{"role": "user", "content": "Is it?"}])
    assert (ran.reply.json["error"]["code"], ran.sent) == ("too_many_words", None)


async def test_the_contract(relay_contract):
    await relay_contract(WordCount())


def test_a_limit_that_is_none():
    with pytest.raises(ValueError, match="below 1"):
        WordCount(max_prompt_words=0)
