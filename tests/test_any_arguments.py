"""Any combination of arguments of `generate` works, or is refused by one clear ValueError."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_ids, tiny_model

MODELS = {kind: tiny_model(kind, mask_token_id=0) for kind in ("flm", "fmlm")}
WEAK = {kind: tiny_model(kind, mask_token_id=0, hidden_size=16, weights_seed=1) for kind in ("flm", "fmlm")}
PROMPTS = {length: random_ids(2, length) for length in (0, 1, 4, 12, 15)}


def total(ahead):
    return ahead.embedding.sum((1, 2))


def maybe(*values):
    """One of the values, or the argument not given."""
    return st.sampled_from([None, None, *values])


ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "input_ids": st.sampled_from([None, *PROMPTS.values()]),
        "num_steps": maybe(0, 1, 2, 5, 2.0),
        "timesteps": maybe([0], [0, 0.4], [0, 0.9, 0.95], [0.5], []),
        "sampler": maybe("euler", "multistep", "flow_map", "bridge", "heun"),
        "temperature": maybe(0, 0.5, 1, -1),
        "top_k": maybe(1, 5, 100, 0),
        "top_p": maybe(0.3, 1.0, 1.5),
        "gamma": maybe(0, 0.5, 1.0, 2),
        "renoise": maybe("official", "markov", "no"),
        "max_length": maybe(1, 6, 12, 20),
        "max_new_tokens": maybe(1, 8, 20),
        "window_overlap": maybe(0, 3, 11, 12),
        "pad_after_eos": maybe(True, False),
        "eos_token_id": maybe(3),
        "pad_token_id": maybe(5),
        "batch_size": maybe(1, 2, 0),
        "num_return_sequences": maybe(1, 2),
        "seed": maybe(0, 7, [1, 2], "x"),
        "return_dict_in_generate": maybe(True, False),
        "output_trajectory": st.booleans(),
        "num_beams": maybe(2),
        "guidance_scale": maybe(0, 1, 5.0, -1),
        "guidance_dropout": maybe(0.2, 1.0),
        "guidance_model": st.sampled_from([None, None, None, *WEAK.values(), "gpt2"]),
        "reward_fn": st.sampled_from([None, None, None, total, 3]),
        "reward_scale": maybe(0, 2.0, float("inf")),
        "refine_steps": maybe(0, 1, 3, -1),
        "refine_fraction": maybe(0.5, 1, 0),
        "suppress_tokens": maybe([], [1, 2], [61], list(range(61)), ["a"]),
        "bad_words_ids": maybe([[4]], [[4, 5]], 4),
        "progress_bar": maybe(False),
    },
)


@settings(max_examples=500)
@given(kind=st.sampled_from(list(MODELS)), arguments=ARGUMENTS)
def test_it_works_or_says_why_not(kind, arguments):
    model = MODELS[kind]
    try:
        out = model.generate(**arguments)
    except ValueError as error:
        assert len(str(error)) > 20 and "\n" not in str(error)
        return
    shown = arguments.get("output_trajectory")
    assert isinstance(out, torch.Tensor) != bool(arguments.get("return_dict_in_generate") or shown)
    ids = out if isinstance(out, torch.Tensor) else out.sequences
    prompt = arguments.get("input_ids")
    count = (arguments.get("batch_size") or 1) if prompt is None else len(prompt)
    assert len(ids) == count * (arguments.get("num_return_sequences") or 1)
    assert ids.dtype == torch.int64 and 0 <= ids.min() and ids.max() < 61
    if shown:
        assert out.trajectory.shape[1:] == ids.shape and len(out.trajectory) <= out.num_function_evaluations
