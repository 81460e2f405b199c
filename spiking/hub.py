"""Saving, loading and sharing trained models: save_pretrained, from_pretrained, push_to_hub, never with a pickle."""

import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from spiking.checkpoint import _compare_tensors, write_atomically
from spiking.errors import SpikingError

__all__ = ["MODEL_CARD", "HubModel", "fetch"]

M = TypeVar("M", bound="HubModel")

MODEL_CARD = """---
{{ card_data }}
---

# {{ title | default("A spiking neural network") }}

A spiking neural network made with the Python library `spiking`.

```python
from spiking.models import {{ class_name | default("NMNISTNet") }}

model = {{ class_name | default("NMNISTNet") }}.from_pretrained("this folder, or its name on the hub")
{{ usage | default("spikes = model(frames)  # [T, B, ...] -> [T, B, classes]") }}
```

## Trained on

{{ trained_on | default("Not stated.") }}

## Results

{{ results | default("Not stated.") }}

## Limits

{{ limits | default("Energy figures for it are estimates of a hardware model, not measurements.") }}
"""


class HubModel(PyTorchModelHubMixin):
    """A model with `save_pretrained(folder)`, `from_pretrained(folder or hub name)` and `push_to_hub(name)`.

    huggingface_hub's mixin with three differences: weights are written whole or not at all, they are loaded strictly, and
    never from a pickle. Weights in a file of half precision are widened to those of the model.
    Errors: SpikingError naming the folder or file and the tensor that does not fit.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save as to_bytes

        assert isinstance(self, nn.Module)
        weights = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.state_dict().items()}
        write_atomically(
            save_directory / constants.SAFETENSORS_SINGLE_FILE, to_bytes(weights, metadata={"format": "pt"})
        )

    @classmethod
    def from_pretrained(cls: type[M], pretrained_model_name_or_path: str | Path, **options: Any) -> M:
        """The model saved in a folder, or published under a name on the hub; options as in huggingface_hub's mixin."""
        name = str(pretrained_model_name_or_path)
        weights = constants.SAFETENSORS_SINGLE_FILE
        if os.path.isdir(name) and not os.path.isfile(os.path.join(name, weights)):
            raise SpikingError(f"{name}: there is no {weights} here; expected a folder made by save_pretrained.")
        try:
            return super().from_pretrained(name, **options)
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as err:
            reason = " ".join(str(err).split())
            raise SpikingError(f"{name}: no such folder, and not to be had from the hub ({reason}).") from err

    @classmethod
    def _from_pretrained(
        cls: type[M],
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str = "cpu",
        strict: bool = True,
        **model_kwargs: Any,
    ) -> M:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = fetch(
            model_id,
            constants.SAFETENSORS_SINGLE_FILE,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        assert file is not None  # from_pretrained has looked
        model = cls(**model_kwargs)
        assert isinstance(model, nn.Module)
        try:
            weights = load_file(file, device="cpu")
        except (SafetensorError, OSError) as err:
            raise SpikingError(f"{file}: not a whole safetensors file ({err}). It is cut or something else.") from err
        wanted = model.state_dict()
        for name, value in weights.items():  # half-precision files are widened, which is exact
            if name in wanted and value.dtype in (torch.float16, torch.bfloat16) and wanted[name].is_floating_point():
                weights[name] = value.to(wanted[name].dtype)
        _compare_tensors(file, "model", weights, wanted)
        model.load_state_dict(weights, strict=strict)
        model.to(torch.device(map_location))
        model.eval()
        return model


def fetch(model_id: str, name: str, **options: Any) -> Path | None:
    """A file of a model's folder, or of its page on the hub (`options` as `hf_hub_download` takes them); None where it has none."""
    if os.path.isdir(model_id):
        path = Path(model_id) / name
        return path if path.is_file() else None
    known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
    try:
        return Path(hf_hub_download(model_id, name, **{key: options[key] for key in known if key in options}))
    except EntryNotFoundError:
        if name == constants.SAFETENSORS_SINGLE_FILE:
            raise
        return None
