"""Writing captions: greedy, nucleus (Holtzman et al. 2020, arXiv 1904.09751) and beam search over a cached decoder.

Shapes: B pictures, W beams, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tldr.check import check_number
from tldr.nn.text import Cache, TextTransformer

STRATEGIES = ("greedy", "nucleus", "beam")


def generate(
    decoder: TextTransformer,
    image: Tensor,
    prompt: Tensor,
    *,
    end: int,
    strategy: str = "nucleus",
    top_p: float = 0.9,
    num_beams: int = 3,
    max_length: int = 30,
    min_length: int = 5,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """`sample` or `beam_search` by name. Drawing by nucleus at 0.9 is BLIP's CapFilt; its code also has a repetition
    penalty of 1.1, which is not here, and writes 6 to 26 tokens."""
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}; choose from {', '.join(STRATEGIES)}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is not a probability above 0")
    check_lengths("", num_beams=num_beams, min_length=min_length, max_length=max_length)
    max_length = min(max_length, decoder.max_length - len(prompt))
    if strategy == "beam":
        return beam_search(
            decoder, image, prompt, end=end, max_length=max_length, min_length=min_length, num_beams=num_beams
        )
    p = top_p if strategy == "nucleus" else None
    return sample(
        decoder, image, prompt, end=end, max_length=max_length, min_length=min_length, top_p=p, generator=generator
    )


def check_lengths(key: str, *, num_beams: int, min_length: int, max_length: int) -> None:
    """Raises ValueError for options that write nothing, naming the option, prefixed by ``key``."""
    check_number(f"{key}num_beams", num_beams, "a whole number of beams, from 1", low=1, whole=True)
    check_number(f"{key}max_length", max_length, "a whole number of tokens, from 1", low=1, whole=True)
    meaning = f"a whole number of tokens, from 0 to {key}max_length={max_length}"
    check_number(f"{key}min_length", min_length, meaning, low=0, high=max_length, whole=True)


def sample(
    decoder: TextTransformer,
    image: Tensor,
    prompt: Tensor,
    *,
    end: int,
    max_length: int,
    min_length: int = 1,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Continue ``prompt`` (T0,) for each of (B, L, C) ``image`` tokens; the continuations, without ``end``.

    ``top_p`` None takes the likeliest word, else draws from the smallest set of words whose probability reaches it.
    """
    cache, step = Cache(), prompt.expand(len(image), -1)
    done = torch.zeros(len(image), dtype=torch.bool, device=image.device)
    words: list[Tensor] = []
    for length in range(max_length):
        scores = decoder.logits(decoder(step, image=image, causal=True, cache=cache)[:, -1]).float()
        if length < min_length:
            scores[:, end] = -torch.inf
        word = scores.argmax(1) if top_p is None else _nucleus(scores, top_p, generator)
        word = word.masked_fill(done, end)
        done |= word == end
        if bool(done.all()):
            break
        words.append(word)
        step = word[:, None]
    if not words:
        return [[] for _ in range(len(image))]
    rows = torch.stack(words, 1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def _nucleus(scores: Tensor, top_p: float, generator: torch.Generator | None) -> Tensor:
    """(B, V) -> (B,) words drawn from the nucleus."""
    probability, order = scores.softmax(1).sort(1, descending=True)
    outside = probability.cumsum(1) - probability >= top_p  # the word that crosses top_p belongs to the nucleus
    drawn = torch.multinomial(probability.masked_fill(outside, 0), 1, generator=generator)
    return order.gather(1, drawn).squeeze(1)


def beam_search(
    decoder: TextTransformer,
    image: Tensor,
    prompt: Tensor,
    *,
    end: int,
    max_length: int,
    min_length: int = 1,
    num_beams: int = 3,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """Like `sample`, but by beam search. A text's score is log-likelihood / length ** length_penalty, both with its end
    token if it has one. As in transformers, texts that are unfinished at ``max_length`` compete with finished ones."""
    count, device = len(image), image.device
    image = image.repeat_interleave(num_beams, 0)
    cache, step = Cache(), prompt.expand(len(image), -1)
    total = torch.full((count, num_beams), -torch.inf, device=device)
    total[:, 0] = 0  # the beams of a picture start out equal: begin with one
    texts: Tensor = torch.empty(count, num_beams, 0, dtype=torch.long, device=device)
    best: list[tuple[float, list[int]]] = [(-float("inf"), []) for _ in range(count)]
    first = torch.arange(count, device=device)[:, None] * num_beams
    for length in range(max_length):
        scores = decoder.logits(decoder(step, image=image, causal=True, cache=cache)[:, -1]).float().log_softmax(1)
        if length < min_length:
            scores[:, end] = -torch.inf
        reach = total[..., None] + scores.view(count, num_beams, -1)  # (B, W, V)
        vocabulary = reach.shape[-1]
        value, place = reach.flatten(1).topk(2 * num_beams)  # enough that W go on, however many end
        beam, word = place // vocabulary, place % vocabulary
        for i, w in (word == end).nonzero().tolist():
            if w < num_beams:
                score = float(value[i, w]) / (length + 1) ** length_penalty
                if score > best[i][0]:
                    best[i] = (score, texts[i, beam[i, w]].tolist())
        value = value.masked_fill(word == end, -torch.inf)
        total, chosen = value.topk(num_beams)
        beam, word = beam.gather(1, chosen), word.gather(1, chosen)
        texts = torch.cat([texts.gather(1, beam[..., None].expand(-1, -1, texts.shape[2])), word[..., None]], 2)
        rows = (first + beam).flatten()
        for layer in cache.layers:
            layer.select(rows, image=False)  # beams move only within their picture
        step = word.view(-1, 1)
        # A longer text can only lose log-likelihood: stop when no beam can overtake the best ended one.
        bound = total[:, 0] / (max_length if length_penalty > 0 else 1) ** length_penalty
        if all(score >= float(limit) for (score, _), limit in zip(best, bound, strict=True)):
            break
    reached = (total[:, 0] / max_length**length_penalty).tolist()  # after a break none of these is better
    return [text if score >= reached[i] else texts[i, 0].tolist() for i, (score, text) in enumerate(best)]
