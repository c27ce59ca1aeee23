import pytest

from tldr.metric.answer import accuracy, normalise

# What the public script makes of them (its processPunctuation, then its processDigitArticle).
NORMALISED = {
    "Two dogs.": "2 dogs",
    "a red/blue kite": "red blue kite",
    "black, white": "black white",
    "1,000": "1000",
    "3.5": "3.5",
    "u.s.": "us",
    "The t-shirt!": "t shirt",
    "dont know": "don't know",
    "couldnt've": "couldn't've",
    "yall'd've": "y'all'd've",
    "ow's'at": "'ow's'at",
    "somebody'd": "somebodyd",
    "12:30": "12:30",
    "none": "0",
    "cat - dog": "cat dog",
    "its": "its",
    "An": "",
}


@pytest.mark.parametrize(("said", "form"), NORMALISED.items())
def test_answers_are_brought_to_the_form_of_the_public_script(said, form):
    assert normalise(said) == form


def ten(**counts):
    return [answer for answer, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(("agree", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_annotators(agree, score):
    """Of the ten ways to leave one out, `agree` leave one less who agrees: 3 -> (3 * 2/3 + 7 * 1) / 10."""
    assert accuracy("red", ten(red=agree, blue=10 - agree)) == pytest.approx(score)


def test_forms_count_where_people_differ_and_not_where_all_agree():
    assert accuracy("2", ten(two=9, three=1)) == 1.0
    assert accuracy("the two", ten(two=9, three=1)) == 1.0
    assert accuracy("2", ten(two=10)) == 0.0  # as the public script
    assert accuracy(" two ", ten(two=10)) == 1.0


def test_ten_are_vqas_and_others_are_always_brought_to_the_form():
    """The public script knows ten annotators; where one writes "Yes.", "yes" is no other answer."""
    assert accuracy("yes", ["Yes"] * 10) == 0.0
    for people in (["Yes"], ["Yes."] * 3, ["Yes"] * 11):
        assert accuracy("yes", people) == 1.0
        assert accuracy("no", people) == 0.0


@pytest.mark.parametrize(
    ("people", "score"),
    [
        (["red"], 1.0),
        (["blue"], 0.0),
        (["red", "blue"], 0.5),  # leave out the one who agrees: 0; the other: 1 of 1
        (["red", "red", "blue"], (0.5 + 0.5 + 1) / 3),
        (["red", "red", "red", "blue"], (3 * 2 / 3 + 1) / 4),
    ],
)
def test_fewer_annotators(people, score):
    assert accuracy("red", people) == pytest.approx(score)


def test_no_answers_cannot_be_scored():
    with pytest.raises(ValueError, match="without answers"):
        accuracy("red", [])
