"""callbacks/flat_parameters.py: moving tensors into one buffer keeps values, training and checkpoints; and EMA with it."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from callbacks import ema
from callbacks.ema import EMA
from callbacks.flat_parameters import LINE, can_flatten, flatten, views_in


class Small(LightningModule):
    """A channels-last convolution, a batch norm with its statistics and batch count, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 36, 7)]
        self.network = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.network(image))


def floats(module: nn.Module) -> list[Tensor]:
    return [tensor for tensor in module.state_dict(keep_vars=True).values() if tensor.is_floating_point()]


def test_a_moved_tensor_is_the_same_object_with_the_same_values() -> None:
    module = Small()
    tensors = floats(module)
    before = [(id(t), t.detach().clone(), t.stride(), t.requires_grad) for t in tensors]
    piece = flatten(tensors)
    assert [id(tensor) for tensor in floats(module)] == [one for one, *_ in before]
    for tensor, (_, values, stride, gradient) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, values)
        assert (tensor.stride(), tensor.requires_grad, tensor.is_leaf) == (stride, gradient, True)
        assert tensor.untyped_storage().data_ptr() == piece.data_ptr()
        assert tensor.data_ptr() % LINE == 0
    assert tensors[0].is_contiguous(memory_format=torch.channels_last)
    assert piece.double().sum().item() == pytest.approx(sum(float(values.double().sum()) for _, values, *_ in before))


def test_an_operation_on_the_buffer_changes_every_tensor() -> None:
    tensors = [torch.randn(5), nn.Parameter(torch.randn(2, 3)), torch.randn(4, 4).t(), torch.tensor(2.0)]
    twice = [2 * tensor.detach() for tensor in tensors]
    flatten(tensors).mul_(2)
    assert all(torch.equal(tensor, wanted) for tensor, wanted in zip(tensors, twice, strict=True))


def test_views_in_another_buffer_have_the_layout_of_the_tensors() -> None:
    tensors = [torch.randn(5), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.randn(4, 3).t()]
    piece = flatten(tensors)
    other = views_in(piece.clone(), tensors)
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(other, tensors, strict=True))
    assert [copy.stride() for copy in other] == [tensor.stride() for tensor in tensors]
    assert {copy.data_ptr() for copy in other}.isdisjoint(tensor.data_ptr() for tensor in tensors)


def test_training_continues_bit_identically_after_the_move() -> None:
    results = []
    for moved in (False, True):
        torch.manual_seed(0)
        module = Small()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, fused=True)
        for step in range(6):
            if moved and step == 3:  # momentum and gradients exist by now
                flatten(floats(module))
            optimizer.zero_grad()
            module(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        results.append(module.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(*(state.values() for state in results), strict=True))


BASE = torch.zeros(100)


@pytest.mark.parametrize(
    ("tensors", "others", "expected"),
    [
        ([torch.zeros(3), torch.zeros(2, 2)], [], True),
        ([BASE[:10], BASE[10:20]], [BASE[20:]], True),
        ([BASE[:10], BASE[9:20]], [], False),  # one element in both
        ([BASE[:10]], [BASE[9:]], False),
        ([BASE[:10]], [BASE[9:].to_sparse()], True),  # the sparse copy has its own memory
        ([BASE, BASE], [], False),  # one tensor listed twice
        ([torch.zeros(4)[::2]], [], False),
        ([torch.zeros(1).expand(5)], [], False),
        ([torch.zeros(3), torch.zeros(3, dtype=torch.float64)], [], False),
        ([torch.zeros(3), torch.zeros(0)], [], False),
        ([torch.zeros(3, device="meta")], [], False),
        ([torch.eye(3).to_sparse()], [], False),
        ([type("Own", (Tensor,), {})(torch.zeros(3))], [], False),
        ([], [], False),
    ],
)
def test_only_plain_tensors_without_shared_memory_can_be_flattened(
    tensors: list[Tensor], others: list[Tensor], expected: bool
) -> None:
    assert can_flatten(tensors, others) is expected


def averaged(
    module: Small, callback: EMA, steps: int, resumed: dict[str, Any] | None = None
) -> list[dict[str, Tensor]]:
    """Train a module with the callback and return its state after each step, in float64."""
    trainer = SimpleNamespace(enable_validation=False, global_step=0, state=SimpleNamespace(fn="fit"))
    if resumed is not None:
        callback.on_load_checkpoint(cast(Trainer, trainer), module, resumed)
    callback.on_fit_start(cast(Trainer, trainer), module)
    callback.on_train_start(cast(Trainer, trainer), module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    states = []
    for step in range(steps):
        optimizer.zero_grad()
        module(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        trainer.global_step = step + 1
        callback.on_train_batch_end(cast(Trainer, trainer), module, None, None, step)
        states.append({name: tensor.detach().double().clone() for name, tensor in module.state_dict().items()})
    return states


@pytest.mark.parametrize("buffers", ["average", "copy"])
@pytest.mark.parametrize("joined", [True, False])
def test_the_average_is_correct_with_and_without_flattening(
    joined: bool, buffers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not joined:
        monkeypatch.setattr(ema, "can_flatten", lambda *_: False)
    module, callback = Small(), EMA(decay=0.6, warmup=False, buffers=buffers)
    expected = {name: tensor.detach().double().clone() for name, tensor in module.state_dict().items()}
    for state in averaged(module, callback, 5):
        for name, value in state.items():
            copied = "num_batches" in name or (buffers == "copy" and "running" in name)
            expected[name] = value if copied else 0.6 * expected[name] + 0.4 * value
    assert (len(callback._averaged[0]) == 1) is joined
    callback._copy_rest()
    assert callback.average.keys() == expected.keys()
    for name, tensor in callback.average.items():
        torch.testing.assert_close(tensor.double(), expected[name], msg=name, rtol=1e-6, atol=1e-7)


def test_a_checkpoint_of_flattened_tensors_holds_plain_tensors(tmp_path: Path) -> None:
    module, callback = Small(), EMA(decay=0.6)
    averaged(module, callback, 3)
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    callback.on_save_checkpoint(cast(Trainer, None), module, content)
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for kind in (loaded["state_dict"], loaded["ema"]["state_dict"]):
        plain = {name: tensor.contiguous() for name, tensor in kind.items()}
        save_file(plain, tmp_path / "weights.safetensors")
        again = load_file(tmp_path / "weights.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in kind.items())
    other, resumed = Small(), EMA(decay=0.6)
    other.load_state_dict(loaded["state_dict"])
    averaged(other, resumed, 0, resumed=loaded)
    assert (len(resumed._averaged[0]), resumed.updates) == (1, 3)
    assert all(torch.equal(resumed.average[name], tensor) for name, tensor in callback.average.items())


def test_validation_uses_the_average_and_training_the_raw_weights() -> None:
    module, callback = Small(), EMA(decay=0.6)
    (*_, raw) = averaged(module, callback, 3)
    trainer = cast(Trainer, SimpleNamespace(sanity_checking=False, world_size=1, state=SimpleNamespace(fn="fit")))
    callback.on_validation_epoch_start(trainer, module)
    assert all(torch.equal(tensor, callback.average[name]) for name, tensor in module.state_dict().items())
    assert not torch.equal(module.get_parameter("network.0.weight").double(), raw["network.0.weight"])
    callback._leave()
    assert all(torch.equal(tensor.double(), raw[name]) for name, tensor in module.state_dict().items())


def test_a_module_with_shared_memory_is_averaged_without_flattening() -> None:
    module, callback = Small(), EMA(decay=0.5, warmup=False)
    module.register_buffer("seen", cast(nn.Conv2d, module.network[0]).weight.detach()[:1], persistent=False)
    averaged(module, callback, 2)
    assert torch.equal(module.seen, cast(nn.Conv2d, module.network[0]).weight[:1])  # type: ignore[arg-type]
    assert len(callback._averaged[0]) > 1
