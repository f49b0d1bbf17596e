"""Token ids of imported and exported folders equal those of the library that transformers calls."""

import json

import numpy as np
import pytest
from fixtures import small_tokenizers
from tokenizers import Tokenizer

from lm.data import tokenizers

ADDED = {"id": 0, "content": "<|tool|>", "special": True, "normalized": False}
ADDED |= {"single_word": False, "lstrip": False, "rstrip": False}


def random_texts(n: int) -> list[str]:
    """Return texts of random characters of all planes, controls, digits, spaces and names."""
    rng = np.random.default_rng(0)
    ranges = [(1, 128), (1, 5), (0xA0, 0x250), (0x4E00, 0x4E80), (0x1F600, 0x1F640), (0x300, 0x36F)]
    texts = []
    for _ in range(n):
        parts = []
        for _ in range(rng.integers(1, 12)):
            low, high = ranges[rng.integers(len(ranges))]
            parts.append("".join(map(chr, rng.integers(low, high, rng.integers(1, 6)))))
            parts.append(rng.choice(["", " ", "  ", "\n", "<|tool|>", "▁", "\u200d"]))
        texts.append("".join(parts).lstrip("\x01"))
    return texts


@pytest.mark.parametrize("kind", ["byte_level_bpe", "metaspace_bpe"])
def test_ids_of_random_unicode_are_those_of_the_library(kind, tmp_path):
    """The folder of a checkpoint has an end token and a special token, which prompts may name.

    A text that begins with U+0001 is a conversation, and is encoded as in its training.
    """
    content = json.loads(getattr(small_tokenizers, kind)().text)
    ids = content["model"]["vocab"].values()
    added = content.setdefault("added_tokens", [])
    added.append(ADDED | {"id": max([*ids, *(token["id"] for token in added)]) + 1})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    ours = tokenizers.load_tokenizer(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    n_named = 0
    for text in random_texts(300):
        assert ours.encode_prompt(text).tolist() == library.encode(text).ids, repr(text)
        n_named += "<|tool|>" in text
    assert n_named > 100
    literal = ours.encode("<|tool|>").tolist()  # text of a corpus has no special tokens
    assert len(literal) > 1
