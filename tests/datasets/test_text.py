"""Text: tokenizers lose nothing, corpora are split as their users expect, sentences have their labels, bad files are named."""

import gzip
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spiking.datasets import text as t

from spiking import SpikingError


def bpe():
    """A small byte-level BPE tokenizer as JSON, as the tokenizers package writes it."""
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["the cat and the dog and the tree"] * 20, trainer)
    return made.to_str()


@given(st.text(min_size=1))
def test_nothing_is_lost(text):
    encoded = text.encode(errors="ignore").decode()  # no lone surrogates
    made = [t.ByteTokenizer()] + ([t.CharTokenizer.of(encoded)] if encoded else [])
    for tokenizer in made:
        tokens = tokenizer.encode(encoded)
        assert tokenizer.decode(tokens) == encoded
        assert "".join(tokenizer.pieces(tokens)) == encoded
        assert not tokens.size or int(tokens.max()) < tokenizer.vocab_size


def test_a_tokenizer_file_gives_the_same_tokens(tmp_path):
    for tokenizer in (t.ByteTokenizer(), t.CharTokenizer.of("naïve €"), t.WordTokenizer.of(["a b b", "b c"])):
        (tmp_path / "t.json").write_text(tokenizer.to_json(), encoding="utf-8")
        again = t.load_tokenizer(tmp_path / "t.json")
        assert type(again) is type(tokenizer)
        assert again.encode("a b").tolist() == tokenizer.encode("a b").tolist() if hasattr(again, "words") else True
        assert again.vocab_size == tokenizer.vocab_size


def test_words_that_are_rare_or_new_are_one_token():
    tokenizer = t.WordTokenizer.of(["a good film", "a bad film"], least=2)
    assert tokenizer.words == ("<unk>", "a", "film")
    assert tokenizer.encode("a good book").tolist() == [1, 0, 0]
    assert "".join(tokenizer.pieces([1, 2])) == "a film"


def test_a_hugging_face_tokenizer_reads_and_writes(tmp_path):
    (tmp_path / "tokenizer.json").write_text(bpe(), encoding="utf-8")
    tokenizer = t.load_tokenizer(tmp_path / "tokenizer.json")
    text = "the tree, naïve and €uro: " + "the dog " * 30
    tokens = tokenizer.encode(text)
    assert len(tokens) < len(text.encode())
    assert tokens.dtype == np.uint16
    assert tokenizer.decode(tokens) == text
    assert "".join(tokenizer.pieces(tokens)) == text
    assert json.loads(tokenizer.to_json())["model"]["type"] == "BPE"


def test_the_embedded_text_is_there_and_split():
    corpus = t.open_corpus()
    whole = corpus.tokenizer.decode(np.concatenate(corpus[:3]))
    assert whole.encode() == t.python_documentation()
    assert "statement" in whole
    assert len(corpus.validation) == pytest.approx(len(whole) / 10, rel=0.02)
    assert len(corpus.test) == 0


def test_real_files_have_their_published_sizes(shared):
    folder = shared / "data" / "text"
    play = t.open_corpus(folder / "tinyshakespeare.txt")
    assert [len(part) for part in play[:3]] == [1_003_854, 111_540, 0]
    assert play.tokenizer.vocab_size == 65
    wiki = t.open_corpus(folder / "enwik8-first4M.gz", "bytes")
    assert [len(part) for part in wiki[:3]] == [3_600_000, 200_000, 200_000]


def test_real_sentences_have_their_published_sizes(shared):
    folder = shared / "data" / "text"
    sst2 = t.read_sst2(folder)
    assert [len(part.texts) for part in sst2.values()] == [6_920, 872, 1_821]
    assert sst2["test"].labels.sum() == 909  # 909 positive, 912 negative
    mr = t.read_mr(folder, seed=1)
    assert sum(len(part.texts) for part in mr.values()) == 10_662
    assert sum(int(part.labels.sum()) for part in mr.values()) == 5_331
    assert t.read_mr(folder, seed=2)["test"].texts != mr["test"].texts


@pytest.mark.parametrize("kind", ["txt", "gz", "zip"])
@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_plain_and_packed_files_are_the_same_text(tmp_path, kind, tokenizer):
    text = "häuser am see\n" * 50
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", text)
    else:
        path.write_bytes(gzip.compress(text.encode()) if kind == "gz" else text.encode())
    corpus = t.open_corpus(path, tokenizer)
    assert corpus.tokenizer.decode(np.concatenate(corpus[:3])) == text
    assert isinstance(corpus.train, np.memmap) == (kind == "txt" and tokenizer == "bytes")


def test_a_folder_has_its_own_splits(tmp_path):
    for name, text in (("wiki.train.tokens", "abcabc"), ("wiki.valid.tokens", "ab"), ("wiki.test.tokens", "c")):
        (tmp_path / name).write_text(text)
    corpus = t.open_corpus(tmp_path)
    assert [corpus.tokenizer.decode(part) for part in corpus[:3]] == ["abcabc", "ab", "c"]
    assert "6 train, 2 validation, 1 test characters, 3 different" in corpus.description
    (tmp_path / "train.txt").write_text("x")
    with pytest.raises(SpikingError, match=r"got 2 files for train \(train\.txt, wiki\.train\.tokens\); expected one"):
        t.open_corpus(tmp_path)


def test_token_files_are_mapped(tmp_path):
    tokenizer = t.CharTokenizer.of("abcdefghij")
    t.save_tokens(tmp_path / "t.npy", np.arange(1000) % 10, 10)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    corpus = t.open_corpus(tmp_path / "t.npy", str(tmp_path / "tokenizer.json"))
    assert isinstance(corpus.train, np.memmap)
    assert corpus.train.dtype == np.uint8
    assert (len(corpus.train), len(corpus.validation)) == (900, 100)
    with pytest.raises(SpikingError, match=r"t\.npy: got token 9; expected 0 to 1\. Name the tokenizer"):
        t.open_corpus(tmp_path / "t.npy", t.CharTokenizer("ab"))
    with pytest.raises(SpikingError, match=r"t\.npy: got tokens without a tokenizer"):
        t.open_corpus(tmp_path / "t.npy")
    np.save(tmp_path / "t.npy", np.zeros((2, 2)))
    with pytest.raises(SpikingError, match=r"t\.npy: got float64 of shape \[2, 2\]; expected tokens"):
        t.open_corpus(tmp_path / "t.npy", tokenizer)


def test_text_outside_the_vocabulary_is_named():
    with pytest.raises(
        SpikingError, match=r"CharTokenizer: got 'é' \(U\+00E9\) at character 3; expected one of the 3 "
    ):
        t.CharTokenizer("caf").encode("café")
    with pytest.raises(SpikingError, match=r"CharTokenizer: got 2 characters, 1 of them different"):
        t.CharTokenizer("aa")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: the file is empty; expected a text"),
        ("a.gz", gzip.compress(b""), r"a\.gz: the file is empty"),
        ("a.gz", b"\x1f\x8b nothing", r"a\.gz: not a whole \.gz file"),
        ("a.zip", b"PK", r"a\.zip: not a whole \.zip file"),
        ("a.txt", b"caf\xe9 noir", r"a\.txt: got byte 0xE9 at 3, which is no UTF-8; expected text\. Convert the file, or train on"),
    ],
)  # fmt: skip
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpikingError, match=message):
        t.open_corpus(tmp_path / name)


def test_an_empty_file_of_bytes_and_a_missing_one_are_named(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(SpikingError, match=r"a\.txt: the file is empty"):
        t.open_corpus(tmp_path / "a.txt", "bytes")
    with pytest.raises(SpikingError, match=r"b\.txt: no such file or directory; expected a text"):
        t.open_corpus(tmp_path / "b.txt")
    with pytest.raises(
        SpikingError, match=r"words: no such file or directory; expected bytes, characters or a tokenizer"
    ):
        t.open_corpus(tmp_path / "a.txt", "words")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a", "a")
        archive.writestr("b", "b")
    with pytest.raises(SpikingError, match=r"two\.zip: got 2 files; expected one text"):
        t.read_text(tmp_path / "two.zip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"t\.json: not a tokenizer file"),
        ('{"a": 1}', r"t\.json: got JSON of another kind; expected a tokenizer"),
    ],
)
def test_bad_tokenizer_files_are_named(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(SpikingError, match=message):
        t.load_tokenizer(tmp_path / "t.json")


def test_a_tokenizer_of_the_package_that_is_broken_is_named():
    bpe()
    with pytest.raises(SpikingError, match=r"HFTokenizer: not a tokenizer of the tokenizers package"):
        t.HFTokenizer('{"model": 1}')


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(SpikingError, match=r"HFTokenizer: tokenizers is not installed\. Install spiking\[text\]"):
        t.HFTokenizer("{}")


def test_sentences_without_a_label_or_file_are_named(tmp_path):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\ngood\t1\nbad\n")
    with pytest.raises(SpikingError, match=r"train\.tsv: line 3: got 'bad'; expected a label 0 or 1 behind a tab"):
        t.read_sst2(tmp_path)
    with pytest.raises(SpikingError, match=r"there is no rt-polarity\.neg here"):
        t.read_mr(tmp_path)
