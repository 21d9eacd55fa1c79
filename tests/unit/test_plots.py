"""The picture of a run."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from ullme.trainer import plot_curves, plot_losses

HISTORY = [
    {"step": 1, "loss": 3.0, "sft_loss": 2.0, "grad_norm": 1.5, "learning_rate": 0.1},
    {"step": 1, "eval_loss": 2.5, "eval_rank_agreement": 0.1, "eval_held_rank_agreement": 0.2, "eval_logp_gap": 4.0},
    {"step": 2, "loss": 2.0, "sft_loss": 1.5, "grad_norm": 1.0, "learning_rate": 0.1},
    {"step": 2, "train_runtime": 1.0, "train_loss": 2.5},
]


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn: the labels of the curves, by panel."""
    found = {}
    save = Figure.savefig

    def savefig(figure, *args, **kwargs):
        found.clear()
        found.update({a.get_ylabel(): [line.get_label() for line in a.lines] for a in figure.axes})
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def test_there_is_a_panel_for_all_that_was_logged_and_none_for_the_rest(tmp_path, drawn):
    picture = plot_curves(HISTORY, tmp_path / "plots" / "curves.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert drawn == {
        "loss": ["eval loss", "loss", "sft loss"],
        "gradient norm": ["grad norm"],
        "rank agreement (Kendall's tau)": ["eval held rank agreement", "eval rank agreement"],
        "log-likelihood gap (nats)": ["eval logp gap"],
    }
    plot_curves(HISTORY[:1], tmp_path / "curves.png")
    assert list(drawn) == ["loss", "gradient norm"]


def test_losses_can_be_drawn_alone(tmp_path, drawn):
    plot_losses(HISTORY, tmp_path / "loss.svg")
    assert list(drawn) == ["loss"]


@pytest.mark.parametrize("total", [2.04711, 2.0471])  # a log may round it
def test_a_total_that_equals_its_only_term_is_drawn_once(total, tmp_path, drawn):
    plot_curves([{"step": 1, "loss": total, "sft_loss": 2.04711}], tmp_path / "curves.png")
    assert drawn == {"loss": ["sft loss"]}


@pytest.mark.parametrize("history", [[], [{"step": 3, "grad_norm": 1.0, "train_loss": 1.0}]])
def test_a_log_without_losses_cannot_be_drawn(tmp_path, history):
    with pytest.raises(ValueError, match="holds no loss"):
        plot_curves(history, tmp_path / "none.png")
