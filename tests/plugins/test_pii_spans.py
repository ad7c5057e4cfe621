"""What is personal data, what is not, and that a text in pieces is masked as the whole is."""

import itertools
import json
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from steps import steps

from relay_plugins.pii import spans
from relay_plugins.pii.kinds import MAX_DOMAIN_CHARS, MAX_LOCAL_CHARS
from relay_plugins.pii.masker import Masker
from relay_plugins.pii.reading import MAX_NOTHING, Reading

KINDS = frozenset({"phone", "id_number", "bank_card", "email"})
# The longest that can be held: an address and one character more, with what is not seen between its characters.
MOST_HELD = (MAX_LOCAL_CHARS + MAX_DOMAIN_CHARS + 2) * (MAX_NOTHING + 1)


def masked(text, *, style="label", kinds=KINDS, json=False):
    leaves, held = Masker(kinds, style, {}, json=json).rewrite(text, True)
    assert held == ""
    return leaves


def in_pieces(text, cuts, *, kinds=KINDS, json=False):
    """What leaves of a text that comes in pieces."""
    masker, left, held, start = Masker(kinds, "label", {}, json=json), [], "", 0
    for cut in (*sorted(cuts), len(text)):
        leaves, held = masker.rewrite(held + text[start:cut], False)
        assert len(held) <= MOST_HELD
        left.append(leaves)
        start = cut
    leaves, held = masker.rewrite(held, True)
    assert held == ""
    return "".join([*left, leaves])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        # Chinese mobiles
        ("电话13812345678。", "电话[phone]。"),
        ("Tel:138-1234-5678", "Tel:[phone]"),
        ("138 1234 5678", "[phone]"),
        ("+8613812345678", "[phone]"),
        ("+86 138-1234-5678", "[phone]"),
        ("0086 13812345678", "[phone]"),
        ("0086-138-1234-5678", "[phone]"),
        ("8613812345678", "[phone]"),
        ("(+86)13812345678", "(+86)[phone]"),
        ("wx13812345678, tel_13912345678_2.mp3", "wx[phone], tel_[phone]_2.mp3"),
        ("13812345678、13912345678 13712345678", "[phone]、[phone] [phone]"),
        ("13812345678.", "[phone]."),
        ("13812345678.0", "[phone]"),
        ("13812345678.0, +8613812345678.0. 4111111111111111.0", "[phone], [phone]. [bank_card]"),
        ("张三-13812345678-北京", "张三-[phone]-北京"),
        ('{"phone": 13812345678}', '{"phone": [phone]}'),
        (r"\u7535\u8bdd13812345678\n13912345678", r"\u7535\u8bdd[phone]\n[phone]"),
        # Others
        ("+1 (415) 555-2671", "[phone]"),
        ("+1-415-555-2671 100", "[phone] 100"),
        ("+44 20 7946 0958", "[phone]"),
        ("+33 1 23 45 67 89.", "[phone]."),
        ("+49 1512 3456789", "[phone]"),
        ("+85291234567", "[phone]"),
        ("+86 10 8888 8888", "[phone]"),
        # Identity numbers
        ("身份证11010519491231002X", "身份证[id_number]"),
        ("11010519491231002x!", "[id_number]!"),
        ("110105 19491231 002X", "[id_number]"),
        ("440524188001010014", "440524188001010014"),  # of 1880
        ("440524198001010013", "[id_number]"),
        # Cards
        ("4111 1111 1111 1111", "[bank_card]"),
        ("4111-1111-1111-1111", "[bank_card]"),
        ("5555555555554444", "[bank_card]"),
        ("2223003122003222", "[bank_card]"),
        ("3782 822463 10005", "[bank_card]"),
        ("3530111333300000", "[bank_card]"),
        ("6011111111111117", "[bank_card]"),
        ("30569309025904", "[bank_card]"),
        ("卡号6222021234567890128", "卡号[bank_card]"),
        ("6222 0212 3456 7890 128", "[bank_card]"),
        ("622202 1234567890128 13812345678", "[bank_card] [phone]"),
        # Addresses
        ("联系zhang.san@example.com。", "联系[email]。"),
        ("<a_b-c+d@mail.example.co.uk>", "<[email]>"),
        ("mailto:a@b.cn,c@d.org.", "mailto:[email],[email]."),
        ("foo@bar.com:secret", "[email]:secret"),
        ("13812345678@qq.com", "[email]"),
        ("Name.......foo@bar.com", "Name.......[email]"),
        ("foo@bar.com" + "." * 260, "[email]" + "." * 260),
        ("foo@bar.com" + "-" * 260, "[email]" + "-" * 260),
        ("foo@bar.com.-" + "." * 260 + "a@b.cn", "[email].-" + "." * 260 + "[email]"),
        ("foo@xn--fiqs8s.xn--fiqs8s", "[email]"),
        # As somebody may write them
        ("１３８１２３４５６７８", "[phone]"),
        ("𝟏𝟑𝟖𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖", "[phone]"),
        ("١٣٨١٢٣٤٥٦٧٨", "[phone]"),
        ("1\u200b3\u200d8\ufeff12345678", "[phone]"),
        ("138\u00a01234\u30005678", "[phone]"),
        ("138‑1234‑5678", "[phone]"),
        ("1️⃣3️⃣8️⃣1️⃣2️⃣3️⃣4️⃣5️⃣6️⃣7️⃣8️⃣", "[phone]\ufe0f\u20e3"),
        ("①13812345678", "①[phone]"),
        ("foo＠bar．com", "[email]"),
        ("ｆｏｏ@bar.com", "[email]"),
    ],
)
def test_what_is_masked(text, left):
    assert left == masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "1700000000",  # seconds since 1970
        "1712345678901 1712345678901234 1712345678901234567",  # in milli-, micro- and nanoseconds
        "20240101123045 20240101123045123456",
        "2024-01-01 12:30:45",
        "订单号202401011234567890123456",
        "订单20240113812345678",
        "12812345678 10812345678",  # no mobile begins so
        "138123456789 1381234567",
        "￥13812345678 $4111111111111111",
        "13812345678.50 13812345678.00 13812345678.05 13812345678.0a 0.13812345678 1.13812345678",
        "13,812,345,678",
        "3.14159265358979323846",
        "2.13.812 v1.3.8-12345678",
        "192.168.138.123 10.0.0.1:13812",
        "978-7-111-54493-7 9787111544937",
        "550e8400-e29b-41d4-a716-446655440000",
        "a3f13812345678 13812345678abc x13812345678",
        "d41d8cd98f00b204e9800998ecf8427e",
        "0x13812345678",
        "4111 1111 1111 1112 4111111111111112",  # the wrong check digit
        "6222021234567890127",
        "1234567812345670",  # the right one, but nobody's
        "0000000000000000",
        "41111111111111111111111111111111",
        "2024-1381-2345-678",
        "1 3 8 1 2 3 4 5 6 7 8",
        "13 14 15 16 17 18",
        "1381 2345 67 8",
        "110105194912310021 110105194913310026 990105194912310021",  # check character, month, province
        "+1234 +12 34 a+13 +0123456789012 UTC+08:00 +1.5",
        "x = a+4915123456789",
        "user@host @mention a@ @b.com a@b.c",
        "git@github.com:a/b.git",
        "icon@2x.png react@18.2.0 user@192.168.0.1",
        "a.@b.com foo@-bar.com foo@.com",
        "a" * 65 + "@b.com",
        "用户@例子",
        "for (i = 0; i < 10; i++) { a[i] = 0x1F; }",
        "100% 50/50 7*24 16:9 1e10 -1 +1",
        "第138章 第1234页 5678人",
    ],
)
def test_what_is_not_masked(text):
    assert text == masked(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("13812345678", "138****5678"),
        ("+86 138-1234-5678", "+86 138-****-5678"),
        ("+14155552671", "+141****2671"),
        ("11010519491231002X", "110***********002X"),
        ("4111 1111 1111 1111", "**** **** **** 1111"),
        ("zhang.san@example.com", "z***@example.com"),
        ("１３８１2345678", "１３８****5678"),
        (r"\u0031\u003312345678" + "9", r"\u0031\u00331****6789"),
    ],
)
def test_partly(text, left):
    assert left == masked(text, style="partial")


@pytest.mark.parametrize("text", ["x\n13812345678", "电话13812345678", "x\t6222021234567890128", "张三zhang@qq.com"])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("levels", range(5))
def test_json_inside_json(text, ascii_only, levels):
    found = masked(text)
    for _ in range(levels):
        text, found = (json.dumps({"t": each}, ensure_ascii=ascii_only) for each in (text, found))
    assert found == masked(text) == in_pieces(text, range(len(text)))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_kind_alone(kind):
    text = "13812345678 11010519491231002X 4111111111111111 a@b.com"
    words = dict(zip(("phone", "id_number", "bank_card", "email"), text.split(), strict=True))
    assert text.replace(words[kind], f"[{kind}]") == masked(text, kinds={kind})


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("tel 1381", "1381"),
        ("tel +86 138", "+86 138"),
        ("tel +", "+"),
        ("13812345678", "13812345678"),
        ("13812345678.", "13812345678."),
        ("13812345678 ", ""),
        ("in 2024", "2024"),  # it may be the beginning of an address
        ("in 2024 ", ""),
        ("hello wor", "wor"),
        ("hello wor ", ""),
        ("a@b.com", "a@b.com"),
        ("a@b.com,", ""),
        ("今天天气很好", ""),
        ("今天 ", ""),
        ("价格是100元", ""),
        ("a" * 64, "a" * 64),
        ("a" * 65, ""),
        ("1" * 65, ""),
        ("a@" + "b" * 253, "a@" + "b" * 253),
        ("a@" + "b" * 254, ""),
    ],
)
def test_what_is_held(text, held):
    assert held == Masker(KINDS, "label", {}).rewrite(text, False)[1]


@pytest.mark.parametrize(
    ("text", "held"), [("hello wor", ""), ("in 2024", ""), ("tel 138", "138"), ("a@b", ""), ("x 1", "1")]
)
def test_what_is_held_without_addresses(text, held):
    assert held == Masker(KINDS - {"email"}, "label", {}).rewrite(text, False)[1]


ATOMS = st.sampled_from(
    [
        *"138 1234 5678 13812345678 +86 86 0086 + 1 3 11010519491231002X 110105 19491231 002X X x 4111 1111 4111111111111111 "
        '@ a foo b.com @b.com git . .. ___ - _ ( ) $ : , 中 １ ３８ ， \\ \\u \\u0031 \\n " { } [ ] 415 \\\\\\\\ \\\\n \\\\u0031'.split(),
        " ",
        "\n",
        "\u200b",
        "\u200b" * (MAX_NOTHING + 1),
        "a" * 30,
        "9" * 19,
        "b." * 40,
        "foo@b.com" + "." * 260,
        "@b.com" + "-" * 260,
        ".0",
    ]
)
TEXTS = st.lists(ATOMS, max_size=16).map("".join) | st.text(max_size=30)


@given(
    TEXTS,
    st.lists(st.integers(0, 200), max_size=5) | st.none(),
    st.sets(st.sampled_from(sorted(KINDS)), min_size=1),
    st.booleans(),
)
@example("4111 1111 1111 1111 000.1", None, KINDS, False)
@example("b.com13812345678@b.com", None, KINDS, False)
@example("a@b.com+415110105\n", None, KINDS, True)
def test_a_text_in_pieces_is_masked_as_a_whole_one(text, cuts, kinds, json):
    """Wherever it is cut, and what is held is bounded."""
    kinds = frozenset(kinds)
    cuts = range(len(text)) if cuts is None else [cut for cut in cuts if cut <= len(text)]
    assert masked(text, kinds=kinds, json=json) == in_pieces(text, cuts, kinds=kinds, json=json)


JSON = st.recursive(
    st.sampled_from(
        [
            13812345678,
            4111111111111111,
            -13812345678,
            13812345678.0,
            -13812345678.0,
            1.38e10,
            None,
            True,
            "13812345678",
            "电话13812345678",
            'a@b.com"',
        ]
    ),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text('a"\\电话', max_size=4), below, max_size=3),
    max_leaves=6,
)


@given(JSON, st.booleans(), st.sampled_from(["label", "partial"]))
def test_json_stays_json(value, ascii_only, style):
    """A number that is masked becomes a string; and nothing is left of it, escaped or not."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    left = masked(text, style=style, json=True)
    assert "13812345678" not in json.dumps(json.loads(left))


def test_json_says_which_strings():
    assert '{"a":"[phone]","b":["\\"[phone]"]}' == masked('{"a":13812345678,"b":["\\"13812345678"]}', json=True)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("{'phone': '13812345678'}", "{'phone': '[phone]'}"),
        ("电话13812345678。", "电话[phone]。"),
        ('{"a": "5" tall", "p": "tel:13812345678。"}', '{"a": "5" tall", "p": "tel:[phone]。"}'),
        ("<tel>13812345678</tel>", "<tel>[phone]</tel>"),
        ("tel-13812345678", "tel-[phone]"),
        ("-13812345678", "-0"),
        ("-a@b.com", "-[email]"),
    ],
)
def test_what_is_no_json_is_masked_too(text, left):
    assert left == masked(text, json=True) == in_pieces(text, range(len(text)), json=True)


def test_every_digit_is_read():
    """Of all scripts, as Unicode 15 has them."""
    digits = [char for char in map(chr, range(sys.maxunicode)) if unicodedata.category(char) == "Nd"]
    assert "".join(str(unicodedata.decimal(char)) for char in digits) == Reading("".join(digits)).text
    unseen = [char for char in map(chr, range(sys.maxunicode)) if unicodedata.category(char) == "Cf"]
    assert {"", "\n"} >= {Reading(char).text for char in unseen}


@given(st.text(st.sampled_from("a１\u200b中\\u0031n"), max_size=20))
def test_the_way_back(text):
    """Each character that is read was written somewhere, in the same order, and no two in one place."""
    reading = Reading(text)
    places = [(reading.place(index), reading.place_after(index)) for index in range(len(reading.text))]
    assert all(start < end for start, end in places)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))


@pytest.mark.parametrize(
    "text",
    [
        "1 ",
        "138-",
        "+1 ",
        "1" * 10,
        "a",
        "a@",
        "a.",
        "@",
        "a@b.",
        "-",
        "1\u200b",
        "\\u0031",
        "\\",
        "\\\\u0031",
        "+",
        "13812345678 ",
        "4111 1111 ",
    ],
)
def test_the_work_grows_with_the_text_and_no_faster(text):
    """Twice the text are twice the steps, of Python's and of its patterns (whose work is bounded for each)."""

    def work(length):
        return steps(lambda: masked((text * length)[:length]))

    assert work(8000) <= 2.2 * work(4000) + 200


def test_counts():
    counts = {}
    Masker(KINDS, "label", counts).rewrite("13812345678 13812345678 a@b.com", True)
    assert {"phone": 2, "email": 1} == counts


def test_an_address_that_is_none_leaves_a_number():
    assert ["phone"] == [span.kind for span in spans.find("13812345678@bar ", KINDS).spans]
