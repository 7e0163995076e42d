"""What could not be compared is a difference; of all ranks the worst counts; names and samples are accounted for."""

import json
import math

import pytest
import torch

from pentad.verify.findings import Bounds, Quantity, RankFindings, Report, judge
from pentad.verify.reference import Reference, largest, relative

NAMES = ("a", "b")
BOUNDS = Bounds(logprobs=1e-4, loss=1e-6, grad_norm=1e-5, gradients=1e-4, weights=1e-5)


def rank(stage: int = 0, **changes) -> RankFindings:
    found = RankFindings(
        stage,
        losses={1: 0.0, 2: 0.0},
        grad_norms={1: 0.0, 2: 0.0},
        exported=dict.fromkeys(NAMES, True),
        logprobs={7: 0.0, 9: 1e-6},
        gradients=dict.fromkeys(NAMES, 1e-6),
        weights=dict.fromkeys(NAMES, 0.0),
        trained=[7, 9],
    )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def judged(*ranks: RankFindings) -> Report:
    return judge("megatron:d2", 1.0, ranks, BOUNDS, parameters=NAMES, samples=[7, 9])


def test_equal_ranks_pass():
    report = judged(rank(), rank(trained=[]))
    assert report.passed and not report.problems
    assert report.quantities["log-probs"].where == "sample 9"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"gradients": {"a": 1e-6, "b": math.nan}}, "gradients: off by inf, bound 1e-04: b (inf)"),
        ({"gradients": {"a": 0.2, "b": 0.4}}, "gradients: off by 4.0e-01, bound 1e-04: b (4.0e-01), a (2.0e-01)"),
        ({"gradients": {"a": 0.0}}, "gradients: a rank of stage 0 did not get b"),
        ({"weights": {"a": math.inf, "b": 0.0}}, "weights: off by inf, bound 1e-05: a (inf)"),
        ({"logprobs": {7: 0.5, 9: 0.0}}, "log-probs: off by 5.0e-01, bound 1e-04: sample 7 (5.0e-01)"),
        ({"losses": {1: 2e-6, 2: 0.0}}, "loss: off by 2.0e-06, bound 1e-06: step 1 (2.0e-06)"),
        ({"losses": {1: 0.0, 2: math.nan}}, "loss: off by inf, bound 1e-06: step 2 (inf)"),
        ({"grad_norms": {1: 0.0, 2: 1e-3}}, "gradient norm: off by 1.0e-03, bound 1e-05: step 2 (1.0e-03)"),
        ({"exported": {"a": True, "b": False}}, "export: b is not bit-equal to the checkpoint"),
        ({"exported": {"a": True, "b": True, "c": True}}, "export: c is not in the checkpoint"),
        ({"trained": [9]}, "samples: sample 9 was trained 2 times"),
        ({"trained": [8]}, "samples: sample 8 is not in the batch"),
        ({"stage": 1}, "gradients: a is on stages [0, 1]"),
    ],
)
def test_one_bad_rank_of_two_is_told(changes, problem):
    good = rank(trained=[7, 9] if "trained" in changes else [])
    for pair in ((good, rank(**changes)), (rank(**changes), good)):
        report = judged(*pair)
        assert problem in report.problems
        assert not report.passed
        json.dumps(report.to_json(), allow_nan=False)


def test_what_no_rank_has_is_missing():
    report = judged(rank(gradients={"a": 0.0}, trained=[7]))
    assert report.problems == ["gradients: b is missing", "samples: sample 9 was trained 0 times"]


def test_nothing_compared_is_no_agreement():
    assert not Quantity.of({}, 1.0).passed


def test_relative_distance():
    one, other = torch.randn(1000), torch.randn(1000)
    assert relative(one, other) == pytest.approx(float((one - other).norm() / other.norm()))
    assert relative(torch.zeros(3), torch.zeros(3)) == 0
    assert relative(torch.ones(3), torch.zeros(3)) == math.inf
    assert relative(torch.full((4,), 1e-9), torch.zeros(4), floor=1.0) == pytest.approx(2e-9)
    assert math.isnan(relative(torch.tensor([math.nan]), torch.ones(1)))


def test_largest_difference():
    assert largest(torch.tensor([0.5, 2.0]), torch.tensor([0.25, 2.0])) == 0.25
    assert largest(torch.tensor([4.0]), torch.tensor([5.0])) == pytest.approx(0.2)
    assert math.isnan(largest(torch.tensor([0.0, math.nan, 1.0]), torch.zeros(3)))


def test_reference_compares_what_it_has(tmp_path):
    reference = Reference(tmp_path / "reference")
    reference.write_logprobs(1, torch.zeros(3))
    reference.write_logprobs(2, torch.ones(2))
    reference.write_tensors("gradients", [("a", torch.ones(2, 3)), ("b", torch.zeros(2))])
    reference.write_numbers(losses=[0.5, 0.25], grad_norms=[10.0, 1.0])
    taken = []

    def gradients():
        for name, tensor in (("a", 2 * torch.ones(2, 3)), ("b", torch.full((2,), 1e-12)), ("c", torch.ones(1))):
            taken.append(name)
            yield name, tensor

    found = reference.gradient_differences(gradients())
    assert found == {"a": pytest.approx(1.0), "b": pytest.approx(1.4e-7, rel=0.1), "c": math.inf}
    assert reference.gradient_differences([("a", torch.ones(3, 2))]) == {"a": math.inf}
    assert taken == ["a", "b", "c"], "a collective was left early"
    assert sorted(reference.names()) == ["a", "b"]
    assert (reference.losses, reference.grad_norms) == ([0.5, 0.25], [10.0, 1.0])
    assert torch.equal(reference.logprobs(1), torch.zeros(3)) and torch.equal(reference.logprobs(2), torch.ones(2))
