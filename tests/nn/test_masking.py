import pytest
import torch

from tldr.nn.masking import choose_words, corrupt, draw_others, swap_pictures

WORDS = torch.tensor([[-1, 0, 1, 1, 1, 2, 3, 4, -1, -1], [-1, 0, 0, -1, -1, -1, -1, -1, -1, -1]])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.15, 0.4, 1.0])
def test_words_are_masked_whole(share):
    counts = torch.zeros(5)
    for seed in range(200):
        chosen = choose_words(WORDS, share, generator=seeded(seed))
        assert not chosen[WORDS < 0].any()
        assert chosen[0, 2] == chosen[0, 3] == chosen[0, 4]
        assert chosen[1, 1:3].all()  # a text of one word has it masked
        assert int(chosen[0, [1, 2, 5, 6, 7]].sum()) == max(1, round(5 * share))
        counts += chosen[0, [1, 2, 5, 6, 7]]
    expected = 200 * max(1, round(5 * share)) / 5
    assert (counts - expected).abs().max() < 5 * expected**0.5  # no word is a favourite


def test_pieces_may_be_masked_apart():
    drawn = [choose_words(WORDS, 0.3, whole=False, generator=seeded(i))[0] for i in range(50)]
    assert all(int(chosen.sum()) == 2 for chosen in drawn)  # 0.3 of seven
    assert any(len(set(chosen[2:5].tolist())) == 2 for chosen in drawn)


def test_a_text_without_words_has_none_masked():
    assert not choose_words(torch.full((2, 3), -1), 0.5).any()
    with pytest.raises(ValueError, match="not 0"):
        choose_words(WORDS, 0)


def test_chosen_tokens_meet_the_three_fates_of_bert():
    tokens = torch.full((100, 200), 7)
    chosen = torch.zeros(100, 200, dtype=torch.bool)
    chosen[:, ::2] = True
    read = corrupt(tokens, chosen, mask_token=4, vocabulary=torch.tensor([8, 9]), generator=seeded(0))
    assert (read[~chosen] == 7).all()
    shares = [float((read[chosen] == token).float().mean()) for token in (4, 7, 8, 9)]
    assert shares == pytest.approx([0.8, 0.1, 0.05, 0.05], abs=0.015)


def test_half_of_the_pictures_are_swapped_for_wrong_ones():
    ids = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    positive = ids[:, None] == ids
    times = torch.zeros(8)
    for seed in range(200):
        source, matched = swap_pictures(positive, 0.5, seeded(seed))
        assert int(matched.sum()) == 4
        assert torch.equal(positive[torch.arange(8), source], matched)
        assert torch.equal(source[matched], torch.arange(8)[matched])
        times += ~matched
    assert (times - 100).abs().max() < 40


def test_what_cannot_be_wrong_stays():
    """Pairs of one picture, and a pair alone."""
    for size in (4, 1):
        source, matched = swap_pictures(torch.ones(size, size, dtype=torch.bool), 0.9)
        assert matched.all()
        assert torch.equal(source, torch.arange(size))


def test_randomness_is_an_argument():
    positive = torch.eye(6, dtype=torch.bool)
    for draw in (
        lambda generator: choose_words(WORDS, 0.4, generator=generator),
        lambda generator: corrupt(WORDS + 1, WORDS >= 0, mask_token=9, vocabulary=torch.arange(5), generator=generator),
        lambda generator: swap_pictures(positive, 0.5, generator)[0],
    ):
        assert torch.equal(draw(seeded(3)), draw(seeded(3)))
        assert any(not torch.equal(draw(seeded(3)), draw(seeded(i))) for i in range(4, 10))


def test_others_are_drawn_from_those_that_do_not_belong():
    positive = torch.eye(6, dtype=torch.bool)
    positive[0, 1] = positive[1, 0] = positive[0, 2] = positive[2, 0] = True
    counts = torch.zeros(6, 6)
    for seed in range(400):
        drawn, there = draw_others(positive, 2, torch.Generator().manual_seed(seed))
        assert drawn.shape == (6, 2)
        assert there.all()
        assert (drawn[:, 0] != drawn[:, 1]).all()
        counts += torch.zeros(6, 6).scatter(1, drawn, 1)
    assert (counts[positive] == 0).all()
    expected = 800 / (~positive).sum(1)  # as often each
    assert (abs(counts / expected[:, None] - 1)[~positive] < 0.25).all()


def test_a_row_with_fewer_others_takes_none_from_the_rest():
    positive = torch.eye(4, dtype=torch.bool)
    positive[0], positive[:, 0], positive[1, 2] = True, True, True  # row 0 has no other, row 1 has one, 2 and 3 two
    drawn, there = draw_others(positive, 15)
    assert there.sum(1).tolist() == [0, 1, 2, 2]
    for row in range(4):
        assert sorted(drawn[row][there[row]].tolist()) == (~positive[row]).nonzero().flatten().tolist()
    assert draw_others(torch.ones(2, 2, dtype=torch.bool), 15)[0].shape == (2, 0)
