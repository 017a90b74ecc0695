"""What is printed beside a score."""

from neuroada.run_folder.summary import closing_pairs, remarks_text


def test_what_guessing_would_reach_and_the_note_stand_beside_a_score():
    note = "contaminated: half of it"
    assert remarks_text({"majority": 0.625, "note": note}) == f"; always the most frequent answer: 0.625; {note}"
    assert remarks_text({"majority": None, "note": ""}) == ""
    assert remarks_text({"note": ""}) == "", "as written before there was a majority"


def test_deltas_that_change_their_weight_are_a_share_of_the_deltas():
    summary = {
        "trainable_parameters": 130,
        "parameters": 1000,
        "steps": 1,
        "samples_per_second": None,
        "tokens_per_second": None,
        "peak_memory_bytes": 1,
        "peak_memory_of": "x",
        "held_out_loss_after": 1.0,
        "scores_before": [],
        "scores_after": [],
        "adapter_bytes": 1,
        "merge": None,
        "run_folder": "x",
        "seconds": 1.0,
        "deltas": 100,
    }

    def text(count: int) -> str | None:
        return dict(closing_pairs(summary | {"surviving_deltas": count}))["change their weight"]

    assert text(80) == "80 deltas (80.0%), after rounding to the weight's dtype"
    assert text(0) == (
        "0 deltas (0.0%), after rounding to the weight's dtype: the merged model is the base; train for more steps or "
        "at a larger rate"
    )
