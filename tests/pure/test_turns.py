"""A history in one string: the example and the script of the page that has the format, and any other string."""

import json
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from py_mini_racer import JSEvalException, MiniRacer

from relay.pure import turns as module
from relay.pure.turns import SEPARATOR, TooManyTurns, turns

PLENTY = 1_000_000


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


# ------------------------------------------------------------------------------------------- what the page shows

# In prose: what `keyword` holds when a second question is asked.
PROSE = " Q:你好! A:你好,有什么可以帮助你的。 Q:今天天气怎么样?"

# "JS方法如下", as printed, but for its line ends: where the page is kept they have become spaces, which would make
# everything after the first `//` a comment.
DATA = """\
that.list={
wen:'老婆和妈妈同时掉水里,我要先救谁?',
da:'这种情况下,是理所当然应该先救妈妈的。救人的原则是先救生命危险的人,有可能先救老婆,这取决于老婆和妈妈的实际情况,而且也要考虑到逃生的可能性。假如老婆游泳能力很强,可能先救老婆,能在短时间内将她救出水面,否则,先救妈妈也是明智之举。 '
};
//新问题
newQ:'我不同意?';
"""
LOOP = """\
//将之前的所有问答列表进行循环
that.list.forEach((v,k)=>{
//将问和答案组合,<|endoftext|>是用于给OPENAI官方接口进行分段识别的
keyword=keyword+' Q: '+v.wen + ' A: '+v.da+'。 <|endoftext|> ';
})
//将新的问题组合
keyword=keyword+'Q: '+newQ + 'A: ';
"""
START = "keyword='';\n"

WEN = "老婆和妈妈同时掉水里,我要先救谁?"
# The answer as printed ends with a space, to which the script adds a full stop of its own.
DA = "这种情况下,是理所当然应该先救妈妈的。救人的原则是先救生命危险的人,有可能先救老婆,这取决于老婆和妈妈的实际情况,而且也要考虑到逃生的可能性。假如老婆游泳能力很强,可能先救老婆,能在短时间内将她救出水面,否则,先救妈妈也是明智之举。 。"


@pytest.fixture(scope="module")
def js() -> Iterator[MiniRacer]:
    """A JavaScript engine (V8) with an object for the script to write its list to."""
    with MiniRacer() as engine:
        engine.eval("var that = {}, newQ")
        yield engine


def keyword(js: MiniRacer, pairs: list[tuple[str, str]], question: str) -> str:
    """What the script makes of these data. Its loop and its last line run as printed; its data are put in their place."""
    data = f"that.list={json.dumps([{'wen': wen, 'da': da} for wen, da in pairs])}; newQ={json.dumps(question)};"
    return str(js.eval(START + data + LOOP + "keyword"))


def test_the_example_in_prose() -> None:
    """It is a question, its answer and the next question."""
    assert [user("你好!"), assistant("你好,有什么可以帮助你的。"), user("今天天气怎么样?")] == turns(PROSE, PLENTY)


def test_the_script_cannot_run_as_printed(js: MiniRacer) -> None:
    """Its list is one object, and objects have no `forEach`; `newQ:` is a label. So the next test changes both."""
    with pytest.raises(JSEvalException, match="forEach is not a function"):
        js.eval(START + DATA + LOOP)


def test_the_script(js: MiniRacer) -> None:
    """With brackets round its list and `=` for the label it gives one string, and that is what it was made of."""
    data = DATA.replace("={", "=[{").replace("};", "}];").replace("newQ:", "newQ=")
    made = js.eval(START + data + LOOP + "keyword")
    assert f" Q: {WEN} A: {DA} <|endoftext|> Q: 我不同意?A: " == made
    assert [user(WEN), assistant(DA), user("我不同意?")] == turns(made, PLENTY)


def test_the_first_question_of_the_script(js: MiniRacer) -> None:
    """Without a history there is only the question, with the prompt for its answer glued to it."""
    assert "Q: 你好A: " == keyword(js, [], "你好")
    assert [user("你好")] == turns("Q: 你好A: ", PLENTY)


# Without colons there is no marker in it, and without `<` no separator.
SAID = st.text(st.characters(exclude_characters=":：<", exclude_categories=["Cs"]))


@given(pairs=st.lists(st.tuples(SAID, SAID), max_size=4), question=SAID)
@example(pairs=[("Q", "A"), ("A", "Q")], question="DNA")
@example(pairs=[("", ""), ("\n", "\n")], question="")
def test_what_the_script_puts_together_is_taken_apart(
    js: MiniRacer, pairs: list[tuple[str, str]], question: str
) -> None:
    """For any list and question: the turns that were put in, each answer with the script's full stop, empty ones out."""
    put_in = [turn for wen, da in pairs for turn in (user(wen.strip()), assistant(f"{da}。".strip()))]
    expected = [turn for turn in (*put_in, user(question.strip())) if turn["content"]]
    assert expected == turns(keyword(js, pairs, question), PLENTY)


# ------------------------------------------------------------------------------------------------- any other string


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("你是谁?", [user("你是谁?")], id="no marker"),
        pytest.param(" \n你是谁? ", [user("你是谁?")], id="no marker, trimmed"),
        pytest.param("Q:a", [user("a")], id="at the start"),
        pytest.param(
            "Q:a\nA:b\tQ:c\u3000A:d", [user("a"), assistant("b"), user("c"), assistant("d")], id="white space"
        ),
        pytest.param("Q : a A   ：b", [user("a"), assistant("b")], id="spaces and wide colons"),
        pytest.param("Q:a<|endoftext|>A:b", [user("a"), assistant("b")], id="after a separator"),
        pytest.param("A:b Q:c", [assistant("b"), user("c")], id="an answer first"),
        pytest.param("Q:a Q:b", [user("a"), user("b")], id="two questions"),
        pytest.param("Q:a A:b A:c Q:d", [user("a"), assistant("b"), assistant("c"), user("d")], id="two answers"),
        pytest.param("Be brief. Q:a", [user("Be brief."), user("a")], id="text before the first marker"),
        pytest.param("Q: A:b Q: Q:c", [assistant("b"), user("c")], id="empty turns"),
        pytest.param("Q:a A:", [user("a")], id="the prompt"),
        pytest.param("Q:a\nA : \n", [user("a")], id="the prompt, with spaces"),
        pytest.param("Q:a?A:", [user("a?")], id="the prompt, glued"),
        pytest.param("Q:a?A ： ", [user("a?")], id="the prompt, glued, with spaces"),
        pytest.param("Q:a?A: <|endoftext|> ", [user("a?")], id="the prompt, glued, and a separator"),
        pytest.param("a A:", [user("a")], id="the prompt after text without a marker"),
        pytest.param("aA:", [user("aA:")], id="glued to text without a marker"),
        pytest.param("Q:a A:bA:", [user("a"), assistant("bA:")], id="glued to an answer"),
        pytest.param("Q:a?A:b", [user("a?A:b")], id="glued, and not at the end"),
        pytest.param("Q:a?A: A:", [user("a?A:")], id="glued, and a prompt"),
        pytest.param("Q:A:", [], id="glued to nothing"),
        pytest.param("FAQ: x (A: y) DNA:z", [user("FAQ: x (A: y) DNA:z")], id="letters within words"),
        pytest.param("q:a a:b QA:c Q;d Q", [user("q:a a:b QA:c Q;d Q")], id="almost markers"),
        pytest.param("Q\n:a", [user("Q\n:a")], id="a line end within"),
        pytest.param("Q:Q:a", [user("Q:a")], id="a marker right after one"),
        pytest.param("a<|endoftext|>b", [user("a<|endoftext|>b")], id="a separator within"),
        pytest.param("Q:a <|endoftext|> <|endoftext|>\n", [user("a")], id="separators at the end"),
        pytest.param("Q:<|endoftext|>a", [user("<|endoftext|>a")], id="a separator at the start"),
        pytest.param("<|endoftext|> Q:a", [user("a")], id="a separator before the first marker"),
        pytest.param("", [], id="nothing"),
        pytest.param("\n", [], id="white space alone"),
        pytest.param(" Q: <|endoftext|> A: ", [], id="markers alone"),
    ],
)
def test_other_strings(text: str, expected: list[dict[str, str]]) -> None:
    """What the page leaves open, decided."""
    assert expected == turns(text, PLENTY)


def plainly(text: str) -> list[dict[str, str]]:
    """The same, as one would write it without a care for time."""
    marks = [(0, 0, "Q")]
    position = 0
    while position < len(text):
        before = text[:position]
        if text[position] in "QA" and (not before or before[-1].isspace() or before.endswith(SEPARATOR)):
            rest = text[position + 1 :].lstrip(" ")
            if rest[:1] in (":", "："):
                marks.append((position, len(text) - len(rest) + 1, text[position]))
                position = marks[-1][1] - 1
        position += 1
    found = []
    ends = [at for at, _, _ in marks[1:]] + [len(text)]
    for number, ((_, start, letter), end) in enumerate(zip(marks, ends, strict=True)):
        said = trimmed(text[start:end])
        if 0 < number == len(marks) - 1 and letter == "Q" and (prompt := re.search(r"A *[:：]$", said)):
            said = trimmed(said[: prompt.start()])
        if said:
            found.append(user(said) if letter == "Q" else assistant(said))
    return found


def trimmed(text: str) -> str:
    while text != (shorter := text.strip().removesuffix(SEPARATOR)):
        text = shorter
    return text


PIECES = st.sampled_from(["Q", "A", ":", "：", " ", "\n", "\x1f", "\u3000", SEPARATOR, "<|", "|>", "x", "。"])


@given(st.lists(PIECES).map("".join) | st.text())
def test_it_reads_as_the_plain_way_does(text: str) -> None:
    """For any string, of markers and pieces of them above all."""
    assert plainly(text) == turns(text, PLENTY)


@given(st.lists(PIECES).map("".join))
def test_no_turn_is_empty_or_untrimmed(text: str) -> None:
    """What a model is shown begins and ends with something, and is found in the string as it stands."""
    for turn in turns(text, PLENTY):
        assert turn["content"] == turn["content"].strip() != ""
        assert not turn["content"].endswith(SEPARATOR)
        assert turn["content"] in text


# -------------------------------------------------------------------------------------------------------- the work

SIZE = 2_000_000
WORST = {
    "no marker": "今天天气怎么样",
    "letters": "Q",
    "letters that could begin a marker": "Q ",
    "colons": ":",
    "spaces": " ",
    "letters with spaces": "A" + " " * 1000,
    "glued markers": "Q:",
    "words that end like one": "xA:",
    "separators": SEPARATOR,
    "halves of separators": "<|endoftext|",
    "separators with a letter": SEPARATOR + "Q",
    "markers": " Q:",
    "markers with text": " Q: x A: y",
    "markers after separators": SEPARATOR + "A:",
    "prompts": "A: \n",
}


def calls(text: str, most: int) -> int:
    """How many functions are called to read it, those in C counted."""
    count = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        turns(text, most)
    except TooManyTurns:
        pass
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("ending", ["", "A:"])
@pytest.mark.parametrize("piece", WORST.values(), ids=WORST)
def test_the_steps_are_as_many_as_markers_and_separators(piece: str, ending: str) -> None:
    """For 2 MB of the worst: a few calls for each of them, and besides these a few. Nothing after too many markers."""
    most = 10_000
    text = "Q:" + piece * (SIZE // len(piece)) + ending
    markers = len(re.findall(r"(?:(?<!\S)|(?<=>))[QA] *:", text))
    separators = text.count(SEPARATOR) if markers <= most else 0
    assert calls(text, most) <= 30 + 10 * min(markers, most) + 3 * separators


def test_the_pattern_is_linear() -> None:
    """All that it repeats are spaces after a letter, and what it has taken of them it does not give back."""
    bare = re.sub(r"\\.", "", module._MARKER.pattern)
    assert [" *+", " *+"] == re.findall(r".(?<!\()[*+?{]+", bare)


def test_there_is_an_end_to_the_turns() -> None:
    """A string with more markers than are wanted is not read to its end."""
    assert 3 == len(turns("Q:a A:b Q:c", 3))
    with pytest.raises(TooManyTurns):
        turns("Q:a A:b Q:c A:", 3)
