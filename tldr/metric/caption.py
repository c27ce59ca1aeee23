"""Caption metrics as COCO's: BLEU-1 to 4 (Papineni et al. 2002), METEOR (Denkowski & Lavie 2014), ROUGE-L (Lin 2004),
CIDEr (Vedantam et al. 2015) and, where its models are, SPICE (Anderson et al. 2016), all by `pycocoevalcap`.

That package splits words with Stanford's tokenizer and runs METEOR and SPICE as Java programs. Here the tokenizer is
called so that no caption can be taken for two, whatever ends a line in it, and nothing is printed or left open.
Numbers are comparable with published ones only by this tokenizer; the ``simple`` one is for where there is no Java.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

METRICS = ("bleu", "meteor", "rouge_l", "cider", "spice")
TOKENIZERS = ("ptb", "simple")
_JAVA = ("meteor", "spice")
_WORD = re.compile(r"\w+(?:['’]\w+)*")

# Captions by the number of their picture, as `pycocoevalcap` wants them.
_Captions = dict[int, list[str]]


class Scores(NamedTuple):
    """``overall``: name -> percent; ``each``: name -> percent of every picture. (CIDEr passes 100.)"""

    overall: dict[str, float]
    each: dict[str, list[float]]


def usable(metrics: Sequence[str] | None, tokenizer: str) -> tuple[str, ...]:
    """The metrics to compute: those given or, for None, all that can be had (SPICE where its models are).

    Raises ValueError naming a choice that there is not, or what to install.
    """
    chosen = METRICS if metrics is None else tuple(metrics)
    unknown = [name for name in chosen if name not in METRICS]
    if unknown or not chosen:
        raise ValueError(f"evaluator.captioning.metrics={list(chosen)}; choose from {', '.join(METRICS)}")
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"evaluator.captioning.tokenizer={tokenizer}; choose from {', '.join(TOKENIZERS)}")
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise ValueError("caption metrics need pycocoevalcap: pip install 'tldr-vlp[metrics]'")
    if "spice" in chosen and not _spice_is_there():
        if metrics is not None:
            raise ValueError(
                f"SPICE needs Stanford's CoreNLP 3.6.0 and its models in {_home() / 'spice' / 'lib'}: "
                "python -m pycocoevalcap.spice.get_stanford_models, or leave spice out of evaluator.captioning.metrics"
            )
        chosen = tuple(name for name in chosen if name != "spice")
    wants = [name for name in chosen if name in _JAVA] + (["the ptb tokenizer"] if tokenizer == "ptb" else [])
    if wants and shutil.which("java") is None:
        raise ValueError(
            f"{' and '.join(wants)} need Java, and there is no `java` on the path: install a Java runtime (Debian: "
            "default-jre-headless), or do without: "
            "evaluator.captioning.tokenizer=simple 'evaluator.captioning.metrics=[bleu,rouge_l,cider]' "
            "(these numbers are not comparable with published ones)"
        )
    return chosen


def score_captions(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] | None = None,
    tokenizer: str = "ptb",
) -> Scores:
    """One caption for each of N pictures, scored by the picture's references, of which there may be any number.

    Names: ``bleu1`` to ``bleu4``, ``meteor``, ``rouge_l``, ``cider``, ``spice``; ``metrics`` as in `usable`.
    """
    chosen = usable(metrics, tokenizer)
    if len(captions) != len(references) or not len(captions) or not all(references):
        raise ValueError(f"{len(captions)} captions, {len(references)} pictures: each wants one, and references to it")
    split = tokenize if tokenizer == "ptb" else _simple
    words = iter(split([*captions, *(text for texts in references for text in texts)]))
    said: _Captions = {number: [next(words)] for number in range(len(captions))}
    right: _Captions = {number: [next(words) for _ in texts] for number, texts in enumerate(references)}
    overall: dict[str, float] = {}
    each: dict[str, list[float]] = {}
    for metric in chosen:
        for name, (total, single) in _SCORERS[metric](right, said).items():
            overall[name], each[name] = 100 * float(total), [100 * float(value) for value in single]
    return Scores(overall, each)


def tokenize(texts: Sequence[str]) -> list[str]:
    """Each text's words in lower case, joined by spaces, without punctuation: Stanford's PTB tokenizer, in Java."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    jar = _home() / "tokenizer" / STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)  # one a line, whatever ends a line in it
    done = subprocess.run(command, input=lines.encode("utf-8", "replace"), capture_output=True, check=False)
    found = done.stdout.decode("utf-8", "replace").split("\n")
    if done.returncode or len(found) != len(texts) + 1:
        raise ValueError(f"the PTB tokenizer failed: {done.stderr.decode('utf-8', 'replace').strip()[-500:]}")
    return [" ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in found[:-1]]


def _simple(texts: Sequence[str]) -> list[str]:
    """As `tokenize`, without Java: letters and digits in a row, and what an apostrophe joins to them."""
    return [" ".join(_WORD.findall(text.lower())) for text in texts]


def _home() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None
    assert spec.submodule_search_locations  # it has no __init__.py
    return Path(next(iter(spec.submodule_search_locations)))


def _spice_is_there() -> bool:
    names = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
    return all((_home() / "spice" / "lib" / name).is_file() for name in names)


# ------------------------------------------------------------------------- one function a metric: name -> (all, each)

_Found = Mapping[str, tuple[Any, Iterable[Any]]]


def _bleu(right: _Captions, said: _Captions) -> _Found:
    from pycocoevalcap.bleu.bleu import Bleu

    total, each = Bleu(4).compute_score(right, said, verbose=0)
    return {f"bleu{n}": (total[n - 1], each[n - 1]) for n in range(1, 5)}


def _rouge_l(right: _Captions, said: _Captions) -> _Found:
    from pycocoevalcap.rouge.rouge import Rouge

    return {"rouge_l": Rouge().compute_score(right, said)}


def _cider(right: _Captions, said: _Captions) -> _Found:
    from pycocoevalcap.cider.cider import Cider

    return {"cider": Cider().compute_score(right, said)}


def _meteor(right: _Captions, said: _Captions) -> _Found:
    from pycocoevalcap.meteor.meteor import Meteor

    scorer: Any = Meteor()
    pipes = (scorer.meteor_p.stdin, scorer.meteor_p.stdout, scorer.meteor_p.stderr)
    try:
        return {"meteor": scorer.compute_score(right, said)}
    except (OSError, ValueError) as error:  # a broken pipe; an empty line where a number should be
        scorer.meteor_p.kill()
        complaint = pipes[2].read().decode("utf-8", "replace").strip()[-500:]
        raise ValueError(f"METEOR's Java program failed (it takes 2 GB of memory): {complaint}") from error
    finally:
        for pipe in pipes:
            with suppress(OSError):
                pipe.close()
        if scorer.lock.locked():  # else its destructor waits for ever
            scorer.lock.release()


def _spice(right: _Captions, said: _Captions) -> _Found:
    from pycocoevalcap.spice.spice import Spice

    total, each = Spice().compute_score(right, said)
    return {"spice": (total, [found["All"]["f"] for found in each])}


_SCORERS = {"bleu": _bleu, "meteor": _meteor, "rouge_l": _rouge_l, "cider": _cider, "spice": _spice}
