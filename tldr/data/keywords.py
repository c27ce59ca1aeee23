"""The most frequent words and key-phrases of a corpus: what TL;DR's codebook begins from (section 3.1).

A phrase is a run of up to three words between stop words and punctuation, as in RAKE (Rose et al. 2010), so that
"a large red circle at the top" gives *large red circle* and *top*, and not *circle at the*.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

STOP_WORDS = frozenset(
    """a about above after again against all am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here hers
    him his how i if in into is it its itself just me more most my no nor not now of off on once only or other our
    out over own same she should so some such than that the their them then there these they this those through to
    too under until up very was we were what when where which while who whom why will with would you your s t""".split()
)
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]", re.UNICODE)
_LONGEST = 3


def keywords(captions: Iterable[str], count: int) -> list[str]:
    """The ``count`` most frequent words and phrases (fewer if the corpus has fewer); ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for caption in captions:
        run: list[str] = []
        for word in [*_WORD.findall(caption.lower()), "."]:
            if word[0].isalnum() and word not in STOP_WORDS:
                run.append(word)
                for length in range(1, min(_LONGEST, len(run)) + 1):
                    counts[" ".join(run[-length:])] += 1
            else:
                run = []
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:count]]
