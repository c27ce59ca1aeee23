"""VQA's accuracy (Goyal et al. 2017; https://visualqa.org/evaluation): an answer is as right as people agree on it. It
is compared with the answers of all annotators but one and scores min(1, matches / 3); the result is the mean over the
annotator left out, so that people can be measured against each other in the same way.

Answers are normalised first: lower case, no punctuation but apostrophes and colons, no articles, numbers as digits,
contractions with their apostrophes. Only if VQA's ten annotators all say the same are answers compared as they stand.
This is the rule of the public script, with its quirks: it reads `none` as 0, and writes `somebody'd` without its
apostrophe. It knows no other number of annotators; with one or a few, answers are always normalised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ENOUGH = 3  # people who say the same make an answer right
_OFFICIAL = 10  # annotators of each of VQA's questions
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {**{word: str(value) for value, word in enumerate(_NUMBERS)}, "none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")

# Words with one apostrophe, which is put back; not those that are words without (he'll, we're, it's, i'd).
_SHORT = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
# Words with two or three, of which people forget one.
_LONG = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at
""".split()


def _contractions() -> dict[str, str]:
    """What people write -> with its apostrophes."""
    found = {word.replace("'", ""): word for word in _SHORT}
    for word in _LONG:
        places = [i for i, letter in enumerate(word) if letter == "'"]
        for place in places:
            found[word[:place] + word[place + 1 :]] = word
    return found | {"somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()


def normalise(answer: str) -> str:
    """An answer in the form in which answers are compared."""
    glue = _DIGIT_COMMA.search(answer) is not None  # 1,000 is one word
    text = answer
    for mark in _PUNCTUATION:
        apart = glue or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if apart else " ")
    words = [_DIGITS.get(word, word) for word in _FULL_STOP.sub("", text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def unanimous(answers: Sequence[str]) -> bool:
    """Whether VQA's ten annotators all gave this one answer, which is then compared as it stands."""
    return len(answers) == _OFFICIAL and len({" ".join(answer.split()) for answer in answers}) == 1


def accuracy(answer: str, answers: Sequence[str]) -> float:
    """How right (0 to 1) ``answer`` is by the ``answers`` of people, ten in VQA's sets.

    With fewer than four people, leaving one out leaves fewer than three: then all that remain have to agree. A single
    answer is compared with directly. Raises ValueError if there is none.
    """
    if not answers:
        raise ValueError("a question without answers cannot be scored")
    said, people = " ".join(answer.split()), [" ".join(each.split()) for each in answers]
    if not unanimous(answers):
        said, people = normalise(said), [normalise(each) for each in people]
    if len(people) == 1:
        return float(said == people[0])
    count, enough = people.count(said), min(_ENOUGH, len(people) - 1)
    # Leaving out one of those who agree leaves one less.
    left = [min(1.0, (count - (each == said)) / enough) for each in people]
    return sum(left) / len(left)
