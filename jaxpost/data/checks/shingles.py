"""MinHash signatures of texts: how alike two texts are in their runs of words, without looking at pairs of texts."""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, UInt32

PERMUTATIONS = 64  # the estimate's standard error is at most 1 / 16
SHINGLE_WORDS = 3
AT_ONCE = 4096  # shingles hashed in one go: 1 MiB
_CHARACTERS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts that write no blanks between words
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W{_CHARACTERS}]+")
_EMPTY = np.uint32(0xFFFFFFFF)


# Hash function k is x -> SCALE[k] x + SHIFT[k] mod 2^32, a permutation, as the scales are odd.
_SCALE, _SHIFT = np.random.default_rng(20250929).integers(0, 2**32, (2, PERMUTATIONS), np.uint32)
_SCALE |= np.uint32(1)


def words(text: str) -> list[str]:
    """Words in small letters, without punctuation; characters of scripts without blanks count as words.

    >>> words("SELECT  Name, age\\nFROM t;")
    ['select', 'name', 'age', 'from', 't']
    """
    return _WORD.findall(text.casefold())


def shingles(text: str) -> UInt32[np.ndarray, " n"]:
    """A hash of each run of `SHINGLE_WORDS` words; of a shorter text one hash of it all, of an empty one none."""
    hashes = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words(text)], np.uint64)
    if not len(hashes):
        return hashes.astype(np.uint32)
    run = min(SHINGLE_WORDS, len(hashes))
    mixed = np.zeros(len(hashes) - run + 1, np.uint64)
    for offset in range(run):
        mixed = (mixed ^ hashes[offset : offset + len(mixed)]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def signatures(texts: Sequence[str]) -> UInt32[np.ndarray, " texts permutations"]:
    """For each text the least hash of its shingles under each of 64 hash functions, permutations of 32-bit numbers.

    Two texts agree at a place with the probability of the Jaccard similarity of their sets of shingles (Broder 1997).
    The signature of the union of two sets is the smaller of theirs, place by place; that of an empty text is the
    largest number everywhere. A function of the texts alone: the hash functions are fixed.
    """
    out = np.full((len(texts), PERMUTATIONS), _EMPTY, np.uint32)
    for row, text in zip(out, texts, strict=True):
        found = shingles(text)
        for start in range(0, len(found), AT_ONCE):
            hashed = found[start : start + AT_ONCE, None] * _SCALE + _SHIFT
            np.minimum(row, hashed.min(axis=0), out=row)
    return out


def likeness(
    a: UInt32[np.ndarray, " pairs permutations"], b: UInt32[np.ndarray, " pairs permutations"]
) -> Float64[np.ndarray, " pairs"]:
    """The estimated Jaccard similarity of each pair, from 0 to 1."""
    return (a == b).mean(axis=1)
