"""Weights, inputs and outputs of the official implementation, reproduced within the tolerances recorded with them."""

import pytest
import torch
from official import about, official_model, record

from hub_cards.official import convert_state_dict, official_logits
from modeling_flm.attention_flm import SOFTCAP_ATTENTION
from modeling_flm.clock_flm import Clock
from modeling_flm.flow_flm import interpolate
from modeling_flm.guidance_flm import Predictor

ATTENTION = ["eager", SOFTCAP_ATTENTION]  # with which flex attention agrees (test_model.py)


def cases(name: str):
    """(state or ids, times, recorded logits, recorded log-probabilities with the cap of 30)."""
    io = record(f"{name}_io")
    for case in ("dense", "ids", "diag", "edge"):
        out = f"out.{case}.logits"
        if out not in io:
            continue
        x = io["in.ids"] if case == "ids" else io[f"in.{case}.x"]
        times_of = "dense" if case == "ids" else case
        prefix = "in." if times_of == "dense" else f"in.{times_of}."
        if name == "dit_flm":
            times = (io[f"{prefix}tau"],)
        elif case == "diag":
            times = (io["in.diag.tau"],)
        else:
            times = (io[f"{prefix}tau_s"], io[f"{prefix}tau_t"])
        yield case, x, times, io[out], io[f"out.{case}.logp_cap30"]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", ["dit_flm", "dit_fmlm"])
def test_logits(name, attention):
    plain, capped = (official_model(name, cap, attention) for cap in (None, 30.0))
    tolerance = about(name)["tolerance"]["logits_atol"]
    seen = []
    with torch.no_grad():
        for case, x, times, logits, logp in cases(name):
            state = plain.embed_state(x)
            arguments = dict(zip(("timesteps", "target_timesteps"), times, strict=False))
            out = plain(inputs_embeds=state, **arguments).logits
            torch.testing.assert_close(out, logits, atol=tolerance, rtol=0)
            if case == "ids":  # ids with times are a state
                torch.testing.assert_close(plain(input_ids=x, **arguments).logits, out, atol=1e-5, rtol=0)
            out = capped(inputs_embeds=state, **arguments).logits.log_softmax(-1)
            torch.testing.assert_close(out, logp, atol=tolerance, rtol=0)
            # and what conversions are checked against
            heads = about(name)["sizes"]["heads"]
            dense = x if x.is_floating_point() else torch.nn.functional.one_hot(x, plain.config.vocab_size)
            both = times if name == "dit_flm" else (times[0], times[-1])
            out = official_logits(record(name), heads, dense, *both)
            torch.testing.assert_close(out, logits, atol=tolerance, rtol=0)
            out = official_logits(record(name), heads, dense, *both, final_logit_softcapping=30.0).log_softmax(-1)
            torch.testing.assert_close(out, logp, atol=tolerance, rtol=0)
            seen.append(case)
    assert seen == (["dense", "ids", "edge"] if name == "dit_flm" else ["dense", "ids", "diag", "edge"])


def test_hidden_states():
    model, io = official_model("dit_flm", None, "eager"), record("dit_flm_io")
    state = model.embed_state(io["in.dense.x"])
    hidden = model(inputs_embeds=state, timesteps=io["in.tau"], output_hidden_states=True).hidden_states
    expected = [io["dbg.dense.embed"]] + [io[f"dbg.dense.block{i}"] for i in range(3)]
    for ours, theirs in zip(hidden, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


@pytest.mark.parametrize("vocab_size", ["2", "9", "37", "1000", "30522", "50257", "50258"])
def test_clock(vocab_size):
    recorded, clock = about("clock")["K"][vocab_size], Clock(int(vocab_size))

    def values(name):
        return torch.tensor(recorded[name], dtype=torch.float64)

    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(clock.t(values("tau")), values("t_exact"), **close)
    torch.testing.assert_close(clock.tau(values("t")), values("tau_exact"), **close)
    torch.testing.assert_close(clock.dtau_dt(values("t")), values("dtau_dt_exact"), rtol=1e-6, atol=1e-6)
    near = recorded["near_zero"]["t_of_tau"] + [
        {"tau": 1 - row["one_minus_tau"], "t_exact": row["t_exact"]}
        for row in recorded["near_one"]["t_of_tau"]
        if row["one_minus_tau"] >= 5e-8  # what float32 can tell from 1
    ]
    tau, t = (torch.tensor([row[key] for row in near], dtype=torch.float64) for key in ("tau", "t_exact"))
    torch.testing.assert_close(clock.t(tau), t, rtol=0, atol=1e-6)


@pytest.mark.parametrize("version, cap", [("v1", None), ("v2", 30.0)])
def test_loss_and_gradients(version, cap):
    model, losses = official_model("dit_flm", cap, "eager"), record("losses")
    tau, ids = losses["in.flm.tau"], losses["in.x0"]
    one_hot = torch.nn.functional.one_hot(ids, 37).float()
    state = interpolate(losses["in.noise"], one_hot, model.clock.t(tau))
    torch.testing.assert_close(state, losses[f"flm_ce_{version}.x_t"], atol=5e-5, rtol=0)

    out = model(inputs_embeds=model.embed_state(state), timesteps=tau, labels=ids)
    torch.testing.assert_close(out.token_losses, losses[f"flm_ce_{version}.loss"], atol=2e-4, rtol=0)
    out.loss.backward()
    prefix = f"flm_ce_{version}.grad."
    recorded = {key[len(prefix) :]: grad for key, grad in losses.items() if key.startswith(prefix)}
    assert len(recorded) == 7
    parameters = dict(model.named_parameters())
    for name, grad in convert_state_dict(recorded).items():
        worst = (parameters[name].grad - grad).abs().max() / grad.abs().max()
        assert worst < 2e-4, (name, worst)


@pytest.mark.parametrize("name, cap", [("flm_v1", None), ("flm_v2", 30.0), ("fmlm_v2", 30.0), ("fmlm_v1double", None)])
@pytest.mark.parametrize("attention", ATTENTION)
def test_samplers_token_for_token(name, cap, attention, monkeypatch):
    model = official_model("dit_fmlm" if name.startswith("fmlm") else "dit_flm", cap, attention)
    recorded = record("sampler")
    state = model.embed_state(recorded["in.z0"])
    sampler = "flow_map" if name.startswith("fmlm") else "euler"
    monkeypatch.setattr(model, "embed_noise", lambda *args, **kwargs: state)
    steps = [1, 2, 4] if name.startswith("fmlm") else [1, 4, 16]
    for n in steps:
        tokens = model.generate(batch_size=len(state), max_length=state.shape[1], num_steps=n, sampler=sampler)
        assert torch.equal(tokens, recorded[f"{name}.n{n}.tokens"]), n


def test_noise_put_back_token_for_token(monkeypatch):
    """gamma = 0.8 in four steps, with the recorded noise."""
    model, recorded = official_model("dit_fmlm", 30.0, "eager"), record("sampler")
    run = "fmlm_v2.n4_gamma08"
    start, noise = (model.embed_state(recorded[key]).detach() for key in ("in.z0", f"{run}.noise"))
    monkeypatch.setattr(model, "embed_noise", lambda *args, **kwargs: start)
    monkeypatch.setattr(Predictor, "fresh_noise", lambda self: ((one, None) for one in noise))
    states, denoise = [], model.denoise
    monkeypatch.setattr(model, "denoise", lambda state, *times: states.append(state) or denoise(state, *times))
    shape = dict(batch_size=len(start), max_length=start.shape[1])
    tokens = model.generate(**shape, num_steps=4, sampler="flow_map", gamma=0.8, renoise="official")
    for state, dense in zip(states[1:], recorded[f"{run}.states"][:3], strict=True):
        torch.testing.assert_close(state, model.embed_state(dense), atol=1e-4, rtol=0)
    assert torch.equal(tokens, recorded[f"{run}.tokens"])
