"""The enum of protocols: what each ranks a target among, and what derives from it."""

import pytest
from typer.testing import CliRunner

from allrec.cli.commands import app
from allrec.config import load_recipe
from allrec.data.negatives import NUM_NEGATIVES
from allrec.data.protocols import EvaluationProtocol
from allrec.errors import InputError
from allrec.evaluation.evaluate import Plan


def test_protocols_rank_lists_or_the_catalogue():
    told = {one.value: (one.num_negatives, one.is_catalogue, one.excludes_history) for one in EvaluationProtocol}
    assert told == {
        "paper": (19, False, False),
        "sampled-99": (99, False, False),
        "full": (None, True, True),
        "full-repeat": (None, True, False),
    }


def test_lists_are_stored_for_the_protocols_that_have_negatives():
    assert NUM_NEGATIVES == {"paper": 19, "sampled-99": 99}


def test_an_unknown_protocol_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="unknown protocol 'papers': did you mean 'paper'"):
        EvaluationProtocol("papers")


@pytest.mark.parametrize(
    "key", ["evaluation.protocols=['papers']", "backbone.validation_protocol=papers", "readout.validation_protocol=1"]
)
def test_a_recipe_refuses_an_unknown_protocol(key):
    with pytest.raises(InputError, match=r"protocol.*paper"):
        load_recipe("a-llmrec", (key,))


def test_every_protocol_is_legal_in_a_recipe_and_named_by_the_help():
    recipe = load_recipe("a-llmrec", (f"evaluation.protocols={[one.value for one in EvaluationProtocol]}",))
    assert Plan.of(recipe.evaluation).protocols == tuple(EvaluationProtocol)
    said = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200"}).output
    assert "paper, sampled-99, full, full-repeat" in " ".join(said.split())
