"""Precision-recall and risk-coverage curves against scikit-learn and their definitions."""

import numpy as np
import pytest
from sklearn import metrics as sk
from test_ranking import tied

from gradmix_jax import metrics
from gradmix_jax.metrics import curves


@pytest.mark.parametrize("positive", ["known", "unknown"])
def test_precision_recall_against_scikit_learn(positive):
    known, unknown, _ = tied(0)
    points = metrics.points(known, unknown)
    recall, precision = curves.precision_recall(points, positive=positive)
    sign = 1 if positive == "known" else -1
    truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    expected, recalls, _ = sk.precision_recall_curve(
        truth if sign > 0 else 1 - truth, sign * np.concatenate([known, unknown]), drop_intermediate=False
    )
    np.testing.assert_allclose(recall, recalls[:-1][::-1])
    np.testing.assert_allclose(precision, expected[:-1][::-1])
    area = np.sum(np.diff(recall, prepend=0) * precision)
    assert area == pytest.approx(points.average_precision(positive=positive))


@pytest.mark.parametrize("with_unknown", [False, True])
def test_risk_coverage_by_its_definition(with_unknown):
    known, unknown, correct = tied(1)
    coverage, risk = curves.risk_coverage(metrics.points(known, unknown, correct), unknown=with_unknown)
    scores = np.concatenate([known, unknown]) if with_unknown else known
    wrong = np.concatenate([~correct, np.ones(len(unknown), bool)]) if with_unknown else ~correct
    thresholds = np.unique(np.concatenate([known, unknown]))[::-1]
    accepted = [scores >= threshold for threshold in thresholds if (scores >= threshold).any()]
    np.testing.assert_allclose(coverage, [each.mean() for each in accepted])
    np.testing.assert_allclose(risk, [wrong[each].mean() for each in accepted])
    assert coverage[-1] == 1


def test_another_positive_is_refused():
    with pytest.raises(ValueError, match="got 'both'"):
        curves.precision_recall(metrics.points([1.0], [0.0]), positive="both")
