"""Whether torch's compiled flex attention can be relied on where the tests run."""

import torch

# Where heads lie beside one another in memory, as in transformers' models, torch 2.13 reads memory that it has not
# written and gives NaN or wrong values, without any code of ours. Seen on a CPU with AVX2 alone; others are tested.
IS_SOUND = torch.backends.cpu.get_cpu_capability() != "AVX2"
