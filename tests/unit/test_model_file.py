"""The file with the trained model: written for every kind of model, and read by safetensors itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model
from torch import nn

from model_zoo import ZOO, ExtraState
from swarmstep.errors import UsageError
from swarmstep.runtime.module_tensors import module_tensors
from swarmstep.train.model_file import check_extra_state, save_model

OWN_NAMES = {"own-state-dict", "extra-state"}  # load_model goes by state_dict(), which names others


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.filterwarnings("ignore")
def test_what_is_written_is_what_the_model_has(kind: str, tmp_path: Path) -> None:
    model, file = ZOO[kind].make(), tmp_path / "model.safetensors"
    save_model(model, file)
    with safe_open(file, "pt") as content:
        assert {*content.keys()} == {*module_tensors(model)}
        for name, tensor in module_tensors(model).items():
            assert torch.equal(content.get_tensor(name), tensor)
    if kind not in OWN_NAMES:
        torch.manual_seed(1)
        other = ZOO[kind].make()
        load_model(other, file)
        for tensor, found in zip(module_tensors(model).values(), module_tensors(other).values(), strict=True):
            assert torch.equal(tensor, found)


def test_extra_state_is_in_the_metadata(tmp_path: Path) -> None:
    model = nn.Sequential(ExtraState())
    model[0].calls = 7
    save_model(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as content:
        assert json.loads(content.metadata()["extra_state"]) == {"0": {"calls": 7}}


@pytest.mark.parametrize("state", [torch.ones(2), {1, 2}, object()])
def test_extra_state_that_is_no_json_is_named(state: object) -> None:
    class Odd(nn.Module):
        def get_extra_state(self) -> object:
            return state

    with pytest.raises(UsageError, match=r"module '0': get_extra_state returns what .* cannot hold"):
        check_extra_state(nn.Sequential(Odd()))
