"""Every wrong value a user can pass is refused, with a message that names it and says what is right."""

import copy
import math

import pytest
import torch
from tiny import random_ids, tiny_config, tiny_model
from transformers import GenerationConfig

from modeling_flm import FLMModel, FlowGenerationConfig

IDS = random_ids(2, 12)
PROMPT = IDS[:, :4]
NAN, INF = math.nan, math.inf
FLM, FMLM = tiny_model().requires_grad_(False), tiny_model("fmlm").requires_grad_(False)


def case(message: str, error: type[Exception] = ValueError, model: FLMModel = FLM, **arguments):
    """A row of a table: what the message must match, and the arguments that bring it about."""
    return pytest.param(model, arguments, error, message, id=f"{message} {', '.join(arguments)}"[:60])


def ids_with(value: int) -> torch.Tensor:
    ids = IDS.clone()
    ids[1, 3] = value
    return ids


# -- configurations ---------------------------------------------------------------------------------------------------

SIZES = ["hidden_size", "num_hidden_layers", "num_loops", "num_attention_heads", "intermediate_size"]
SIZES += ["max_position_embeddings", "conditioning_size", "time_embedding_size"]
BAD_FIELDS = {size: [0, -2, 2.0, "2", True, None] for size in SIZES} | {
    "vocab_size": [1, 0, -5, 61.0, "61", True, None],
    "attn_logit_softcapping": [0, -1.0, 81, NAN, INF, "50", True],
    "final_logit_softcapping": [0, -1.0, 81, NAN, INF, "30", True],
    "hidden_dropout": [-0.1, 1, 1.0, NAN, "0.1", None, True],
    "rope_theta": [0, -1.0, NAN, INF, "10000", None],
    "initializer_range": [0, -0.02, NAN, INF, "0.02", None],
    "loss_weighting": [1, "true", None],
    "learned_positions": [1, "true", None],
    "bos_token_id": [-1, 61, 1.0, "1", True],
    "eos_token_id": [-1, 61, 1.0, [1, 61], [1, "2"], [], True],
    "pad_token_id": [-1, 61, 1.0, "1", True],
    "mask_token_id": [-1, 61, 1.0, "1", True],
}
BAD_FIELDS["hidden_size"] += [30, 33]  # no multiple of 2 * 2 heads
BAD_FIELDS["time_embedding_size"] += [15]


@pytest.mark.parametrize("field", BAD_FIELDS)
@pytest.mark.parametrize("model_type", ["flm", "fmlm"])
def test_config(model_type, field):
    for value in BAD_FIELDS[field]:
        with pytest.raises(ValueError) as caught:
            tiny_config(model_type, **{field: value})
            raise AssertionError(f"{value!r} is taken")
        message = str(caught.value)
        assert message.startswith(f"`{field}` is {value!r}, but it must be ") and "\n" not in message


# -- forward ----------------------------------------------------------------------------------------------------------

OUTSIDE, LIE_IN = "outside the vocabulary", "`timesteps` must lie in \\[0, 1\\].* reach"
STATE, DENSE = torch.zeros(2, 12, 32), torch.zeros(2, 12, 61)
MAP, AT = {"model": FMLM}, {"input_ids": IDS, "timesteps": 0.5}
HALF_LABELLED = IDS.masked_fill(torch.arange(12) < 6, -100)
PADDING = (torch.arange(12) < 5).long().expand(2, 12)

FORWARD = [
    # ids
    *(case(f"`labels` contain the id {x}, {OUTSIDE}", labels=ids_with(x)) for x in (61, -1, -101)),
    *(case(f"`input_ids` contain the id {x}, {OUTSIDE}", input_ids=ids_with(x), timesteps=0.5) for x in (61, -1)),
    case("`input_ids` contain the id -100, outside", input_ids=HALF_LABELLED, labels=HALF_LABELLED),
    case("`labels` must be the `input_ids` or -100", input_ids=IDS, labels=IDS.roll(-1, dims=1)),
    case("`labels` of -100 leave a token unknown: give `input_ids`", labels=HALF_LABELLED),
    case("`labels` of -100 leave a token unknown", labels=HALF_LABELLED, attention_mask=PADDING),
    case("`labels` must be an integer tensor .* but is torch.float32", labels=IDS.float()),
    case("`labels` must be an integer tensor .* but is torch.bool", labels=IDS > 3),
    case("`labels` must be an integer tensor .* but is list", labels=IDS.tolist()),
    case("`labels` must be an integer tensor .* but is .* \\(12,\\)", labels=IDS[0]),
    case("`input_ids` must be an integer tensor .* but is torch.float32", input_ids=IDS.float(), timesteps=0.5),
    case("`input_ids` must be .* `embed_state`", input_ids=DENSE, timesteps=0.5),
    case("`input_ids` must be an integer tensor", input_ids=IDS[None], timesteps=0.5),
    # shapes
    case("`labels` has shape \\(2, 11\\), but the input is", input_ids=IDS, labels=IDS[:, 1:]),
    case("`labels` has shape \\(1, 12\\), but the input is", input_ids=IDS, labels=IDS[:1]),
    case("`labels` has shape \\(2, 11\\)", inputs_embeds=STATE, timesteps=0.5, labels=IDS[:, 1:]),
    case("`inputs_embeds` has shape \\(2, 12, 61\\).*embed_state", inputs_embeds=DENSE, timesteps=0.5),
    case("`inputs_embeds` has shape \\(12, 32\\)", inputs_embeds=STATE[0], timesteps=0.5),
    case("`attention_mask` has shape \\(2, 11\\)", labels=IDS, attention_mask=PADDING[:, 1:]),
    case("`attention_mask` has shape \\(1, 12\\)", labels=IDS, attention_mask=PADDING[:1]),
    case("`attention_mask` has shape \\(2, 1, 12, 12\\)", labels=IDS, attention_mask=torch.ones(2, 1, 12, 12)),
    case("`attention_mask` is \\[1\\]", labels=IDS, attention_mask=[1]),
    case("`conditioning_mask` has shape \\(12,\\)", labels=IDS, conditioning_mask=PADDING[0].bool()),
    case("the input is empty", labels=IDS[:0]),
    case("the input is empty", labels=IDS[:, :0]),
    case("13 positions, more than .* max_position_embeddings = 12", labels=random_ids(2, 13)),
    case("13 positions", inputs_embeds=torch.zeros(2, 13, 32), timesteps=0.5),
    # times
    case("`timesteps` is missing", input_ids=IDS),
    case("`timesteps` is missing", inputs_embeds=STATE),
    case("`timesteps` is missing", inputs_embeds=STATE, labels=IDS),
    *(case(f"{LIE_IN} {x}", labels=IDS, timesteps=torch.tensor([0.5, x])) for x in (1.5, -0.5, NAN)),
    *(case(f"{LIE_IN} {x}", input_ids=IDS, timesteps=x) for x in (500, NAN)),
    case(f"{LIE_IN} 2.0", input_ids=IDS, timesteps=[0.5, 2.0]),
    case("`timesteps` must be times in \\[0, 1\\], but is 'now'", input_ids=IDS, timesteps="now"),
    case("`timesteps` has shape \\(3,\\), but must be \\(2,\\)", labels=IDS, timesteps=torch.rand(3)),
    case("`timesteps` has shape \\(2, 1\\)", input_ids=IDS, timesteps=torch.rand(2, 1)),
    case("`timesteps` has shape \\(2, 12\\)", input_ids=IDS, timesteps=torch.rand(2, 12)),
    case("`target_timesteps` needs a two-time model", **AT, target_timesteps=1.0),
    # what is scored, and noise
    case("no position to score: all `labels` are -100", input_ids=IDS, labels=torch.full_like(IDS, -100)),
    case("no position to score.* padding", labels=IDS, attention_mask=torch.zeros_like(IDS)),
    case("no position to score.* conditioning", labels=IDS, conditioning_mask=torch.ones_like(IDS, dtype=torch.bool)),
    case("`noise_seed` has 3 entries for 2 sequences", labels=IDS, noise_seed=torch.tensor([1, 2, 3])),
    *(case("`noise_seed` must be integers, one per sequence", labels=IDS, noise_seed=x) for x in (3, torch.tensor(3))),
    *(case("`noise_seed` must be integers", labels=IDS, noise_seed=torch.tensor(x)) for x in ([1.0, 2.0], [[1], [2]])),
    case("`noise_seed` must lie in \\[-2\\*\\*63, 2\\*\\*64\\)", labels=IDS, noise_seed=[1, 2**64]),
    case("`noise_seed`\\) or `generator`, not both", labels=IDS, noise_seed=[1, 2], generator=torch.Generator()),
    case("`noise_seed` and `generator` noise `labels`", **AT, noise_seed=[1, 2]),
    case("`noise_seed` and `generator` noise", inputs_embeds=STATE, timesteps=0.5, generator=torch.Generator()),
    # what does not go together
    case("give `labels` .* or `input_ids` or `inputs_embeds`"),
    case("give `labels`", timesteps=0.5),
    case("give `input_ids` or `inputs_embeds`, not both", input_ids=IDS, inputs_embeds=STATE, timesteps=0.5),
    case("`conditioning_mask` .* no `labels`", **AT, conditioning_mask=PADDING.bool()),
    case("`labels`.* leave out `label_smoothing_factor`", **AT, num_items_in_batch=24),
    case("unexpected arguments \\['position_ids'\\].* pad them", TypeError, labels=IDS, position_ids=IDS),
    case("unexpected arguments \\['output_attentions'\\]", TypeError, labels=IDS, output_attentions=True),
    # a flow map
    case("`labels` train the denoiser.*`target_timesteps`", **MAP, labels=IDS, timesteps=0.5, target_timesteps=1.0),
    case("`labels` train the denoiser", **MAP, labels=IDS, target_timesteps=1.0),
    case("`target_timesteps` must lie in \\[0, 1\\]", **MAP, **AT, target_timesteps=1.5),
    case("`target_timesteps` must lie in .* reach nan", **MAP, **AT, target_timesteps=[1.0, NAN]),
    case("`target_timesteps` has shape \\(3,\\)", **MAP, **AT, target_timesteps=torch.ones(3)),
    case("`target_timesteps` must not be less than `timesteps`", **MAP, **AT, target_timesteps=0.4),
]


@pytest.mark.parametrize("model, arguments, error, message", FORWARD)
def test_forward(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model(**arguments)


def test_embed_state():
    with pytest.raises(ValueError, match="expected \\(batch, length, 61\\), got \\(2, 12, 32\\)"):
        FLM.embed_state(STATE)
    with pytest.raises(ValueError, match="`state` contain the id 61, outside the vocabulary"):
        FLM.embed_state(ids_with(61))


@pytest.mark.parametrize(
    "implementation, error, message",
    [
        ("sdpa", ValueError, "sdpa.*cannot cap attention scores.*50.0.*flm_softcap"),
        ("flash_attention_2", ImportError, "FlashAttention2"),
        ("no_such_attention", ValueError, "no_such_attention"),
    ],
)
def test_attn_implementation(implementation, error, message):
    with pytest.raises(error, match=message):
        tiny_model(attn_implementation=implementation)


# -- generate ---------------------------------------------------------------------------------------------------------

INTEGER = "must be an integer >= 1, but is"
EULER, BRIDGE, SHORT = {"sampler": "euler"}, {"sampler": "bridge"}, tiny_model(max_position_embeddings=9)
BAD_GRIDS = (3, [], [0.1], [0, 0.5, 0.5], [0, 1.0], [0, "a"], [0, NAN])
GENERATE = [
    *(case(f"`num_steps` {INTEGER} {value!r}", num_steps=value) for value in (0, -1, 1.5, True, "4")),
    *(case(f"`max_length` {INTEGER} {value!r}", max_length=value) for value in (0, -1, 4.0, True)),
    *(case(f"`max_new_tokens` .*but is {value!r}", max_new_tokens=value) for value in (0, -1, 1.5, True)),
    *(case(f"`num_return_sequences` .*{value!r}", num_return_sequences=value) for value in (0, -1, 1.5, True)),
    *(case(f"`batch_size` {INTEGER} {value!r}", batch_size=value) for value in (0, -1, 1.5, True, "2")),
    case("`num_steps` .* but is 0", generation_config=GenerationConfig(), num_steps=0),
    case("`sampler` must be one of euler, multistep, flow_map, bridge, but is 'heun'", sampler="heun"),
    case("`sampler` must be one of euler, multistep, flow_map, bridge, but is 3", sampler=3),
    case("flow_map.*needs a two-time model", sampler="flow_map"),
    case("`do_sample=False` is not possible", do_sample=False),
    case("`do_sample=False` is not possible", generation_config=GenerationConfig(do_sample=False)),
    case("does not use: min_p\\. `help\\(model.generate\\)` and FlowGenerationConfig say", min_p=0.7),
    case("does not use: min_p", generation_config=GenerationConfig(do_sample=True, min_p=0.7)),
    case("does not use: min_p, num_beams", min_p=0.9, num_beams=2),
    case("does not use: inputs \\(did you mean input_ids\\?\\)", inputs=IDS),
    case("does not use: num_stps \\(did you mean num_steps\\?\\)", num_stps=4),
    case("`tokenizer` must be a tokenizer, but is 3", tokenizer=3),
    case("`generation_config` must be a GenerationConfig", generation_config={"num_steps": 4}),
    # samplers
    case('`temperature` is a setting of sampler="bridge"; "euler" has no use for it', **EULER, temperature=0.7),
    case("`temperature` is a setting", generation_config=FlowGenerationConfig(sampler="euler", temperature=0.7)),
    case("`top_p` must be a number in", generation_config=GenerationConfig(do_sample=True), top_p=7.0),
    case('`gamma` is a setting of sampler="flow_map"; "bridge" has no use', sampler="bridge", gamma=0.5),
    *(case("`temperature` must be a number >= 0", **BRIDGE, temperature=x) for x in (-0.1, NAN, INF, "hot", True)),
    *(case("`top_p` must be a number in \\(0, 1\\]", **BRIDGE, top_p=x) for x in (0, 1.1, NAN)),
    *(case("`top_k` must be an integer >= 1", sampler="bridge", top_k=value) for value in (0, 2.0, -1)),
    *(case("`gamma` must be a number in \\[0, 1\\]", gamma=value) for value in (-0.1, 1.1)),
    case("`renoise` must be one of official, markov, but is 'no'", renoise="no"),
    *(case("`timesteps` must ascend from 0 and stay below 1", timesteps=grid) for grid in BAD_GRIDS),
    case("`num_steps` is 3, but `timesteps` has 2 entries", num_steps=3, timesteps=[0, 0.5]),
    # guidance
    *(case("`guidance_scale` must be a number >= 0", input_ids=PROMPT, guidance_scale=x) for x in (-1, NAN, INF, "2")),
    *(case("`guidance_dropout` must be .*\\(0, 1\\)", guidance_scale=2, guidance_dropout=x) for x in (0, 1)),
    case("`guidance_scale` without a prompt needs a weak network", guidance_scale=2),
    case("`guidance_model` is to be guided by, but there is no `guidance_scale`", guidance_model=FMLM),
    case("`guidance_dropout` is to be guided by, but there is no", guidance_dropout=0.1),
    case("not both: there is one weak network", guidance_scale=2, guidance_model=FLM, guidance_dropout=0.1),
    case("`guidance_model` must be a flow language model, but is str", guidance_scale=2, guidance_model="gpt2"),
    case("vocab_size 23, but the model has 61", guidance_scale=2, guidance_model=tiny_model(vocab_size=23)),
    case("max_position_embeddings 9, but the model has 12", guidance_scale=2, guidance_model=SHORT),
    case("`guidance_model` is on meta", guidance_scale=2, guidance_model=copy.deepcopy(FLM).to("meta")),
    case('sampler="flow_map" asks `guidance_model` for jumps too', **MAP, guidance_scale=2, guidance_model=FLM),
    case('which sampler="bridge" cannot draw from', sampler="bridge", guidance_scale=2, guidance_dropout=0.1),
    case("`reward_scale` is that of a `reward_fn`, but there is none", reward_scale=2),
    case("`reward_scale` must be a number that is finite", reward_scale=INF),
    case("`reward_fn` must be a function of a Lookahead, but is 3", reward_fn=3),
    case("`reward_fn` acts between two steps", reward_fn=len, num_steps=1),
    # refinement, forbidden tokens, compilation
    *(case("`refine_steps` must be an integer >= 0", refine_steps=x) for x in (-1, 0.5, True)),
    *(case("`refine_fraction` must be .*\\(0, 1\\]", refine_steps=1, refine_fraction=x) for x in (0, 1.5)),
    case("`refine_fraction` is that of `refine_steps`", refine_fraction=0.5),
    case("`suppress_tokens` contain the id 61", suppress_tokens=[61]),
    case("leave no token to write", suppress_tokens=range(61)),
    *(case("`suppress_tokens` and .* must list integers", suppress_tokens=x) for x in (["a"], 4, "abc", [0.5])),
    *(case("`bad_words_ids` must be lists of one id each", bad_words_ids=x) for x in ([3], [[3, 4]], [[]])),
    case("compile_config", compile_config={"backend": "eager"}),
    # lengths
    case("13 ids are asked for.*max_position_embeddings\\) is 12: lower", max_length=13),
    case("13 ids are asked for", input_ids=PROMPT, max_new_tokens=9),
    case("the prompt has 12 ids and the output 12: nothing is left", input_ids=IDS),
    case("a blank is not known: `config.mask_token_id` is not set", input_ids=IDS),
    case("13 ids are asked for", input_ids=IDS, attention_mask=PADDING, max_new_tokens=8),
    case("`conditioning_mask` must be a tensor as `input_ids`", input_ids=IDS, conditioning_mask=IDS[:, :3]),
    case("`attention_mask` must be a tensor as `input_ids`", input_ids=IDS, attention_mask=IDS.numpy()),
    case("`conditioning_mask` is that of the prompts", conditioning_mask=IDS),
    case("the prompt has 13 ids and the output 12", input_ids=random_ids(1, 13)),
    case("the prompt has 4 ids and the output 3.*raise max_length", input_ids=PROMPT, max_length=3),
    case("13 ids are asked for.*or give `window_overlap`", max_length=13),
    case("`window_overlap` must be less than the model's context, 12, but is 12", window_overlap=12),
    case("`window_overlap` must be an integer >= 0", window_overlap=-1),
    case("show one window", max_length=13, window_overlap=2, output_trajectory=True),
    case("`pad_after_eos` needs `eos_token_id` and `pad_token_id`.* or give `tokenizer`", pad_after_eos=True),
    *(case("`eos_token_id` must be an integer >= 0 or a list", eos_token_id=x) for x in (-1, "a", [1.5], [])),
    case("`eos_token_id` contain the id 61", pad_after_eos=True, eos_token_id=[3, 61], pad_token_id=0),
    case("`pad_token_id` contain the id 61", pad_after_eos=True, eos_token_id=3, pad_token_id=61),
    # prompts
    *(case(f"`input_ids` contain the id {x}, {OUTSIDE}", input_ids=ids_with(x)[:, :4]) for x in (61, -1)),
    *(case("`input_ids` must be an integer tensor", input_ids=x) for x in (PROMPT.float(), PROMPT > 3)),
    case("`input_ids` must be an integer tensor \\(batch, prompt length\\)", input_ids=PROMPT[0]),
    case("`input_ids` must be an integer tensor", input_ids=PROMPT.tolist()),
    case("`input_ids` must be .* batch >= 1", input_ids=PROMPT[:0]),
    case("`batch_size` is 3, but there are 2 prompts", input_ids=PROMPT, batch_size=3),
    case("`attention_mask` must be .*\\(2, 4\\)", input_ids=PROMPT, attention_mask=torch.ones(2, 5)),
    case("`attention_mask` must be .*\\(2, 4\\)", input_ids=PROMPT, attention_mask=[[1] * 4] * 2),
    case("`attention_mask` .* no `input_ids`", attention_mask=torch.ones(2, 4)),
    case("`attention_mask` is 0 between ids", input_ids=PROMPT, attention_mask=torch.tensor([[1, 0, 1, 1]] * 2)),
    # seeds
    *(case("`seed` must be integers", seed=value) for value in (1.5, "abc", True, [0.5], torch.tensor(1.0))),
    case("`seed` has 3 entries for 2 sequences", batch_size=2, seed=[1, 2, 3]),
    case("`seed` has 2 entries for 4 sequences", input_ids=PROMPT, num_return_sequences=2, seed=[1, 2]),
    case("`seed` must lie in", seed=2**64),
    case("give `seed` or `generator`, not both", seed=1, generator=torch.Generator()),
    case("`generator` must be a torch.Generator, but is 3", generator=3),
]


@pytest.mark.parametrize("model, arguments, error, message", GENERATE)
def test_generate(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.generate(**arguments)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("weight", ["lm_head.weight", "lm_head.bias", "embed_tokens.weight", "norm.weight"])
def test_generate_with_broken_weights(weight, bad, num_steps):
    model = tiny_model(final_logit_softcapping=None)
    with torch.no_grad():
        model.get_parameter(weight)[7] = bad
    with pytest.raises(ValueError, match="not finite: look for NaN or infinite weights"):
        model.generate(num_steps=num_steps, seed=0)


def test_generate_finds_one_broken_block_of_the_vocabulary(monkeypatch):
    monkeypatch.setattr("modeling_flm.vocabulary_flm._CPU_BLOCK", 1)
    monkeypatch.setattr("modeling_flm.vocabulary_flm._COLUMNS", 64)
    model = tiny_model(vocab_size=200)
    with torch.no_grad():
        model.lm_head.bias[100] = NAN
    with pytest.raises(ValueError, match="not finite"):
        model.generate(num_steps=1, seed=0)
