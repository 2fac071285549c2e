"""Figures of the Forget page."""

import numpy as np

from app import figures as f


def test_of_many_classes_those_that_are_confused_are_shown() -> None:
    matrix = np.diag(np.full(300, 9.0))
    matrix[200, 250] = matrix[17, 3] = 4.0
    shown = f.confusion(matrix, [f"class {number}" for number in range(300)]).data[0]
    assert np.size(shown.z) <= 5000
    assert {"class 3", "class 17", "class 200", "class 250"} <= set(shown.x)
    row, column = list(shown.y).index("class 200"), list(shown.x).index("class 250")
    assert shown.customdata[row][column] == 4


def test_a_class_without_images_has_no_bar() -> None:
    before, after = f.per_class({"a": {"before": 0.0, "after": None}}, []).data
    assert before.y == (0.0,)
    assert after.y == (None,)


def test_where_a_class_lives_marks_the_chosen_rows() -> None:
    table = np.random.default_rng(0).random((3, 2))
    figure = f.class_specific(table, ["a", "b", "c"], [("layer1", 4), ("layer2", 0)], ["b"])
    assert list(figure.data[0].y) == ["a", "▸ b", "c"]
    assert figure.data[0].customdata[0][0] == "layer1 4"


def test_the_curve_of_forgetting_goes_with_the_strength() -> None:
    points = [
        {"strength": s, "forget_accuracy": f, "retain_accuracy": r}
        for s, f, r in ((2.0, 0.0, 0.9), (0.0, 1.0, 0.98), (1.0, 0.2, 0.95))
    ]
    figure = f.forgetting_curve(points, 1.0, "λ")
    assert list(figure.data[0].x) == [100, 20, 0]
    assert (figure.data[1].x[0], figure.data[1].y[0]) == (20, 95)


def test_relearning_has_a_line_for_each_network() -> None:
    figure = f.relearning([0, 5], {"original": [0.9, 1.0], "edited": [0.0, 0.5]})
    assert [trace.name for trace in figure.data] == ["original", "edited"]
    assert list(figure.data[1].y) == [0, 50]
