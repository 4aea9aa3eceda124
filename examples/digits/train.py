"""Train a small network on the digits with plain numpy; weights in safetensors, results in metrics.json."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

params = yaml.safe_load(Path("params.yaml").read_text())["train"]
rng = np.random.default_rng(params["seed"])

table = np.loadtxt("data/digits.csv", delimiter=",")
order = rng.permutation(len(table))
x, y = (table[order, :-1] / 16).astype(np.float32), table[order, -1].astype(int)
n_val = len(x) // 5
x_val, y_val, x, y = x[:n_val], y[:n_val], x[n_val:], y[n_val:]

widths = [64, params["hidden"], params["hidden"], 10]
names = ["layers.0", "layers.1", "head"]
weights = [(rng.standard_normal((o, i)) * np.sqrt(2 / i)).astype(np.float32) for i, o in pairwise(widths)]
biases = [np.zeros(o, np.float32) for o in widths[1:]]
momenta = [np.zeros_like(w) for w in weights]


def forward(batch):
    """Give the activations of every layer; the last are class probabilities."""
    outs = [batch]
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        z = outs[-1] @ w.T + b
        outs.append(np.maximum(z, 0) if i < len(weights) - 1 else z)
    e = np.exp(outs[-1] - outs[-1].max(1, keepdims=True))
    outs[-1] = e / e.sum(1, keepdims=True)
    return outs


for _ in range(params["epochs"]):
    for start in range(0, len(x), params["batch"]):
        batch, labels = x[start : start + params["batch"]], y[start : start + params["batch"]]
        outs = forward(batch)
        delta = outs[-1].copy()
        delta[np.arange(len(labels)), labels] -= 1
        delta /= len(labels)
        for i in reversed(range(len(weights))):
            below = (delta @ weights[i]) * (outs[i] > 0)
            momenta[i] = 0.9 * momenta[i] + delta.T @ outs[i]
            weights[i] -= np.float32(params["lr"]) * momenta[i]
            biases[i] -= np.float32(params["lr"]) * delta.sum(0)
            delta = below

probabilities = forward(x_val)[-1]
results = {
    "val_acc": round(float((probabilities.argmax(1) == y_val).mean()), 4),
    "val_loss": round(float(-np.log(probabilities[np.arange(n_val), y_val] + 1e-9).mean()), 4),
}
Path("metrics.json").write_text(json.dumps(results, indent=2) + "\n")
Path("models").mkdir(exist_ok=True)
tensors = {f"{name}.weight": w for name, w in zip(names, weights, strict=True)}
tensors |= {f"{name}.bias": b for name, b in zip(names, biases, strict=True)}
save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, "models/digits.safetensors")
print(results)
