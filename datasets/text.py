"""Text: tokenizers, corpora with their splits, and sentences with labels.

    bytes       every byte a token: any file, 256 tokens, never anything outside the vocabulary
    characters  every character of the training text a token
    a file      any tokenizer.json of Hugging Face's `tokenizers` (the extra spiking[text])

A corpus is a file (plain, .gz or .zip), a folder with files for training, validation and test (as WikiText comes), or tokens that are
there already (.npy, read by memory mapping, as a plain file of bytes is). Nothing is downloaded.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from spiking.errors import SpikingError

__all__ = [
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "HFTokenizer",
    "Sentences",
    "Tokenizer",
    "WordTokenizer",
    "load_tokenizer",
    "open_corpus",
    "open_tokens",
    "python_documentation",
    "read_mr",
    "read_sst2",
    "read_text",
    "save_tokens",
]

SPLITS = ("train", "validation", "test")
_NAMES = {"train": ("train",), "validation": ("valid", "validation", "dev", "val"), "test": ("test",)}


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str | bytes) -> np.ndarray:
        """Tokens [N] of a text."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; bytes that are no character become �."""
        ...

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text as it grows with every token: for showing it while it is written."""
        ...

    def to_json(self) -> str:
        """What `load_tokenizer` reads."""
        ...


class ByteTokenizer:
    """Every byte a token.

    >>> ByteTokenizer().encode("né").tolist(), ByteTokenizer().decode([110, 195, 169])
    ([110, 195, 169], 'né')
    """

    vocab_size = 256

    def encode(self, text: str | bytes) -> np.ndarray:
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(int(token) for token in tokens).decode(errors="replace")

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(bytes([int(token)]))
        yield decoder.decode(b"", final=True)

    def to_json(self) -> str:
        return json.dumps({"kind": "bytes"})


class CharTokenizer:
    """Every character of `characters` a token, numbered in their order.

    Errors: SpikingError naming a character outside the vocabulary and its place.

    >>> tokenizer = CharTokenizer.of("to be or not")
    >>> tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("not to"))
    (7, 'not to')
    """

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) != len(characters):
            raise SpikingError(
                f"CharTokenizer: got {len(characters)} characters, {len(set(characters))} of them different; "
                "expected each once, and one at least."
            )
        self.characters = characters
        points = _code_points(characters)
        self._number = np.full(int(points.max()) + 1, -1, np.int32)
        self._number[points] = np.arange(len(points), dtype=np.int32)

    @classmethod
    def of(cls, text: str) -> CharTokenizer:
        """The tokenizer of the characters that a text holds, sorted."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str | bytes) -> np.ndarray:
        text = text if isinstance(text, str) else _as_characters("CharTokenizer", text)
        points = _code_points(text)
        inside = points < len(self._number)
        numbers = np.where(inside, self._number[np.where(inside, points, 0)], -1)
        if numbers.size and numbers.min() < 0:
            at = int((numbers < 0).argmax())
            raise SpikingError(
                f"CharTokenizer: got {text[at]!r} (U+{ord(text[at]):04X}) at character {at}; expected one of the "
                f"{self.vocab_size} characters that the vocabulary holds. Leave it out, or train on bytes."
            )
        return numbers.astype(_smallest(self.vocab_size))

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.characters[int(token)] for token in tokens)

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        return (self.characters[int(token)] for token in tokens)

    def to_json(self) -> str:
        return json.dumps({"kind": "characters", "characters": self.characters})


class WordTokenizer:
    """Every word between white space a token; token 0 is every other word. For classifying short texts.

    >>> tokenizer = WordTokenizer.of(["a good film", "a bad film"])
    >>> tokenizer.decode(tokenizer.encode("a good book"))
    'a good <unk>'
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = ("<unk>", *words)
        self._number = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def of(cls, texts: Iterable[str], least: int = 1) -> WordTokenizer:
        """The tokenizer of the words that appear at least so often, the most frequent first."""
        counts = Counter(word for text in texts for word in text.split() if word != "<unk>")
        return cls([word for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= least])

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def encode(self, text: str | bytes) -> np.ndarray:
        text = text if isinstance(text, str) else _as_characters("WordTokenizer", text)
        return np.array([self._number.get(word, 0) for word in text.split()], _smallest(self.vocab_size))

    def decode(self, tokens: Iterable[int]) -> str:
        return " ".join(self.words[int(token)] for token in tokens)

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        return (f"{' ' if i else ''}{self.words[int(token)]}" for i, token in enumerate(tokens))

    def to_json(self) -> str:
        return json.dumps({"kind": "words", "words": self.words[1:]})


class HFTokenizer:
    """The tokenizer of a tokenizer.json, as the `tokenizers` package writes it. Needs spiking[text]."""

    def __init__(self, content: str) -> None:
        try:
            import tokenizers
        except ImportError as err:
            raise SpikingError(
                "HFTokenizer: tokenizers is not installed. Install spiking[text], or use the bytes or characters of the text."
            ) from err
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as err:  # the package raises Exception itself
            raise SpikingError(f"HFTokenizer: not a tokenizer of the tokenizers package ({err}).") from err

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str | bytes) -> np.ndarray:
        text = text if isinstance(text, str) else _as_characters("HFTokenizer", text)
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, _smallest(self.vocab_size))

    def decode(self, tokens: Iterable[int]) -> str:
        return str(self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False))

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        window: list[int] = []  # tokens since the last white space: their text does not depend on those before
        shown = ""
        for token in tokens:
            window.append(int(token))
            text = self.decode(window)
            if text.endswith("�"):  # a character that is not complete yet
                continue
            yield text[len(shown) :]
            shown = text
            if len(window) > 32:
                window, shown = window[-8:], self.decode(window[-8:])

    def to_json(self) -> str:
        return str(self._tokenizer.to_str())


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a file that was written with `to_json`, or that the `tokenizers` package wrote.

    Errors: SpikingError if there is no such file, or if it holds something else.
    """
    path = Path(source)
    try:
        content = path.read_text(encoding="utf-8")
        found = json.loads(content)
    except OSError as err:
        raise SpikingError(
            f"{path}: {(err.strerror or str(err)).lower()}; expected bytes, characters or a tokenizer file."
        ) from err
    except ValueError as err:
        raise SpikingError(f"{path}: not a tokenizer file ({' '.join(str(err).split())}).") from err
    kind = found.get("kind") if isinstance(found, dict) else None
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "characters" and isinstance(found.get("characters"), str):
        return CharTokenizer(found["characters"])
    if kind == "words" and isinstance(found.get("words"), list):
        return WordTokenizer([str(word) for word in found["words"]])
    if isinstance(found, dict) and "model" in found:
        return HFTokenizer(content)
    raise SpikingError(f"{path}: got JSON of another kind; expected a tokenizer.")


class Corpus(NamedTuple):
    """Tokens of each split ([N]; a split that the source lacks is empty), and what they are."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    tokenizer: Tokenizer
    description: str


def open_corpus(source: str | Path = "", tokenizer: str | Tokenizer = "characters") -> Corpus:
    """Tokens of a corpus, split for training, validation and test.

    source      a text file (.gz and .zip too), a folder with train, valid and test files, or tokens in an .npy file; "" is the
                documentation that Python ships, so that something is always there
    tokenizer   "characters" (of the training text), "bytes", a tokenizer file, or a tokenizer

    Splits: a file called enwik8 the first 90 %, then 5 % and 5 %; another file 90 % and 10 %, without a test split; cut at bytes, or at
    the next character.
    Errors: SpikingError for an empty file, one that is not UTF-8 where characters are asked for, or a text outside the vocabulary.

    >>> corpus = open_corpus()
    >>> len(corpus.train) > 8 * len(corpus.validation)
    True
    """
    given: str | Tokenizer = tokenizer
    if isinstance(given, str) and given != "characters":
        given = ByteTokenizer() if given == "bytes" else load_tokenizer(given)
    path = Path(source) if str(source) else None
    if path is not None and path.suffix == ".npy":
        if isinstance(given, str):
            raise SpikingError(f"{path}: got tokens without a tokenizer; expected the file of the one that made them.")
        tokens = open_tokens(path, given.vocab_size)
        return _corpus(path.name, [tokens[a:b] for a, b in _cuts(path.name, len(tokens))], given)
    if path is not None and path.suffix not in (".gz", ".zip") and path.is_file() and isinstance(given, ByteTokenizer):
        raw = _mapped(path)
        return _corpus(path.name, [raw[a:b] for a, b in _cuts(path.name, len(raw))], given)
    name, parts = _parts(path)
    if isinstance(given, ByteTokenizer):
        return _corpus(name, [given.encode(part) for part in parts], given)
    texts = [_as_characters(name, part) for part in parts]
    made: Tokenizer = CharTokenizer.of("".join(texts)) if isinstance(given, str) else given
    return _corpus(name, [made.encode(text) for text in texts], made)


def read_text(path: str | Path) -> bytes:
    """What a plain, .gz or .zip file holds (of a .zip its only file). Errors: SpikingError if it cannot be read, or is empty."""
    path = Path(path)
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    raise SpikingError(f"{path}: got {len(names)} files; expected one text.")
                content = archive.read(names[0])
        else:
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile) as err:
        raise SpikingError(f"{path}: not a whole {path.suffix} file ({err}). Download it again.") from err
    except OSError as err:
        raise SpikingError(f"{path}: {(err.strerror or str(err)).lower()}; expected a text.") from err
    if not content:
        raise SpikingError(f"{path}: the file is empty; expected a text.")
    return content


def python_documentation() -> bytes:
    """About 700 kB of English: the help texts of the Python that runs (pydoc's topics), one after the other."""
    from pydoc_data import topics

    return "\n".join(topics.topics[name].strip() for name in sorted(topics.topics)).encode()


def save_tokens(path: str | Path, tokens: np.ndarray, vocab_size: int) -> None:
    """Write tokens in the fewest bytes each, as an .npy file for `open_tokens`."""
    np.save(path, np.asarray(tokens).astype(_smallest(vocab_size)))


def open_tokens(path: str | Path, vocab_size: int) -> np.ndarray:
    """Tokens of an .npy file, memory-mapped: a file larger than the memory is no problem.

    Errors: SpikingError if it is not a vector of whole numbers, or one of them lies outside the vocabulary.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as err:
        raise SpikingError(f"{path}: not an .npy file that can be mapped ({' '.join(str(err).split())}).") from err
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui" or not tokens.size:
        raise SpikingError(
            f"{path}: got {tokens.dtype} of shape {list(tokens.shape)}; expected tokens, whole numbers [N]."
        )
    for first in range(0, len(tokens), 1 << 24):  # chunks: the file may be larger than the memory
        part = tokens[first : first + (1 << 24)]
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= vocab_size:
            raise SpikingError(
                f"{path}: got token {low if low < 0 else high}; expected 0 to {vocab_size - 1}. "
                "Name the tokenizer that made the file."
            )
    return tokens


class Sentences(NamedTuple):
    """Texts and their labels (0 negative, 1 positive)."""

    texts: list[str]
    labels: np.ndarray


def read_sst2(folder: str | Path) -> dict[str, Sentences]:
    """SST-2, whole sentences: 6,920 to train, 872 for validation, 1,821 to test, as lines `sentence<TAB>label`.

    Files: [sst2_sentences_]train.tsv, dev.tsv and test.tsv, .gz too; a header line is skipped.
    Source: Socher et al. 2013 (EMNLP), binary labels without the neutral sentences.
    Errors: SpikingError naming a file that is missing, or the line that is something else.
    """
    found = {}
    for split, name in zip(SPLITS, ("train", "dev", "test")):
        path = _first_of(Path(folder), [f"{before}{name}.tsv" for before in ("", "sst2_sentences_")])
        lines = _as_characters(str(path), read_text(path)).splitlines()
        first = 1 if lines[0].strip().lower().endswith("\tlabel") else 0
        texts, labels = [], []
        for at, line in enumerate(lines[first:], first + 1):
            text, _, label = line.rpartition("\t")
            if label.strip() not in ("0", "1"):
                raise SpikingError(f"{path}: line {at}: got {label.strip()!r}; expected a label 0 or 1 behind a tab.")
            texts.append(text.strip())
            labels.append(int(label))
        found[split] = Sentences(texts, np.array(labels))
    return found


def read_mr(folder: str | Path, seed: int = 0) -> dict[str, Sentences]:
    """Movie reviews: 5,331 positive and as many negative sentences, split 80/10/10 by the seed (there is no standard split).

    Files: rt-polarity.pos and rt-polarity.neg, .gz too.   Source: Pang, Lee 2005 (ACL), sentence polarity dataset v1.0.
    """
    texts: list[str] = []
    sizes = []
    for name in ("rt-polarity.neg", "rt-polarity.pos"):
        path = _first_of(Path(folder), [f"{before}{name}" for before in ("", "mr_")])
        raw = read_text(path)
        try:
            content = raw.decode()
        except UnicodeDecodeError:
            content = raw.decode("latin-1")  # as the authors distribute it
        lines = [line.strip() for line in content.split("\n") if line.strip()]
        texts += lines
        sizes.append(len(lines))
    labels = np.repeat([0, 1], sizes)
    order = np.random.default_rng(seed).permutation(len(texts))
    edges = [round(len(texts) * share) for share in (0, 0.8, 0.9, 1)]
    return {
        split: Sentences([texts[i] for i in order[a:b]], labels[order[a:b]])
        for split, (a, b) in zip(SPLITS, pairwise(edges))
    }


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _smallest(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _as_characters(where: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as err:
        raise SpikingError(
            f"{where}: got byte 0x{raw[err.start]:02X} at {err.start}, which is no UTF-8; expected text. "
            "Convert the file, or train on bytes."
        ) from err


def _mapped(path: Path) -> np.ndarray:
    if not os.path.getsize(path):
        raise SpikingError(f"{path}: the file is empty; expected a text.")
    return np.memmap(path, np.uint8, mode="r")


def _parts(path: Path | None) -> tuple[str, list[bytes]]:
    """Name and the three splits of a source."""
    if path is not None and path.is_dir():
        return path.name, _folder(path)
    content = python_documentation() if path is None else read_text(path)
    name = "Python's documentation" if path is None else path.name
    edges = [0]
    for _, end in _cuts(name, len(content)):
        while 0 < end < len(content) and content[end] & 0xC0 == 0x80:  # inside a character
            end += 1
        edges.append(end)
    return name, [content[a:b] for a, b in pairwise(edges)]


def _cuts(name: str, size: int) -> list[tuple[int, int]]:
    """Begin and end of each split."""
    shares = (0.9, 0.95, 1.0) if name.startswith("enwik8") else (0.9, 1.0, 1.0)
    edges = [0, *(int(size * share) for share in shares)]
    return list(pairwise(edges))


def _folder(path: Path) -> list[bytes]:
    parts = []
    for split in SPLITS:
        files = [f for f in sorted(path.iterdir()) if f.is_file() and _belongs(f.name, split)]
        if len(files) > 1 or (not files and split == "train"):
            raise SpikingError(
                f"{path}: got {len(files)} files for {split} ({', '.join(f.name for f in files)}); expected one, named such as "
                f"wiki.{_NAMES[split][0]}.tokens or {_NAMES[split][0]}.txt."
            )
        parts.append(read_text(files[0]) if files else b"")
    return parts


def _belongs(name: str, split: str) -> bool:
    words = name.lower().replace("-", ".").replace("_", ".").split(".")
    return any(word in words for word in _NAMES[split]) and words[-1] in ("txt", "tokens", "raw", "gz")


def _first_of(folder: Path, names: list[str]) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise SpikingError(f"{folder}: there is no {names[0]} here; expected it, or {names[0]}.gz.")


def _corpus(name: str, parts: list[np.ndarray], tokenizer: Tokenizer) -> Corpus:
    kind = {ByteTokenizer: "bytes", CharTokenizer: "characters"}.get(type(tokenizer), "tokens")
    sizes = ", ".join(f"{len(part):,} {split}" for part, split in zip(parts, SPLITS) if len(part))
    described = f"{name}: {sizes} {kind}, {tokenizer.vocab_size} different"
    return Corpus(parts[0], parts[1], parts[2], tokenizer, described)
