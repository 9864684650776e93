"""`layernorm check`: its verdict, its JSON, and the faults that it finds."""

import json

import pytest
from faults_of_ours import (
    depends_on_the_batch,
    depends_on_threads,
    mean_instead_of_sum,
    off_by_eight_ulp,
    swallows_nan,
    uncentered_variance,
)

pytest.importorskip("rich")

from layernorm.cli import main


def test_check_passes_and_its_json_parses(tiny_check, capsys):
    assert main(["check", "--quick", "--json", "--peers", "numpy"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is True
    assert {each["part"] for each in found["ours"]} == {"y", "dx", "dweight", "dbias"}
    assert all(each["error"] <= each["bound"] for each in found["ours"])
    # The formula loses digits on rows far from zero: the check must show it.
    far = [each["error"] for each in found["peers"] if each["input"] == "mean 1e2 std"]
    assert max(far) > 5


def test_check_prints_tables_and_a_verdict(tiny_check, capsys):
    assert main(["check", "--quick", "--peers", "numpy"]) == 0
    text = capsys.readouterr().out
    assert "The contract holds" in text
    assert "3 columns" in text


@pytest.mark.parametrize(
    ("name", "fault", "complaint"),
    [
        ("layer_norm", off_by_eight_ulp, "broken: y of 3 columns, float32"),
        ("layer_norm", uncentered_variance, "broken: y of mean 1e2 std, float32"),
        ("layer_norm", swallows_nan, "make their own row NaN and no other: NO"),
        ("layer_norm", depends_on_the_batch, "that row in a batch: y, dx: NO"),
        ("layer_norm_backward", depends_on_threads, "same bits: y, dx, dweight, dbias: NO"),
        ("layer_norm_backward", mean_instead_of_sum, "broken: dbias of 3 columns, float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_check_fails_where_we_break_the_contract(
    tiny_check, replace_in_ours, capsys, name, fault, complaint
):
    replace_in_ours(**{name: fault})
    assert main(["check", "--quick", "--peers", "none"]) == 1
    text = capsys.readouterr().out
    assert "The contract is broken" in text
    assert complaint in text.replace("\n", " ")
