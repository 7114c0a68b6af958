"""An adapter for a layer in PyTorch: dispatch by index_add, one loop over experts.

Needs PyTorch (`pip install torch`), which the kit itself does not. Try it from this folder:
    openmoe conform --implementation torch_layer:Adapter --profile quick
"""

import numpy as np
import torch


def route(inputs, kernel, k, capacity):
    """Return probabilities, chosen experts, gates and queue positions of whole groups."""
    logits = torch.stack([group.float() @ kernel for group in inputs])
    probabilities = torch.softmax(logits, dim=-1)
    # torch.topk promises no order among equals; a stable sort keeps the lower index first
    ranked = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    gate, expert = ranked.values[..., :k], ranked.indices[..., :k]
    queue = expert.transpose(1, 2).flatten(1)  # choice-major: [G, K * T]
    chosen = torch.nn.functional.one_hot(queue, kernel.shape[1])
    position = (chosen.cumsum(1) * chosen).sum(-1) - 1
    position = position.unflatten(1, (k, inputs.shape[1])).transpose(1, 2)
    return logits, probabilities, expert, gate, position, position < capacity


def layer(inputs, parameters, k, capacity):
    """Return the output [G, T, D] and what was decided."""
    logits, probabilities, expert, gate, position, kept = route(
        inputs, parameters["router"], k, capacity
    )
    output = torch.zeros(inputs.shape)
    for e in range(parameters["router"].shape[1]):
        group, token, choice = torch.nonzero((expert == e) & kept, as_tuple=True)
        x = inputs[group, token].float()
        value, active = (x @ parameters["wi_0"][e]).chunk(2, dim=-1)
        hidden = value * torch.nn.functional.silu(active) * (x @ parameters["wi_1"][e])
        weighted = gate[group, token, choice][:, None] * (hidden @ parameters["wo"][e])
        output = output.index_put((group, token), weighted, accumulate=True)
    decision = {"expert_index": expert, "gate": gate, "position": position, "kept": kept}
    return output, decision, logits, probabilities


def losses(logits, probabilities, expert):
    """Return the balance loss and the router z-loss."""
    experts = probabilities.shape[-1]
    chosen = torch.nn.functional.one_hot(expert, experts).sum(2).clamp(max=1).float()
    balance = (chosen.mean(1) * probabilities.mean(1)).mean() * experts**2
    return balance, (torch.logsumexp(logits, dim=-1) ** 2).mean()


class Adapter:
    """NumPy in, NumPy out, around the functions above."""

    name = "torch_layer"
    version = torch.__version__

    def route(self, inputs, kernel, *, k, capacity):
        """Return the decision from hidden states."""
        arrays = torch.from_numpy(inputs), torch.from_numpy(kernel)
        names = ("expert_index", "gate", "position", "kept")
        return dict(zip(names, (x.numpy() for x in route(*arrays, k, capacity)[2:]), strict=True))

    def moe(self, inputs, parameters, *, k, capacity):
        """Return output, decision and two of the five metrics."""
        output, decision, logits, probabilities = layer(
            torch.from_numpy(inputs), _tensors(parameters), k, capacity
        )
        balance, z = losses(logits, probabilities, decision["expert_index"])
        return {
            "output": output.numpy(),
            "decision": {name: value.numpy() for name, value in decision.items()},
            "metrics": {"auxiliary_loss": balance.numpy(), "router_z_loss": z.numpy()},
        }

    def moe_gradients(
        self,
        inputs,
        parameters,
        cotangent,
        *,
        k,
        capacity,
        auxiliary_loss_factor=0.0,
        router_z_loss_factor=0.0,
    ):
        """Return gradients by autograd; decisions are integers and carry none."""
        leaves = {"inputs": torch.from_numpy(inputs), **_tensors(parameters)}
        leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
        output, decision, logits, probabilities = layer(leaves["inputs"], leaves, k, capacity)
        balance, z = losses(logits, probabilities, decision["expert_index"])
        total = (output * torch.from_numpy(cotangent)).sum()
        (total + auxiliary_loss_factor * balance + router_z_loss_factor * z).backward()
        return {name: value.grad.numpy() for name, value in leaves.items()}


def _tensors(parameters):
    return {name: torch.from_numpy(np.asarray(value)) for name, value in parameters.items()}
