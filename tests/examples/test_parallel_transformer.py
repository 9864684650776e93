"""The example parallel_transformer: four processes have the losses of one."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch has no distributed")
def test_four_processes_have_the_losses_of_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from parallel_transformer import training
    from parallel_transformer.__main__ import print_runs

    steps = 6
    alone = training.train_alone(steps)
    together = training.train_in_processes(4, steps)
    assert alone.losses[-1] < alone.losses[0] - 0.5  # it learns
    torch.testing.assert_close(together.losses, alone.losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(together.test_loss, alone.test_loss, rtol=1e-5, atol=0)
    print_runs(alone, together, 4)
    assert "other text" in capsys.readouterr().out
