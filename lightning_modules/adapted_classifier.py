"""Base class of ImageClassifier: with ``adapter lora`` a frozen backbone is tuned by low-rank adapters, in small checkpoints.

A checkpoint then holds what is trained (adapters and head) and the buffers. Of the frozen weights it holds a hash and the place
that they were read from; whoever loads it reads them there again, and weights with another hash are an error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from features import hash_tensors
from features.identity import short
from foundation.sizes import sides
from lightning_modules.loading import FrozenWeightsError
from lightning_modules.multilabel import MultiLabelClassifier
from networks.adapters import adapt, adapted_layers, is_adapter, merged

log = logging.getLogger(__name__)

NETWORK = "network."  # prefix of the network's tensors in a module's state_dict
WAYS = "name their file: --model.weights FILE of main.py, or load_run(..., weights=FILE)"


class AdaptedClassifier(MultiLabelClassifier):
    """A classifier whose network can be trained through adapters on a frozen backbone.

    Args:
        adapter: ``lora``: the backbone is frozen, and its linear layers get low-rank adapters, which are trained together with the
            head (networks/adapters.py). They need trained weights: ``weights`` or ``pretrained``.
        lora_rank: Rank r of the adapters, 1 or more.
        lora_alpha: Factor on the adapters, divided by ``lora_rank``; above 0.
        lora_targets: Names of the layers that get adapters, such as [qkv, proj]; null: every linear layer outside the head.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *MultiLabelClassifier.fixed_on_resume,
        "adapter",
        "lora_rank",
        "lora_alpha",
        "lora_targets",
    )
    architecture: str
    pretrained: bool
    weights: str | None

    def __init__(
        self,
        *,
        adapter: Literal["none", "lora"] = "none",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_targets: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if lora_rank < 1:
            raise ValueError(f"lora_rank: 1 or more, got {lora_rank}")
        if not 0 < lora_alpha < math.inf:
            raise ValueError(f"lora_alpha: a factor over 0, got {lora_alpha}")
        if lora_targets is not None and not lora_targets:
            raise ValueError(
                "lora_targets: names of layers, such as [qkv, proj], got []; null takes every linear layer"
            )
        self.adapter, self.lora_rank, self.lora_alpha, self.lora_targets = adapter, lora_rank, lora_alpha, lora_targets
        self._frozen_hash: str | None = None  # of the frozen weights; None until they are read
        super().__init__(**kwargs)

    # ---- methods that a subclass implements ----

    def plain_network(self) -> nn.Module:
        """Build the network without adapters, with random weights."""
        raise RuntimeError(f"{type(self).__name__} must define plain_network")

    def fill(self, network: nn.Module) -> list[tuple[int, str]]:
        """Load the initial weights into a network made by `plain_network`; see :class:`StartsFromWeights` for result and errors."""
        raise RuntimeError(f"{type(self).__name__} must define fill")

    # ---- the network ----

    @classmethod
    def has_frozen_weights(cls, settings: dict[str, Any]) -> bool:
        """See :class:`BaseModule`: with adapters, the backbone is in no checkpoint."""
        return bool(settings.get("adapter", "none") != "none")

    def adapt_network(self) -> None:
        """Freeze the backbone and give it adapters, if ``adapter`` asks for them."""
        if self.adapter == "none":
            return
        if not self.pretrained and self.weights is None:
            raise ValueError(
                "adapter: lora adapts trained weights, and none are given; add --model.weights FILE or --model.pretrained true"
            )
        size = sides(self.image_size or cast(Any, self.network).pretrained_cfg["input_size"][-1])
        adapt(self.network, self.lora_targets, self.lora_rank, self.lora_alpha, (self.in_channels, *size))

    @property
    def deployed_network(self) -> nn.Module:
        """See :class:`Classifier`; the adapters are merged, and the tensors have timm's names."""
        return self.network if self.adapter == "none" else merged(self.network)

    def unused_settings(self) -> dict[str, str]:
        """See :class:`BaseModule`."""
        names = ("lora_rank", "lora_alpha", "lora_targets")
        return {**super().unused_settings(), **(dict.fromkeys(names, "adapter none") if self.adapter == "none" else {})}

    def on_fit_start(self) -> None:
        """See :class:`BaseModule`; also say how much is trained."""
        super().on_fit_start()
        if self.adapter == "none":
            return
        layers = adapted_layers(self.network)
        trained = {name: p.numel() for name, p in self.network.named_parameters() if p.requires_grad}
        total, count = sum(p.numel() for p in self.network.parameters()), sum(trained.values())
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        own = sum(size for name, size in trained.items() if is_adapter(name))
        log.info(
            f"adapter    lora of rank {self.lora_rank} in {len(layers)} layers ({kinds}): {count:,} of {total:,} weights are "
            f"trained ({count / total:.2%}), {own:,} of them in adapters"
        )

    # ---- the frozen weights ----

    def frozen_names(self) -> list[str]:
        """Names of the network's frozen parameters, which checkpoints leave out; none without adapters."""
        if self.adapter == "none":
            return []
        return [name for name, parameter in self.network.named_parameters() if not parameter.requires_grad]

    @property
    def left_out(self) -> set[str]:
        """Names of the module's tensors that checkpoints leave out."""
        return {NETWORK + name for name in self.frozen_names()}

    @property
    def weights_from(self) -> dict[str, str]:
        """Where the frozen weights come from: ``{"file": absolute path}`` or ``{"pretrained": name}``."""
        if self.weights is not None:
            return {"file": str(Path(self.weights).resolve())}
        return {"pretrained": self.architecture}

    def give_weights(self) -> list[tuple[int, str]]:
        """Load the initial weights, with adapters those of the network below them; see :class:`StartsFromWeights`."""
        if self.adapter == "none":
            return self.fill(self.network)
        with torch.random.fork_rng(devices=[]):  # building a network draws random numbers
            plain = self.plain_network()
        report = self.fill(plain)
        # of the tensors in float32 on the CPU, whatever the run's device and precision
        state = plain.state_dict()
        self._frozen_hash = hash_tensors({name: state[name] for name in self.frozen_names()})
        self.network.load_state_dict(state, strict=False)  # without the adapters
        return report

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With adapters, leave out the frozen weights and save which they are."""
        super().on_save_checkpoint(checkpoint)
        if self.adapter == "none":
            return
        state, left_out = checkpoint["state_dict"], self.left_out
        checkpoint["state_dict"] = {name: tensor for name, tensor in state.items() if name not in left_out}
        checkpoint["adapter"] = {"weights_hash": self._frozen_hash, "weights_from": self.weights_from}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With adapters, read the frozen weights and complete the checkpoint with them.

        Raises:
            FrozenWeightsError: They cannot be read, or are not those that the adapters were trained on; in a Trainer a
                MisconfigurationException.
        """
        super().on_load_checkpoint(checkpoint)
        if self.adapter == "none":
            return
        try:
            self._read_frozen(checkpoint.get("adapter"))
        except ValueError as error:
            raise (FrozenWeightsError if self._trainer is None else MisconfigurationException)(str(error)) from error
        own = self.network.state_dict()
        frozen = {NETWORK + name: own[name] for name in self.frozen_names()}
        for name in ("state_dict", "raw_state_dict"):
            if name in checkpoint:
                checkpoint[name] = {**frozen, **checkpoint[name]}

    def _read_frozen(self, record: Mapping[str, Any] | None) -> None:
        if not isinstance(record, Mapping) or not isinstance(record.get("weights_hash"), str):
            raise ValueError("the checkpoint has no entry adapter; it does not belong to a network with adapters")
        wanted = record["weights_hash"]
        if self._frozen_hash is None:
            given, known = self.weights, record.get("weights_from")
            if given is not None and not Path(given).exists() and isinstance(known, Mapping) and known.get("file"):
                self.weights = str(known["file"])  # a path relative to the folder where the run was started
            if self.weights is not None and not Path(self.weights).exists():
                self.weights = given
            try:
                self.give_weights()
            except ValueError as error:
                needed = f"the frozen weights of {self.architecture} with hash {short(wanted)} are needed"
                raise ValueError(f"{error}; {needed}; {WAYS}") from error
        if self._frozen_hash != wanted:
            source = self.weights or f"timm's {self.architecture}"
            raise ValueError(
                f"weights: {source} has frozen weights with hash {short(str(self._frozen_hash))}, but the adapters were trained on "
                f"{short(wanted)}; {WAYS}"
            )
