"""Export the networks of the GPU benchmarks to ONNX, and time PyTorch on them.  Runs where PyTorch is installed.

    python benchmarks/export_networks.py --output /tmp/networks resnet18 resnet50
    python benchmarks/export_networks.py --output /tmp/networks --time results/pytorch.json resnet50 vit_b_16 bert_base

Weights are random (seeded).  Batch normalisation has statistics unlike the identity's: a forward pass in training
mode sets them, so that folding them into the convolutions is not a no-op.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BATCHES = (1, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Network:
    """A module and one example of its inputs, batch of 2, with the names of its free axes."""

    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    axes: dict[str, dict[int, str]]


def images(channels: int, side: int) -> dict[str, torch.Tensor]:
    return {"image": torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))}


def vision(name: str, side: int = 224, channels: int = 3, **options: Any) -> Network:
    import torchvision

    module = getattr(torchvision.models, name)(weights=None, **options)
    if channels != 3:
        module.conv1 = torch.nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():  # ViT starts with a head, and all start with biases, of zeros
                parameter.normal_(std=0.02)
        module.train()
        for _ in range(4):
            module(torch.randn(8, channels, side, side) * 0.8 + 0.2)
    return Network(module.eval(), images(channels, side), {"image": {0: "batch"}, "logits": {0: "batch"}})


class BertLayer(torch.nn.Module):
    """Self-attention over ``heads`` heads, then two linear layers, each with its residual and normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.joined = (torch.nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part(x).view(batch, length, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / (width // self.heads) ** 0.5 + padding
        read = (scores.softmax(dim=3) @ value).transpose(1, 2).reshape(batch, length, width)
        x = self.norms[0](x + self.joined(read))
        return self.norms[1](x + self.narrow(torch.nn.functional.gelu(self.wide(x))))


class Bert(torch.nn.Module):
    """BERT-base with a classifier of two classes (Devlin et al., https://arxiv.org/abs/1810.04805): 12 layers of 768
    with 12 heads, taking what a tokenizer gives as int64.
    """

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.words, self.types = torch.nn.Embedding(30522, width), torch.nn.Embedding(2, width)
        self.positions = torch.nn.Embedding(512, width)
        self.norm = torch.nn.LayerNorm(width, eps=1e-12)
        self.layers = torch.nn.ModuleList(BertLayer(width, 12) for _ in range(12))
        self.pooler, self.classifier = torch.nn.Linear(width, width), torch.nn.Linear(width, 2)
        for module in self.modules():
            if isinstance(module, torch.nn.Embedding | torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.02)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        positions = self.positions.weight[: input_ids.shape[1]]
        x = self.norm(self.words(input_ids) + positions + self.types(token_type_ids))
        padding = (1.0 - attention_mask.to(x.dtype))[:, None, None] * -10000.0
        for layer in self.layers:
            x = layer(x, padding)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


def bert_base() -> Network:
    ids = torch.randint(0, 30522, (2, 128))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "length"} for name in inputs}
    return Network(Bert().eval(), inputs, {**axes, "logits": {0: "batch"}})


NETWORKS = {
    "resnet18": lambda: vision("resnet18"),
    "resnet18_28x28": lambda: vision("resnet18", side=28, channels=1, num_classes=10),
    "resnet50": lambda: vision("resnet50"),
    "vit_b_16": lambda: vision("vit_b_16"),
    "bert_base": bert_base,
}


def export(network: Network, path: Path) -> None:
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention has no ONNX operator
    with torch.no_grad():
        torch.onnx.export(
            network.module,
            tuple(network.inputs.values()),
            str(path),
            input_names=list(network.inputs),
            output_names=["logits"],
            dynamic_axes=network.axes,
            opset_version=17,
            dynamo=False,
        )


def milliseconds(run: Any, repeats: int = 50) -> float:
    """The median time of ``run`` on the GPU."""
    for _ in range(10):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def time_pytorch(network: Network, *, compiled: bool, dtype: torch.dtype) -> dict[str, float]:
    """Median milliseconds by batch size."""
    module = network.module.to("cuda", dtype)
    torch.compiler.reset()  # where all inputs are int64, what was compiled for other weights would be taken again
    run = torch.compile(module, dynamic=True) if compiled else module
    result = {}
    for batch in BATCHES:
        inputs = []
        for tensor in network.inputs.values():
            sized = tensor[:1].expand(batch, *tensor.shape[1:]).contiguous().cuda()
            inputs.append(sized.to(dtype) if sized.is_floating_point() else sized)
        with torch.inference_mode():
            result[str(batch)] = milliseconds(lambda inputs=inputs: run(*inputs))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--time", type=Path, help="also time PyTorch on the GPU and write the figures here")
    parser.add_argument("--no-compile", action="store_true", help="time eager mode only")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"torch": torch.__version__, "networks": {}}
    for name in options.networks:
        torch.manual_seed(0)
        network = NETWORKS[name]()
        began = time.perf_counter()
        path = options.output / f"{name}.onnx"
        export(network, path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - began:.1f} s", flush=True)
        if not options.time:
            continue
        figures["gpu"] = torch.cuda.get_device_name()
        rows = figures["networks"][name] = {}
        for mode in ("eager",) if options.no_compile else ("eager", "compiled"):
            for label, dtype in (("fp16", torch.float16), ("fp32", torch.float32)):
                rows[f"{mode}_{label}"] = time_pytorch(network, compiled=mode == "compiled", dtype=dtype)
                print(name, mode, label, rows[f"{mode}_{label}"], flush=True)
                options.time.parent.mkdir(parents=True, exist_ok=True)
                options.time.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
