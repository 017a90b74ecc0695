"""What is printed beside a score."""

from neuroada.runs.report import remarks_text


def test_what_guessing_would_reach_and_the_note_stand_beside_a_score():
    note = "contaminated: half of it"
    assert remarks_text({"majority": 0.625, "note": note}) == f"; always the most frequent answer: 0.625; {note}"
    assert remarks_text({"majority": None, "note": ""}) == ""
    assert remarks_text({"note": ""}) == "", "as written before there was a majority"
