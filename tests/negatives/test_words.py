import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from method.negatives import words
from method.negatives.words import find_words, match_case, normalize


def found(text: str, *sought: str) -> dict[str, list[str]]:
    """The matches of each word in brackets, with two characters of context."""
    matches = find_words(text, sought)
    return {word: [f"{text[:a][-2:]}[{text[a:b]}]{text[b:][:2]}" for a, b in spans] for word, spans in matches.items()}


def test_examples_in_the_documentation() -> None:
    assert doctest.testmod(words).failed == 0


@pytest.mark.parametrize(("text", "word", "expected"), [
    ("sitting, he sits to sit.", "sit", ["o [sit]."]),
    ("Sit! SIT? sit", "sit", ["[Sit]! ", "! [SIT]? ", "? [sit]"]),
    ("the man's hat", "man", ["e [man]'s"]),
    ("the man’s hat", "man", ["e [man]’s"]),
    ("the men' hats, 'men' and \"men\"", "men", ["e [men]' ", " '[men]' ", ' "[men]"']),
    ("he can't, but can", "can", ["t [can]"]),
    ("at ten o'clock", "clock", []),
    ("at ten o'clock", "o'clock", ["n [o'clock]"]),
    ("they sit and do sit-ups", "sit", ["y [sit] a"]),
    ("a T-shirt", "shirt", ["T-[shirt]"]),
    ("a T-shirt", "t-shirt", ["a [T-shirt]"]),
    ("a T-(x", "(x", ["T-[(x]"]),
    ("he's up--he sits", "he", ["[he]'s", "--[he] s"]),
    ("picks  up the cup, picks\nup", "picks up", ["[picks  up] t", ", [picks\nup]"]),
    ("lunchroom/kitchen (kitchen)", "kitchen", ["m/[kitchen] (", " ([kitchen])"]),
    ("the naïve, NAÏVE naïveté", "naïve", ["e [naïve], ", ", [NAÏVE] n"]),
    ("a cafe\u0301 and a cafe", "cafe", ["a [cafe]"]),
    ("हिन्दी हिन्द", "हिन्द", ["ी [हिन्द]"]),
    ("she walks", "'s", []),
    ("she's here", "s", []),
    ("she 's here, 's she", "'s", []),
    ("they ’ve a cup", "’ve", []),
    ("he picks 'd' and \"d\"", "'d'", ["'[d]'", '"[d]"']),
    ("ha aha ha ha", "ha ha", ["a [ha ha]"]),
    ("5 men, 15 men", "5", ["[5] m"]),
    ("snake_case case", "case", ["e [case]"]),
    ("a (.*) b", ".*", ["([.*])"]),
    ("anything", "", []),
])  # fmt: skip
def test_matches(text: str, word: str, expected: list[str]) -> None:
    matches = found(text, word).get(word, [])
    assert [match.strip() for match in matches] == [match.strip() for match in expected]


def test_a_dash_ends_a_hyphenated_word() -> None:
    assert find_words("he walks--sit-ups--walks", ["sit", "sit-ups", "ups"]) == {"sit-ups": ((10, 17),)}
    assert find_words("he walks--sit-ups--walks", ["sit", "ups"]) == {"sit": ((10, 13),), "ups": ((14, 17),)}


def test_words_that_differ_in_case_match_their_own_spelling() -> None:
    assert find_words("Will will WILL", ["will", "Will"]) == {"will": ((5, 9), (10, 14)), "Will": ((0, 4),)}


def test_a_listed_possessive_is_a_separate_word() -> None:
    text = "Beckett takes Beckett's coat"
    assert find_words(text, ["beckett", "beckett's"]) == {"beckett": ((0, 7),), "beckett's": ((14, 23),)}
    assert find_words(text, ["beckett"]) == {"beckett": ((0, 7), (14, 21))}


@pytest.mark.parametrize(("word", "replaced", "fitted"), [
    ("Sits", "walks", "sits"),
    ("sits", "Walks", "Sits"),
    ("sits", "WALKS", "SITS"),
    ("sits", "I", "Sits"),
    ("TV", "Couch", "TV"),
    ("école", "Straße", "École"),
    ("couch", "T-shirt", "Couch"),
    ("Penny", "iPhone", "Penny"),
    ("Penny", "東京", "Penny"),
    ("picks up", "Takes", "Picks up"),
])  # fmt: skip
def test_case(word: str, replaced: str, fitted: str) -> None:
    assert match_case(word, replaced) == fitted


def test_fold_joins_accents_and_cases() -> None:
    assert normalize("Cafe\u0301") == normalize("CAFÉ") == normalize("café") != normalize("cafe")


@settings(deadline=None)
@given(st.lists(st.text("aAbé'- ,.", min_size=1, max_size=5), max_size=6), st.text("aAbé'-", min_size=1, max_size=3))
def test_matches_are_whole_words(parts: list[str], word: str) -> None:
    text = " ".join(parts)
    for start, end in find_words(text, [word]).get(word, ()):
        assert normalize(text[start:end]) == normalize(word.strip("'"))
        around = text[start - 1 : start] + text[end : end + 1]
        assert not any(letter.isalnum() for letter in around)


def test_accents_match_composed_or_not_and_sharp_s() -> None:
    assert find_words("the CAFÉ", ["cafe\u0301"]) == {"cafe\u0301": ((4, 8),)}
    assert find_words("the cafe\u0301", ["café"]) == {"café": ((4, 9),)}
    assert find_words("die Straße", ["straße"]) == {"straße": ((4, 10),)}
