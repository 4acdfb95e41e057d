"""Started by `accelerate launch`: runs cases one after the other and lets the first process save how they ended."""

import json
import os
import sys

import torch
from accelerate import PartialState

from tests.ending import end_together
from tests.launching import without_deepspeeds_own_communication
from tests.scaling.cases import run

if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
    without_deepspeeds_own_communication()

job = json.loads(sys.argv[1])
results = {}
for name, options in job["cases"].items():
    results[name] = run(name.split(":")[0], job["path"], 2, **options)
if PartialState().is_main_process:
    torch.save(results, job["results"])
end_together()
