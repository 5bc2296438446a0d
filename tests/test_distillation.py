"""Distillation targets and losses against the recorded values of the official implementation."""

import numpy as np
import pytest
import torch
from official import official_model, record
from training import arguments

from modeling_flm.attention_flm import SOFTCAP_ATTENTION
from modeling_flm.losses_flm import chunked_cross_entropy, chunked_distillation_loss
from trainers import FMLMTrainer, FMLMTrainingArguments
from trainers.networks import Network, States
from trainers.objectives import OBJECTIVES, Jumps, eulerian_step, project_onto_simplex

LOSSES = record("losses")
ON, OFF = slice(0, 2), slice(2, 6)
EVERYTHING = slice(None)
CLOSE = {"rtol": 0, "atol": 5e-5}


@pytest.fixture(scope="module")
def networks():
    student = official_model("dit_fmlm", 30.0, SOFTCAP_ATTENTION)
    teacher = official_model("dit_flm", 30.0, SOFTCAP_ATTENTION)
    return Network(student), Network(teacher)


def states(network: Network, rows) -> States:
    """x_s of the recorded noise, in a network's embedding."""
    x = LOSSES["fmlm.x_s"][rows]
    keep = torch.zeros(x.shape[:2], dtype=torch.bool)
    embedded = network.model.embed_state(x).detach()
    return States(embedded, torch.zeros_like(embedded), keep)


def times(rows):
    return [LOSSES[f"in.fmlm.tau_{name}"][rows] for name in "sut"]


def token_losses(network: Network, rows, target, loss_type: str = "ce") -> torch.Tensor:
    """Per-token losses (rows, 24) of the student at the recorded states and times."""
    start, _, end = times(rows)
    return student_losses(network, rows, start, end, target, loss_type)


def student_losses(network: Network, rows, start, end, target, loss_type: str = "ce") -> torch.Tensor:
    hidden = network.hidden(states(network, rows), start, end).flatten(0, 1)
    head = (hidden, *network.output_layer)
    _, losses = chunked_distillation_loss(*head, target, torch.ones(len(hidden)), 30.0, loss_type)
    return losses.view(-1, 24)


def jumps(student: Network, teacher: Network, rows) -> Jumps:
    return Jumps(student, teacher, states(student, rows), states(teacher, rows), *times(rows))


def teacher_target(networks, rows, tau):
    _, teacher = networks
    return teacher.predictions(teacher.hidden(states(teacher, rows), tau))


def test_diagonal_target_is_the_teachers_posterior(networks):
    target = teacher_target(networks, ON, times(ON)[0])
    torch.testing.assert_close(target(EVERYTHING).view(2, 24, 37), LOSSES["psd.diag_target"], **CLOSE)


@pytest.mark.parametrize("loss_type, tolerance", [("ce", 2e-4), ("mse", 5e-5)])
def test_semigroup(networks, loss_type, tolerance):
    student, _ = networks
    target = OBJECTIVES["semigroup"]().target(jumps(student, student, OFF))
    torch.testing.assert_close(target(EVERYTHING).view(4, 24, 37), LOSSES["psd.offdiag_target"], **CLOSE)
    losses = [
        token_losses(student, ON, teacher_target(networks, ON, times(ON)[0]), loss_type),
        token_losses(student, OFF, target, loss_type),
    ]
    torch.testing.assert_close(torch.cat(losses), LOSSES[f"psd_{loss_type}.loss"], rtol=0, atol=tolerance)


def test_diagonal_without_a_teacher_is_the_data(networks):
    student, _ = networks
    start, _, end = times(ON)
    hidden = student.hidden(states(student, ON), start, end).flatten(0, 1)
    head = (hidden, *student.output_layer)
    _, losses = chunked_cross_entropy(*head, LOSSES["in.x0"][ON].flatten(), torch.ones(48), 30.0)
    torch.testing.assert_close(losses.view(2, 24), LOSSES["psd_ce_noteacher.loss"][ON], rtol=0, atol=2e-4)


def test_learned_loss_weight(networks):
    student, _ = networks
    start, _, end = times(EVERYTHING)
    weight = student.model.loss_weighting(start, end)[:, None].detach()
    expected = torch.exp(-weight) * LOSSES["psd_ce.loss"] + weight
    torch.testing.assert_close(expected, LOSSES["psd_ce_llw.loss"], rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", ["lsd", "lsd_teacherD"])
def test_lagrangian(networks, name):
    student, teacher = networks
    denoiser = teacher if name == "lsd_teacherD" else student
    target = OBJECTIVES["lagrangian"]().target(recorded := jumps(student, denoiser, OFF))
    torch.testing.assert_close(
        target(EVERYTHING).view(4, 24, 37), LOSSES[f"{name}.offdiag_target_entmax2"], rtol=0, atol=1e-3
    )
    before = LOSSES[f"{name}.offdiag_target_pre_entmax"]
    assert abs(int(torch.cat(recorded.projected).sum()) - int((before < 0).any(-1).sum())) <= 1
    torch.testing.assert_close(token_losses(student, OFF, target), LOSSES[f"{name}.loss"][OFF], rtol=0, atol=1e-2)


def step_of(clock, start, end) -> torch.Tensor:
    """w of the Eulerian objective: (n, 1)."""
    return eulerian_step(clock.t(start), clock.t(end))[:, None]


def test_eulerian(networks):
    """The official target is the one that ours is a part w of the way to, and its loss ours over w^2."""
    student, teacher = networks
    rows = slice(2, 5)
    start, _, end = times(rows)
    target = OBJECTIVES["eulerian"]().target(jumps(student, teacher, rows))
    w = step_of(student.model.clock, start, end)
    delta = student.predictions(student.hidden(states(student, rows), start, end))(EVERYTHING).view(3, 24, 37)
    whole = delta + (target(EVERYTHING).view(3, 24, 37) - delta) / w[..., None]
    torch.testing.assert_close(whole, LOSSES["esd.offdiag_target"], rtol=1e-3, atol=1e-3)
    losses = student_losses(student, rows, start, end, target, "mse")
    torch.testing.assert_close(losses / w.square(), LOSSES["esd.loss"][rows], rtol=1e-2, atol=1e-3)


def test_the_eulerian_trainer_has_cross_entropy_on_the_diagonal(tmp_path, monkeypatch):
    """Squared error is for the targets that leave the simplex. Of the record it is the diagonal at (tau, tau): the
    official code gave the network (s, t) there, where it had learned of tau."""
    student = official_model("dit_fmlm", 30.0, SOFTCAP_ATTENTION)
    teacher = official_model("dit_flm", 30.0, SOFTCAP_ATTENTION)
    student.loss_weighting = None
    on, off = [0, 1, 5], [2, 3, 4]
    start, end = (LOSSES[f"in.fmlm.tau_{name}"].clone() for name in "st")
    start[on] = end[on] = LOSSES["esd.diag_tau"]
    t = student.clock.t(start)[:, None, None]
    data = torch.nn.functional.one_hot(LOSSES["in.x0"].long(), 37)
    noisy = (1 - t) * LOSSES["in.noise"] + t * data
    torch.testing.assert_close(noisy[:5], LOSSES["fmlm.x_s"][:5], rtol=0, atol=1e-5)
    args = arguments(tmp_path, kind=FMLMTrainingArguments, objective="eulerian", initialize_from_teacher=False)
    trainer = FMLMTrainer(student, teacher, args)

    def recorded(network) -> States:
        value = network.embed_state(noisy).detach()
        return States(value, torch.zeros_like(value), torch.zeros(6, 24, dtype=torch.bool))

    monkeypatch.setattr(trainer, "_states", lambda *_: (recorded(student), recorded(student), recorded(teacher)))
    batch = {"input_ids": LOSSES["in.x0"].long(), "labels": LOSSES["in.x0"].long()}
    batch |= {"diagonal": np.isin(range(6), on), "unique": np.zeros(6, dtype=bool)}
    batch |= {"timesteps": start, "middle_timesteps": start, "target_timesteps": end}
    of_jumps = LOSSES["esd.loss"][off] * step_of(student.clock, start[off], end[off]).square()
    expected = torch.cat([LOSSES["esd.diag_loss_if_tau_tau"], of_jumps]).mean()
    loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-3, atol=0)
    trainer.log(logs := {"loss": 0.0})
    assert logs["loss_diagonal"] == pytest.approx(float(LOSSES["esd.diag_loss_if_tau_tau"].mean()), rel=1e-5)
    assert logs["loss_off_diagonal"] == pytest.approx(float(of_jumps.mean()), rel=1e-3)


def test_projection_onto_the_simplex():
    x = torch.randn(100, 7, generator=torch.Generator().manual_seed(0))
    p = project_onto_simplex(x)
    torch.testing.assert_close(p.sum(-1), torch.ones(100))
    assert (p >= 0).all()
    inside = x.softmax(-1)
    torch.testing.assert_close(project_onto_simplex(inside), inside)
    # the nearest point: nothing is nearer along the way to any other point of the simplex
    others = torch.randn(100, 7, generator=torch.Generator().manual_seed(1)).softmax(-1)
    assert (((x - p) * (others - p)).sum(-1) <= 1e-5).all()
