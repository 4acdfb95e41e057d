"""Started by `accelerate launch`: runs cases one after the other and lets the first process save how they ended."""

import json
import os
import sys

import torch
from accelerate import PartialState

from tests.ending import end_together
from tests.scaling.cases import run

if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
    import deepspeed.ops

    # DeepSpeed would compile its communication in shared memory; gloo does the same
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

job = json.loads(sys.argv[1])
results = {}
for name, options in job["cases"].items():
    results[name] = run(name.split(":")[0], job["path"], 2, **options)
if PartialState().is_main_process:
    torch.save(results, job["results"])
end_together()
